"""What a user may choose of a build, and what a build says before and after."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sshd_builds import build, error_of
from typer.testing import CliRunner

from ppexport.cli import app
from ppexport.cli.build import runs_on
from ppexport.device.artifact import read_artifact, write_manifest

pytest_plugins = ["sshd_fixtures"]


def test_choices_reach_trtexec_and_the_manifest(device, source, tmp_path):
    device.install_trtexec()
    write_manifest(source, replace(read_artifact(source).manifest, activation_bytes=300 << 20))
    chosen = ("--optimization-level", 2, "--tf32", "--runtime", "tensorrt")
    done = build(source, *device.arguments, "-o", tmp_path / "engine", *chosen)
    arguments = device.lines("arguments")
    assert "--builderOptimizationLevel=2" in arguments
    assert "--noTF32" not in arguments
    engine = read_artifact(tmp_path / "engine").manifest.engine
    assert (engine["tf32"], engine["optimization_level"], engine["runtime"]) == (True, 2, "tensorrt")
    assert "a run's tensors take about 300 MiB of the " in done.stderr
    assert "1 layer, attention is fused: " in done.stdout
    assert json.loads((tmp_path / "engine" / "layers.json").read_text())[0]["LayerType"] == "kgen"


@pytest.mark.slow
def test_tf32_is_off_and_the_level_left_out_by_default(device, source, tmp_path):
    device.install_trtexec()
    build(source, *device.arguments, "-o", tmp_path / "engine")
    assert "--noTF32" in device.lines("arguments")
    assert not [line for line in device.lines("arguments") if line.startswith("--builderOptimizationLevel")]


def test_trtexec_does_not_stand_in_for_rtx(device, source, tmp_path):
    device.install_trtexec()
    done = build(source, *device.arguments, "-o", tmp_path / "engine", "--runtime", "tensorrt_rtx", code=3)
    assert "has no TensorRT-RTX" in error_of(done)
    assert not device.lines("runs")


@pytest.mark.parametrize("choice", [("--optimization-level", 6), ("--optimization-level", -1), ("--runtime", "x")])
def test_choices_that_do_not_exist(source, choice):
    assert CliRunner().invoke(app, ["build", str(source), *map(str, choice)]).exit_code == 2


def test_what_was_built_without_a_gpu_is_for_tests():
    assert runs_on({"gpu": "Orin", "runtime": "tensorrt"}) == "Orin"
    assert runs_on({"gpu": None, "runtime": "tensorrt_rtx"}) == "tests (a Jetson needs its own build, made there)"
    assert runs_on({"gpu": None, "runtime": "tensorrt"}) == "a GPU that did not tell its name"
