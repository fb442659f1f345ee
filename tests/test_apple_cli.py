"""What a user of Core ML packages and Core AI assets types: `lint`, `diverge`, and every mistake's one sentence."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("coremltools")

from ppexport.cli.lint import kinds_of_modules
from ppexport.device.artifact import sha256_path

pytest_plugins = ["apple_fixtures"]
LAYER = "layers.0.residual_group.layers.0"


@pytest.fixture
def copied(coreml_set, tmp_path):
    return shutil.copytree(coreml_set, tmp_path / "copy")


def test_lint_tells_what_leaves_the_neural_engine(coreml_set, command_line):
    out, _ = command_line("lint", coreml_set)
    assert out == command_line("lint", coreml_set / "model.mlpackage")[0]
    for name in ("capacity_128", "capacity_256"):
        assert re.search(rf"{name}: \d+ of \d+ operations leave the Neural Engine, \d+ crossings", out)
    assert "nothing here has run on a device" in out
    functions = json.loads(command_line("lint", coreml_set, "--json", "-")[0])["functions"]
    assert [f["function"] for f in functions] == ["capacity_128", "capacity_256"]
    for function in functions:
        assert function["crossings"] > 4
        assert sum(function["modules"].values()) == len(function["leaving"]) < function["operations"]
        assert function["modules"][f"{LAYER}.attn_aca.router.sort"] > 0


def test_layers_that_are_alike_are_named_once():
    modules = {"layers.0.conv": 1, "a.layers.3.norm1": 4, "layers.12.conv": 5, "": 2}
    assert kinds_of_modules(modules) == [("layers.*.conv", 6), ("a.layers.*.norm1", 4), ("", 2)]


def test_lint_of_what_is_no_package(fails, tmp_path, copied):
    package = copied / "model.mlpackage"
    (tmp_path / "empty.mlpackage").mkdir()
    (tmp_path / "text.mlpackage").write_text("no folder")
    for name in ("empty", "text", "absent"):
        fails("lint", tmp_path / f"{name}.mlpackage", message=rf"{name}\.mlpackage is not a Core ML package")
    fails("lint", tmp_path, message="is not an art[ei]fact")
    fails("lint", tmp_path / "x.aimodel", message="Core AI asset: nothing is known")
    (weights,) = package.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    fails("lint", package, message="ends behind the end of the file")
    fails("lint", copied, message="does not match its hash in manifest.json")
    (model,) = package.rglob("model.mlmodel")
    model.write_bytes(model.read_bytes()[:5000])
    fails("lint", package, message="model.mlpackage: ")


def test_diverge_names_the_first_operations_in_fp16(coreml_set, command_line):
    data = json.loads(
        command_line("diverge", coreml_set, "--input", "noise", "--below", 200, "--count", 3, "--json", "-")[0]
    )
    assert (data["input"], data["below"], len(data["divergences"])) == ("noise", 200, 3)
    # All before the first layer is fp32, and so is its norm.
    assert data["divergences"][0]["module"] == f"{LAYER}.wqkv"
    assert 50 < data["divergences"][0]["decibel"] < 120
    out, _ = command_line("diverge", coreml_set / "model.mlpackage", "--below", 200, "--count", 1)
    assert "wqkv" in out
    assert (
        "every result agrees with itself in fp32 by 20 dB or more"
        in command_line("diverge", coreml_set, "--below", 20)[0]
    )
    out, _ = command_line("diverge", coreml_set, coreml_set, "--below", 300)
    assert "every result agrees with that of" in out


def test_diverge_from_a_damaged_reference_tells_where(coreml_set, command_line, copied):
    package = copied / "model.mlpackage"
    (weights,) = package.rglob("weight.bin")
    data = bytearray(weights.read_bytes())
    # The last weight, behind its header of 64 bytes, twice as large.
    start = data.rfind(b"\xef\xbe\xad\xde") + 64
    data[start:] = (np.frombuffer(bytes(data[start:]), np.float16) * np.float16(2)).tobytes()
    weights.write_bytes(data)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["model.mlpackage"] = sha256_path(package)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    found = json.loads(command_line("diverge", copied, coreml_set, "--below", 40, "--json", "-")[0])["divergences"]
    assert found
    assert all(f["module"] is not None for f in found)


def test_diverge_refuses_what_it_cannot_compare(coreml_set, copied, artifact, fails, tmp_path):
    text = (copied / "manifest.json").read_text()
    changed = json.loads(text)
    changed["size"] = [16, 14]
    (copied / "manifest.json").write_text(json.dumps(changed))
    fails("diverge", coreml_set, copied, message=r"differ in size: \[16, 16\] and \[16, 14\]")
    fails("diverge", artifact, message="diverge looks into Core ML packages, not onnx")
    fails("diverge", tmp_path, message="is not an art[ei]fact")
    fails("diverge", tmp_path / "absent.mlpackage", message="is not an art[ei]fact")
    fails("diverge", coreml_set / "other.mlpackage", message="is not the package of the artifact")
    fails("diverge", coreml_set, "--input", "nothing", message="inputs are astronaut, .*, not 'nothing'")
    fails("diverge", coreml_set, "--below", "nan", message="--below")
