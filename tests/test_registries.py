"""A network and a backend of another package: exported, proven and timed without a change in this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"
SIZE = "18x14"


def run(*arguments, code=0):
    """`ppexport` with the toy installed."""
    path = os.pathsep.join(filter(None, (str(TOY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "ppexport", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    save_file({"conv.weight": torch.randn(12, 3, 3, 3) * 0.2, "conv.bias": torch.rand(12)}, path)
    return path


@pytest.fixture(scope="module")
def exported(weights):
    out = weights.parent / "artifact"
    toy = ("--arch", "toy", "--scale", 2, "--checkpoint", weights)
    run("export", *toy, "--backend", "toy", "-O", "order=F", "--precision", "fp16", "--size", SIZE, "-o", out)
    return out


def test_both_are_listed():
    listed = json.loads(run("backends", "--json", "-").stdout)
    (toy,) = (backend for backend in listed if backend["name"] == "toy")
    assert toy["precisions"] == ["fp32", "fp16"]
    assert toy["options"] == {"order": "C or F [default: C]: memory layout of the weights"}
    assert toy["runtimes"] == ["toynumpy:CPU"]
    assert " toy " in run("export", "--help").stdout
    assert "toy" in {a["name"] for a in json.loads(run("models", "--json", "-").stdout)["architectures"]}


def test_an_artifact_of_both(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert (manifest["backend"], manifest["arch"], manifest["build"]) == ("toy", "toy", {"order": "F"})
    assert (manifest["capacities"], manifest["mask"], manifest["tokens"]) == ([], "none", 20 * 16)


def test_parity_proves_it(exported, weights):
    done = run("parity", exported, "--checkpoint", weights, "-o", exported.parent / "run", "--json", "-")
    pairs = json.loads(done.stdout)["pairs"]
    assert [pair["passed"] for pair in pairs] == [True, True]
    assert all(row["flips"] is None for row in pairs[1]["rows"])


def test_parity_refuses_a_wrong_one(exported, weights, tmp_path):
    import numpy as np

    from ppexport.files import sha256_file

    with np.load(exported / "model.npz") as stored:
        arrays = dict(stored)
    arrays["weight"][0, 0, 0, 0] += 0.5
    for name in ("manifest.json", "model.npz"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    np.savez(tmp_path / "model.npz", **arrays)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"] = {"model.npz": sha256_file(tmp_path / "model.npz")}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    run("parity", tmp_path, "--checkpoint", weights, "-o", tmp_path / "run", code=1)


def test_profile_times_it(exported):
    folder = exported.parent / "profile"
    run("profile", exported, "--quick", "-o", folder)
    (subject,) = json.loads((folder / "profile.json").read_text())["subjects"]
    assert (subject["runtime"], subject["backend"]) == ("toynumpy", "toy")
    assert subject["summary"]["count"] >= 64


def test_the_toy_network_in_another_backend(weights):
    out = weights.parent / "onnx"
    toy = ("--arch", "toy", "--scale", 2, "--checkpoint", weights)
    run("export", *toy, "--backend", "onnx", "--size", SIZE, "-o", out)
    run("parity", out, "--checkpoint", weights, "-o", weights.parent / "onnx-run")


def test_an_option_says_where_it_belongs(weights, tmp_path):
    toy = ("--arch", "toy", "--scale", 2, "--checkpoint", weights, "--size", SIZE, "-o", tmp_path / "a")
    done = run("export", *toy, "--backend", "onnx", "-O", "order=F", code=2)
    assert "order is an option of --backend toy, not of onnx" in done.stderr
    done = run("export", *toy, "--backend", "toy", "-O", "colour=F", code=2)
    assert "no backend has an option 'colour'; those of toy: order" in done.stderr
    done = run("export", *toy, "--backend", "toy", "-O", "order=Z", code=2)
    assert "order of --backend toy is one of C, F, not 'Z'" in done.stderr


def test_an_entry_point_that_cannot_be_loaded(tmp_path):
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[ppexport.backends]\nbroken = nowhere:BACKEND\n")
    done = subprocess.run(
        [sys.executable, "-m", "ppexport", "backends"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 3
    assert "the entry point 'broken' of ppexport.backends cannot be loaded from nowhere:BACKEND" in done.stderr
