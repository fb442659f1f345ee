"""The number of a runtime's threads, wherever it is given."""

from __future__ import annotations

import os

import numpy as np
import pytest
from typer.testing import CliRunner

import ppexport
from ppexport.backends.onnx.run_onnxruntime import make_session
from ppexport.backends.openvino.run_openvino import Session
from ppexport.cli import app
from ppexport.device.runner import check_threads
from ppexport.device.target import Target, choose, open_target
from ppexport.errors import InputError
from ppexport.search.trials import RUNTIMES

MOST = 4 * (os.cpu_count() or 1)
WRONG = [0, -1, "2", 1.5, True, np.bool_(True), MOST + 1, 5000, 100_000]
wrong = pytest.mark.parametrize("threads", WRONG, ids=repr)


def test_what_can_be_used():
    assert [check_threads(n) for n in (None, 1, MOST, np.int64(1))] == [None, 1, MOST, 1]


@wrong
def test_no_place_of_the_api_takes_another_number(artifact, threads):
    model = (artifact / "model.onnx").read_bytes()
    for use in (
        lambda: ppexport.open_artifact(artifact, threads=threads),
        lambda: make_session(model, "a test", threads),
        lambda: Session(model, "a test", threads=threads),
        lambda: RUNTIMES["onnxruntime"](artifact / "model.onnx", threads),
        lambda: RUNTIMES["openvino"](artifact / "model.onnx", threads),
        lambda: open_target(choose(artifact, None, threads, False)[0]),
    ):
        with pytest.raises(InputError, match="threads"):
            use()


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, True])
def test_a_target_for_another_machine_takes_a_number_of_its_cores_alone(threads):
    assert Target("a", "onnxruntime", "CPU", 5000).threads == 5000
    with pytest.raises(InputError, match="threads are a whole number from 1"):
        Target("a", "onnxruntime", "CPU", threads)


@pytest.mark.parametrize("threads", ["0", "-1", str(MOST + 1), "5000"])
def test_no_command_takes_another_number(artifact, tmp_path, threads):
    (tmp_path / "pictures").mkdir()
    out = str(tmp_path / "out")
    for command in (
        ["upscale", str(artifact), "in.png", "out.png"],
        ["profile", str(artifact), "-o", out],
        ["profile", str(artifact), "--runtime", "openvino", "-o", out],
        ["compare", str(artifact), str(artifact), "-o", out],
        ["quantize-search", "pp_atd_light_x2", "--images", str(tmp_path / "pictures"), "-o", out],
    ):
        done = CliRunner().invoke(app, [*command, "--threads", threads])
        assert isinstance(done.exception, InputError), (command, done.output)
        assert "threads" in str(done.exception)
    assert not (tmp_path / "out").exists()
