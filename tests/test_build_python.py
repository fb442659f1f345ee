"""`ppexport build` through TensorRT's Python API on a device: the real `run_builder`, with a stand-in module."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from sshd import wait_until
from sshd_builds import Told, build, error_of

from ppexport.device.artifact import read_artifact
from ppexport.remote.address import ConnectionLost, TransferError

pytest_plugins = ["sshd_fixtures"]

STAND_IN = Path(__file__).with_name("sshd_tensorrt.py")


@pytest.fixture
def board(device):
    """A device with the Python module, and with a trtexec that nobody should ask."""
    shutil.copyfile(STAND_IN, device.modules / "tensorrt.py")
    device.install_trtexec()
    return device


def test_a_build(board, source, tmp_path):
    out = tmp_path / "engine"
    build(source, *board.arguments, "-o", out)
    assert (out / "model.engine").read_text() == "engine with 2 profiles"
    engine = read_artifact(out).manifest.engine
    assert (engine["runtime"], engine["tensorrt"], engine["profiles"]) == ("tensorrt", "10.3.0", [2048, 4096])
    assert json.loads((out / "device.json").read_text())["machine"] == os.uname().machine
    assert board.lines("arguments") == []
    assert board.jobs() == []


def test_a_connection_that_breaks(board, source, tmp_path):
    board.steer("hold")
    told = Told(board, source)
    with pytest.raises(ConnectionLost, match="run the same command again"):
        told.run(tmp_path / "engine", timeout=0.5)
    board.go_away()
    board.steer("hold", False)
    board.start()
    build(source, *board.arguments, "-o", tmp_path / "engine")
    assert board.lines("runs") == ["run"]


@pytest.mark.slow
def test_a_model_that_the_parser_refuses(board, source, tmp_path):
    board.steer("refuse")
    done = build(source, *board.arguments, "-o", tmp_path / "engine", code=1)
    assert "MatMul in module layers.0.attn: no importer" in error_of(done)


@pytest.mark.slow
def test_a_failed_build(board, source, tmp_path):
    board.steer("fail")
    done = build(source, *board.arguments, "-o", tmp_path / "engine", code=1)
    assert "no kernel for /layers.0/attn/MatMul" in error_of(done)
    assert "error: no kernel" in (tmp_path / "engine-build.log").read_text()


def test_a_result_that_lies(board, source, tmp_path):
    board.steer("hold")
    out = tmp_path / "engine"
    with pytest.raises(ConnectionLost):
        Told(board, source).run(out, timeout=0.5)
    job = board.jobs()[0]
    board.steer("hold", False)
    wait_until((job / "exit.0").exists)
    result = json.loads((job / "outcome.json").read_text())
    for change, message in (
        ({"engine_sha256": "0" * 64}, "not the one"),
        ({"id": "0" * 64}, "that of another request"),
    ):
        (job / "outcome.json").write_text(json.dumps({**result, **change}))
        with pytest.raises(TransferError, match=message):
            Told(board, source).run(out)
    assert not out.exists()
    (job / "outcome.json").write_text(json.dumps({**result, "gpu": "\x1b[31mOrin"}))
    Told(board, source).run(out)
    assert read_artifact(out).manifest.engine["gpu"] == "Orin"


@pytest.mark.slow
def test_a_module_without_libraries_is_no_tensorrt(board, source, tmp_path):
    (board.modules / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')\n")
    build(source, *board.arguments, "-o", tmp_path / "engine")
    assert board.lines("arguments") != []
