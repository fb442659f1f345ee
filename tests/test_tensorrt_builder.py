"""The builder on TensorRT-RTX, which parses and builds without a GPU: syntax, types, shapes, and that a plan comes out.

Nothing runs here: numbers, speed and engines for boards are proved on a board only.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from conftest import golden_network
from onnx import TensorProto, helper
from tensorrt_models import random_network, request_in, shorten

import ppexport
from ppexport.backends.tensorrt import run_builder as engine_builder
from ppexport.backends.tensorrt.engine_artifact import engine_artifact
from ppexport.backends.tensorrt.trtexec import BuildFailed, failure
from ppexport.device.sizes import capacity_set
from ppexport.errors import UnavailableError

SCRIPT = Path(engine_builder.__file__)


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'ppexport[tensorrt-rtx]'")


def run(request: Path) -> tuple[int, list[dict]]:
    events = []
    return engine_builder.main(str(request), events.append), events


def built(network, folder: Path, size, precision="fp32", capacities=None, pad_heads=True) -> dict:
    """Export *network* for TensorRT and build its plan; returns the result, after checking what must always hold."""
    artifact = ppexport.export(
        network, backend="tensorrt", precision=precision, size=size, out=folder / "a", capacities=capacities,
        pad_heads=pad_heads,
    )  # fmt: skip
    code, events = run(request_in(folder / "build", artifact))
    assert code == 0, events[-1]
    assert events[-1]["event"] == "done"
    phases = [event for event in events if event["event"] == "progress"]
    assert all(0 <= event["step"] <= event["steps"] for event in phases)
    assert any(event["step"] == event["steps"] for event in phases if event["phase"] == "Building engine")
    assert not [event for event in events if event["event"] == "log" and event["severity"] == "error"]
    result = json.loads((folder / "build" / "result.json").read_text())
    assert result["engine_bytes"] == (folder / "build" / "model.engine").stat().st_size
    assert result["profiles"] == [{"slots": [1, c]} for c in capacities or []]
    assert result["layers"]
    assert not result["tf32"]
    return result


# The small core: networks of two layers, which hold every operator of the large ones.


@pytest.mark.parametrize(("arch", "scale"), [("pp_atd_light", 2), ("atd_light", 3)])
def test_fp32_builds(trt, tmp_path, arch, scale):
    result = built(shorten(random_network(arch, scale)), tmp_path, (32, 32))
    assert result["attention_fused"] is False
    assert result["activation_bytes"] > 2**20
    # The names of the layers lead back to PyTorch modules.
    names = " ".join(layer["Name"] for layer in result["layers"])
    assert "/layers.0/residual_group/layers.1/attn_win/" in names


def test_fp16_builds_with_fused_attention_and_becomes_an_artefact(trt, tmp_path):
    result = built(shorten(random_network("pp_atd_light", 4)), tmp_path, (32, 32), "fp16")
    assert result["attention_fused"] is True
    folder = engine_artifact(tmp_path / "a", tmp_path / "build", tmp_path / "engine")
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        ppexport.open_artifact(folder)


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
    network = (
        random_network("pp_atd_light", 3) if scale == 3 else ppexport.load_network(f"pp_atd_light_x{scale}")
    )  # x3 has no bundled weights
    result = built(network, tmp_path, size, precision, capacity_set(size, 4) if kind == "set" else None)
    assert result["attention_fused"] is (precision == "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atd_light_x2_trained", "atd_light_x4_random"])
def test_networks_without_pure_pass(trt, tmp_path, name):
    built(golden_network(name, "atd_light"), tmp_path, (64, 64), "fp16")


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


def request_for(folder: Path, model: bytes, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    request = {
        "version": 1, "onnx": "model.onnx", "onnx_sha256": engine_builder.hashlib.sha256(model).hexdigest(),
        "engine": "model.engine", "log": "build.log", "timing_cache": "timing.cache", "device": "device.json",
        "result": "result.json", "workspace_mb": 64, "precision": "fp32", "tf32": False, "slots": None,
        "optimization_level": 0, "runtime": None, **changes,
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    return folder / "request.json"


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
    code, events = run(request_for(tmp_path / "build", path.read_bytes()))
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
    code, events = run(request_for(tmp_path / "build", model.SerializeToString()))
    assert code == 1
    assert events[-1]["kind"] in ("parse", "build")


def test_a_damaged_timing_cache_is_ignored(trt, tmp_path):
    request = request_for(tmp_path, add_model())
    (tmp_path / "timing.cache").write_bytes(b"not a cache")
    assert run(request)[0] == 0


def test_what_does_not_fit_is_refused_before_building(trt, tmp_path):
    code, events = run(request_for(tmp_path, add_model(), activation_bytes=1 << 50))
    assert code == 1
    assert events[-1]["kind"] == "memory"
    assert "1048576.0 GiB" in events[-1]["message"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 1"),
        ({"engine": "../model.engine"}, "engine in the request is not a plain file name"),
        ({"log": "/tmp/log"}, "log in the request is not a plain file name"),
        ({"onnx": ".hidden"}, "onnx in the request"),
        ({"onnx_sha256": "0" * 64}, "does not match the hash"),
        ({"onnx": "missing.onnx"}, "missing.onnx is missing"),
        ({"precision": "int4"}, "precision"),
        ({"slots": {"name": "slots", "lengths": []}}, "slots"),
        ({"slots": {"name": "slots", "lengths": [True]}}, "slots"),
        ({"tf32": 1}, "tf32"),
        ({"workspace_mb": 0}, "workspace_mb"),
        ({"runtime": "os"}, "runtime"),
    ],
)
def test_bad_requests(trt, tmp_path, changes, message):
    code, events = run(request_for(tmp_path, add_model(), **changes))
    assert (code, events[-1]["event"], events[-1]["kind"]) == (1, "failed", "io")
    assert message in events[-1]["message"]
    assert not (tmp_path / "model.engine").exists()


def test_no_request(tmp_path):
    code, events = run(tmp_path / "none.json")
    assert (code, events[-1]["kind"]) == (1, "io")


# The file alone, as it is sent to a board.


def alone(request: Path, python: str = sys.executable) -> subprocess.CompletedProcess:
    script = request.parent / "engine_builder.py"
    script.write_bytes(SCRIPT.read_bytes())
    command = [python, "-S", "engine_builder.py", "request.json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=request.parent, capture_output=True, text=True, check=False, env=environment
    )  # fmt: skip


def test_without_tensorrt_it_says_so_and_exits_with_3(tmp_path):
    # -S: no installed packages.
    done = alone(request_for(tmp_path, add_model()))
    assert done.returncode == 3
    event = json.loads(done.stdout.splitlines()[-1])
    assert (event["event"], event["kind"]) == ("failed", "no-tensorrt")
    assert isinstance(failure(event), UnavailableError)
    assert not done.stderr


def test_it_is_written_for_python_3_8_and_imports_the_standard_library():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    assert {module.partition(".")[0] for module in modules} <= {*sys.stdlib_module_names, "__future__"}


def test_fused_attention_is_told_by_names():
    layers = [{"Name": "/a/MatMul", "LayerType": "gemm", "TacticName": ""}]
    assert engine_builder.is_fused(None) is None
    assert engine_builder.is_fused(layers) is False
    assert engine_builder.is_fused([*layers, {"Name": "_gemm_mha_v2_myl0_3"}]) is True
