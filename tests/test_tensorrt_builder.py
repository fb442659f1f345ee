"""The builder on TensorRT-RTX, which parses and builds without a GPU: syntax, types, shapes, and that a plan comes out.

Nothing runs here: numbers, speed and engines for boards are proved on a board only.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from conftest import GOLDEN, golden_network
from onnx import TensorProto, helper
from tensorrt_models import random_network, request_in, run_job, shorten, write_request

import ppexport
from ppexport.backends.tensorrt import build_engine
from ppexport.backends.tensorrt.build_engine import BuildFailed, engine_artifact, failure
from ppexport.device.artifact import read_artifact
from ppexport.device.capacities import capacity_set
from ppexport.errors import UnavailableError
from ppexport.remote.archive import make_archive


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="pip install -e '.[tensorrt-rtx]'")


def built(network, folder: Path, size, precision="fp32", capacities=None, pad_heads=True) -> dict:
    """Export *network* for TensorRT and build its plan; returns the result, after checking what must always hold."""
    artifact = ppexport.export(
        network, backend="tensorrt", precision=precision, size=size, out=folder / "a", capacities=capacities,
        pad_heads=pad_heads,
    )  # fmt: skip
    request = request_in(folder / "build", artifact)
    code, events = run_job(folder / "build")
    assert code == 0, events[-1]
    phases = [event for event in events if event["event"] == "progress"]
    assert all(0 <= event["step"] <= event["steps"] for event in phases)
    assert any(event["step"] == event["steps"] for event in phases if event["phase"] == "Building engine")
    assert not [event for event in events if event["event"] == "log" and event["severity"] == "error"]
    outcome = json.loads((folder / "build" / "outcome.json").read_text())
    out = engine_artifact(request, outcome, folder / "build", folder / "engine")
    engine = read_artifact(out).manifest.engine
    assert (out / "model.engine").stat().st_size > 10_000
    assert engine["profiles"] == (capacities or request.source.manifest.capacities[-1:])
    layers = json.loads((out / "layers.json").read_text())
    assert len(layers) == engine["layers"] > 1
    assert engine["tf32"] is False
    return {**engine, "layers": layers}


# The small core: networks of two layers, which hold every operator of the large ones.


@pytest.mark.parametrize(("arch", "scale"), [("pp_atd_light", 2), ("atd_light", 3)])
def test_fp32_builds(trt, tmp_path, arch, scale):
    result = built(shorten(random_network(arch, scale)), tmp_path, (32, 32))
    assert result["attention_fused"] is False
    assert result["activation_bytes"] > 2**20
    # The names of the layers lead back to PyTorch modules.
    names = " ".join(layer["Name"] for layer in result["layers"])
    assert "/layers.0/residual_group/layers.1/attn_win/" in names


def test_fp16_builds_with_fused_attention_and_becomes_an_artifact(trt, tmp_path):
    result = built(shorten(random_network("pp_atd_light", 4)), tmp_path, (32, 32), "fp16")
    assert result["attention_fused"] is True
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        ppexport.open_artifact(tmp_path / "engine")


@pytest.mark.parametrize(("precision", "scale"), [("fp16", 2), ("fp32", 3)])
def test_a_capacity_set_is_one_engine_with_a_profile_for_each(trt, tmp_path, precision, scale):
    built(shorten(random_network("pp_atd_light", scale), 1), tmp_path, (16, 32), precision, capacities=[128, 512])


def test_a_plain_export_builds_too(trt, tmp_path):
    result = built(shorten(random_network("pp_atd_light", 2), 1), tmp_path, (16, 16), "fp16", pad_heads=False)
    assert result["attention_fused"] is True


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (256, 256)], ids=str)
@pytest.mark.parametrize("kind", ["full", "set"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_matrix(trt, tmp_path, scale, precision, kind, size):
    network = ppexport.load_network(f"pp_atd_light_x{scale}")
    result = built(network, tmp_path, size, precision, capacity_set(size, 4) if kind == "set" else None)
    assert result["attention_fused"] is (precision == "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atd_light_x2_trained", "atd_light_x4_random"])
def test_networks_without_pure_pass(trt, tmp_path, name):
    built(golden_network(name, "atd_light"), tmp_path, (64, 64), "fp16")


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights", ["atd_light_v2_x2_random.safetensors", "CAMixerSR_S.pth", "swinir_light_x2_random.safetensors"]
)
def test_other_networks(trt, tmp_path, weights):
    built(ppexport.load_network(checkpoint=GOLDEN / weights), tmp_path, (64, 64))


# What it refuses.


class Finder(torch.nn.Module):
    def forward(self, x):
        return torch.nonzero(x > 0.5).float()


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.router = torch.nn.Conv2d(3, 3, 1), torch.nn.Sequential(torch.nn.Identity(), Finder())

    def forward(self, x):
        return self.router(self.head(x))


def refused(folder: Path, model: bytes, **changes) -> tuple[int, list[dict]]:
    """(exit code, events) of a build of *model*."""
    request = {
        "onnx_sha256": hashlib.sha256(model).hexdigest(), "workspace_mb": 64, "tf32": False, "slots": [],
        "optimization_level": 0, "runtime": None, "activation_bytes": None, **changes,
    }  # fmt: skip
    write_request(folder, model, request)
    return run_job(folder)


def add_model() -> bytes:
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="/a/Add")], "g",
        [port("x", TensorProto.FLOAT, [4])], [port("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_the_parser_names_the_module(trt, tmp_path):
    path = tmp_path / "net.onnx"
    from ppexport.backends.onnx.export_onnx import quiet_exporter

    with quiet_exporter():
        torch.onnx.export(Net(), (torch.rand(1, 3, 8, 8),), str(path), dynamo=False, opset_version=17)
    code, events = refused(tmp_path / "build", path.read_bytes())
    assert code == 1
    assert events[-1]["kind"] == "parse"
    error = failure(events[-1])
    assert isinstance(error, BuildFailed)
    assert error.exit_code == 1
    assert str(error).startswith("TensorRT cannot read the model: NonZero in module router.1: ")
    assert "\n" not in str(error)
    assert "NonZero" in (tmp_path / "build" / "build.log").read_text()
    assert not (tmp_path / "build" / "model.engine").exists()


def test_types_that_do_not_match_are_refused(trt, tmp_path):
    model = onnx.load_from_string(add_model())
    model.graph.initializer.append(helper.make_tensor("h", TensorProto.FLOAT16, [4], [0, 1, 2, 3]))
    model.graph.node[0].input[1] = "h"
    code, events = refused(tmp_path / "build", model.SerializeToString())
    assert code == 1
    assert events[-1]["kind"] in ("parse", "build")


def test_a_damaged_timing_cache_is_ignored(trt, tmp_path):
    (tmp_path / "timing.cache").write_bytes(b"not a cache")
    assert refused(tmp_path, add_model())[0] == 0


def test_what_does_not_fit_is_refused_before_building(trt, tmp_path):
    code, events = refused(tmp_path, add_model(), activation_bytes=1 << 50)
    assert code == 1
    assert events[-1]["kind"] == "memory"
    assert "1048576.0 GiB" in events[-1]["message"]


def test_a_model_that_arrived_damaged_is_not_built(trt, tmp_path):
    code, events = refused(tmp_path, add_model(), onnx_sha256="0" * 64)
    assert (code, events[-1]["event"], events[-1]["kind"]) == (1, "failed", "io")
    assert "does not match the hash" in events[-1]["message"]
    assert not (tmp_path / "model.engine").exists()


def test_without_tensorrt_it_says_so_and_exits_with_3(tmp_path):
    """The archive alone, as on a board: -S leaves out every installed package, NumPy too."""
    refused(tmp_path, add_model())
    (tmp_path / "agent.pyz").write_bytes(make_archive())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "agent.pyz"], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 3, done.stderr
    event = json.loads(done.stdout.splitlines()[-1])
    assert (event["event"], event["kind"]) == ("failed", "no-tensorrt")
    assert isinstance(failure(event), UnavailableError)
    assert not done.stderr


def test_fused_attention_is_told_by_names():
    layers = [{"Name": "/a/MatMul", "LayerType": "gemm", "TacticName": ""}]
    assert build_engine._is_fused(layers) is False
    assert build_engine._is_fused([*layers, {"Name": "_gemm_mha_v2_myl0_3"}]) is True
