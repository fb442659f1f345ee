"""Commands that are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest


def started(command, number):
    """The process of *command*, which does not ignore signal *number* even where whoever started the tests does."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_export_that_is_told_to_end_leaves_nothing(tmp_path, number):
    command = [sys.executable, "-m", "ppexport", "export", "pp_atd_light_x2", "--size", "16x16", "-o", tmp_path / "out"]
    with started(command, number) as process:
        end = time.monotonic() + 120
        while not (begun := [*tmp_path.iterdir()]) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert begun, "the export wrote nothing before it ended"
        assert not (tmp_path / "out").exists(), "it was over already"
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in ({130, 1} if number == signal.SIGINT else {128 + number})
    assert b"Traceback" not in errors
    assert [*tmp_path.iterdir()] == []
