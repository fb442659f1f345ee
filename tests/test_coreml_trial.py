"""A Mac's compute units, with stand-ins for Core ML, which cannot run here."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import core_ml_stand_in
import numpy as np
import pytest
from small_networks import SIZE, small_network

import ppexport
from ppexport.backends.coreml import BACKEND, trial
from ppexport.backends.coreml import run_mac as mac
from ppexport.backends.coreml.package import read_package
from ppexport.backends.coreml.run_mac import Planned
from ppexport.backends.coreml.trial import operations_of, run_trial
from ppexport.backends.unit_trial import TrialError
from ppexport.device.artifact import read_artifact
from ppexport.errors import ArtifactError, InputError, UnavailableError
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.parity.run import unit_column

LR = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
INPUTS = [{"lr": LR}, {"lr": LR / 2, "slots": np.zeros((1, 128), np.int32)}]
STAND_IN = """
import sys
from pathlib import Path
import numpy as np
from ppexport.backends.coreml import run_mac, trial
from ppexport.backends.coreml.run_mac import Opened, Planned

def recorded(package, unit, function):
    def predict(fed):
        assert set(fed) == {"lr"}, fed.keys()
        sr = fed["lr"].repeat(2, axis=2).repeat(2, axis=3)
        return {"sr": sr, "impure_tokens": np.array([0 if function is None else int(function.split("_")[1])])}
    def plan():
        if function != "capacity_1024":
            raise RuntimeError("no plan of " + function)
        return [Planned("a", "ios18.mul", "NE", 0.5)]
    return Opened(predict, plan, {})

run_mac.open_function = recorded
trial.run_child(Path(sys.argv[1]))
"""
ON_A_MAC = (sys.executable, str(Path(core_ml_stand_in.__file__)))
pytest_plugins = ["apple_fixtures"]


def child(code):
    return (sys.executable, "-c", code)


def test_a_trial_brings_back_what_the_child_computed(tmp_path):
    outputs, plan = run_trial(tmp_path, "cpu", INPUTS, command=child(STAND_IN))
    assert [int(o["impure_tokens"][0]) for o in outputs] == [0, 128]
    assert np.array_equal(outputs[1]["sr"], (LR / 2).repeat(2, axis=2).repeat(2, axis=3))
    # The plan says why it is missing, and the pictures are kept.
    assert plan == {"unknown": "RuntimeError: no plan of capacity_128"}


def test_the_plan_is_that_of_the_most_slots(tmp_path):
    inputs = [{"lr": LR, "slots": np.zeros((1, c), np.int32)} for c in (512, 1024)]
    _, plan = run_trial(tmp_path, "cpu", inputs, command=child(STAND_IN))
    assert plan == {"operations": {"NE": 1}, "crossings": 0, "devices": {"a": "NE"}}


@pytest.fixture
def on_a_mac(monkeypatch):
    monkeypatch.setattr(mac, "check_platform", lambda: None)
    monkeypatch.setattr(mac, "import_module", core_ml_stand_in.import_module)


def test_a_set_runs_on_a_mac_as_in_the_evaluator(coreml_set, on_a_mac):
    artifact, evaluated = read_artifact(coreml_set), ppexport.open_artifact(coreml_set)
    runner, used = mac.CoreMLMacRunner(artifact, "CPU_AND_NE"), set()
    for item in parity_inputs(SIZE, 2)[:7]:
        found, expected = runner(item.lr), evaluated(item.lr)
        np.testing.assert_array_equal(found.sr, expected.sr)
        assert found[1:] == expected[1:]
        used.add(found.capacity)
    assert used == {128, 256}
    operations = operations_of(runner.plan())
    assert {op.module for op in operations} >= {"pure_pass", "layers.0.residual_group.layers.0.attn_aca"}
    assert all(op.ms == 0.001 for op in operations)


def test_what_core_ml_refuses_is_said(tmp_path, coreml_set, on_a_mac):
    with pytest.raises(ArtifactError, match=r"Core ML cannot load broken\.mlpackage: no such$"):
        mac.open_function("broken.mlpackage", "ALL", None)
    with pytest.raises(ArtifactError, match="function_name main not found"):
        mac.open_function(str(coreml_set / "model.mlpackage"), "ALL", "main")


def test_pictures_of_a_set_are_told_by_its_functions():
    spec = pytest.importorskip("coremltools").proto.Model_pb2.Model()
    assert not mac.takes_pictures(spec)
    function = spec.description.functions.add(name="capacity_128")
    function.input.add(name="lr").type.multiArrayType.SetInParent()
    assert not mac.takes_pictures(spec)
    function.input[0].type.imageType.SetInParent()
    assert mac.takes_pictures(spec)


def test_a_unit_has_a_column_of_its_own(coreml_set):
    runner = ppexport.open_artifact(coreml_set)
    inputs = parity_inputs(SIZE, 2)[:4]
    run = partial(run_trial, runner.artifact.model_file, "ne", command=ON_A_MAC)
    column, plan = unit_column("ne", runner, run, inputs)
    for item in inputs:
        expected = runner(item.lr)
        np.testing.assert_array_equal(column.samples[item.name].sr, expected.sr)
        assert (column.samples[item.name].impure, column.samples[item.name].capacity) == expected[1:]
    operations = read_package(runner.artifact.model_file).functions["capacity_256"].operations
    linear = sum(op.type == "linear" for op in operations)
    assert plan["operations"]["MLNeuralEngineComputeDevice"] == linear > 0
    assert plan["crossings"] > 0
    assert set(plan["devices"].values()) == {"MLNeuralEngineComputeDevice", "MLCPUComputeDevice"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(60)", "did not end in time"),
        ("import sys; print('no such device'); sys.exit(3)", r"ended with 3: no such device"),
        ("import os; os.abort()", r"ended with -6: it said nothing"),
        ("pass", "left no result"),
        ("import sys, pathlib; (pathlib.Path(sys.argv[1]) / 'output0.npz').write_bytes(b'x')", "left no result"),
        ("import sys, pathlib; (pathlib.Path(sys.argv[1]) / 'output0.npz').write_bytes(b'PK\\3\\4')", "left no result"),
        ("import sys, pathlib; (pathlib.Path(sys.argv[1]) / 'output0.npz').write_bytes(b'')", "left no result"),
    ],
)
def test_a_trial_that_fails_says_how(code, message, tmp_path):
    with pytest.raises(TrialError, match=message):
        run_trial(tmp_path, "ne", INPUTS, seconds=1 if "sleep" in code else 60, command=child(code))


def test_a_plan_counts_devices_and_crossings():
    devices = {"a": "NE", "b": "NE", "x": "", "c": "CPU", "d": "NE"}
    plan = trial.summary([Planned(name, "ios18.mul", where, None) for name, where in devices.items()])
    assert plan == {
        "operations": {"NE": 3, "CPU": 1},
        "crossings": 2,
        "devices": {"a": "NE", "b": "NE", "c": "CPU", "d": "NE"},
    }
    json.dumps(plan)


def test_units_are_checked(coreml_set):
    runner = ppexport.open_artifact(coreml_set)
    with pytest.raises(InputError, match="cpu, gpu, ne, all, not 'tpu'"):
        BACKEND.unit_runs(runner, ["cpu", "tpu"])
    if sys.platform != "darwin":
        with pytest.raises(UnavailableError, match="on a Mac"):
            BACKEND.unit_runs(runner, ["cpu", "all"])


def test_every_unit_is_a_pair_and_one_that_fails_does_not_end_the_run(coreml_set, tmp_path, monkeypatch):
    monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: parity_inputs(SIZE, 2)[:1])
    runner = ppexport.open_artifact(coreml_set)
    units = {
        "ne": partial(run_trial, runner.artifact.model_file, "ne", command=ON_A_MAC),
        "gpu": partial(
            run_trial, runner.artifact.model_file, "gpu", command=child("print('no such device'); raise SystemExit(3)")
        ),
    }
    report = parity_run.run_parity(small_network(), runner, tmp_path / "run", lambda *_: None, units)
    assert [pair.other for pair in report.pairs] == ["twin", "coreml-fp16", "coreml-fp16-ne"]
    assert all(pair.passed for pair in report.pairs)
    assert report.units["ne"]["crossings"] > 0
    assert "no such device" in report.units["gpu"]["failed"]
    assert not report.passed
    assert (tmp_path / "run" / "coreml-fp16-ne.npz").is_file()
