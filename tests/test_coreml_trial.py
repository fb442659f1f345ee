"""Trials of compute units, with a stand-in for Core ML: it cannot run here."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from ppexport.backends.coreml import trial, trial_child
from ppexport.backends.coreml.trial import TrialError, check_platform, run_trial
from ppexport.errors import InputError, UnavailableError
from ppexport.parity.compare import Gate
from ppexport.parity.units import parse_units

LR = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
INPUTS = [{"lr": LR}, {"lr": LR / 2, "slots": np.zeros((1, 128), np.int32)}]
STAND_IN = """
import sys
from pathlib import Path
import numpy as np
from ppexport.backends.coreml import trial_child

def recorded(package, unit, function):
    def predict(fed):
        assert set(fed) == {"lr"}, fed.keys()
        sr = fed["lr"].repeat(2, axis=2).repeat(2, axis=3)
        return {"sr": sr, "impure_tokens": np.array([0 if function is None else int(function.split("_")[1])])}
    return predict

here = Path(sys.argv[1])
trial_child.plans(here, trial_child.run(here, recorded))
"""


def child(code):
    return (sys.executable, "-c", code)


def test_a_trial_brings_back_what_the_child_computed(tmp_path):
    found = run_trial(tmp_path, "cpu", INPUTS, command=child(STAND_IN))
    assert [int(o["impure_tokens"][0]) for o in found.outputs] == [0, 128]
    assert np.array_equal(found.outputs[1]["sr"], (LR / 2).repeat(2, axis=2).repeat(2, axis=3))
    # No Mac: the plan says why it is missing, and the pictures are kept.
    assert set(found.plan) == {"unknown"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(60)", "did not end in time"),
        ("import sys; print('no such device'); sys.exit(3)", r"ended with 3: no such device"),
        ("import os; os.abort()", r"ended with -6: it said nothing"),
        ("pass", "left no result"),
        ("import sys, pathlib; (pathlib.Path(sys.argv[1]) / 'outputs.npz').write_bytes(b'x')", "left no result"),
    ],
)
def test_a_trial_that_fails_says_how(code, message, tmp_path):
    with pytest.raises(TrialError, match=message):
        run_trial(tmp_path, "ne", INPUTS, seconds=3, command=child(code))


def test_a_trial_that_takes_too_much_memory_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "POLL", 0.02)
    code = "import time; x = bytearray(200 << 20); time.sleep(60)"
    with pytest.raises(TrialError, match=r"took \d+ MB, more than 100"):
        run_trial(tmp_path, "gpu", INPUTS, seconds=30, megabytes=100, command=child(code))


def test_a_plan_counts_devices_and_crossings():
    plan = trial_child.summary([("a", "NE"), ("b", "NE"), ("c", "CPU"), ("d", "NE")])
    assert plan == {
        "operations": {"NE": 3, "CPU": 1},
        "crossings": 2,
        "devices": {"a": "NE", "b": "NE", "c": "CPU", "d": "NE"},
    }
    json.dumps(plan)


def test_units_are_checked():
    assert parse_units("cpu,all,cpu") == ["cpu", "all"]
    with pytest.raises(InputError, match="cpu, gpu, ne, all, not 'tpu'"):
        parse_units("cpu,tpu")
    if sys.platform != "darwin":
        with pytest.raises(UnavailableError, match="on a Mac"):
            check_platform()


def test_gates_know_every_precision():
    from ppexport.backends.coreml.build import PRECISIONS
    from ppexport.parity.compare import ARTIFACT_GATES

    assert all(isinstance(ARTIFACT_GATES[precision], Gate) for precision in PRECISIONS)
