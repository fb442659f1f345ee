"""Commands that are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from sshd_profiles import write_enlarger
from typer.testing import CliRunner

from ppexport.cli import app
from ppexport.cli.console import continues_from
from ppexport.imaging.images import photo_folder


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
        while not (begun := (tmp_path / ".out.export").exists()) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert begun, "the export wrote nothing before it ended"
        assert not (tmp_path / "out").exists(), "it was over already"
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in ({130, 1} if number == signal.SIGINT else {128 + number})
    assert b"Traceback" not in errors
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_measurement_that_is_interrupted_says_that_the_same_command_continues(tmp_path):
    journal = tmp_path / "run" / "latency.jsonl"
    command = [sys.executable, "-m", "ppexport", "profile", write_enlarger(tmp_path / "x2"), "-o", tmp_path / "run"]
    with started(command, signal.SIGINT) as process:
        end = time.monotonic() + 120
        while not journal.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.decode() == f"interrupted: the same command continues from what is kept in {journal}\n"


def test_what_is_said_after_an_interruption(tmp_path, capsys):
    kept = tmp_path / "state"
    anew = "interrupted: nothing is kept yet, so the same command begins anew\n"
    for expected in (anew, f"interrupted: the same command continues from what is kept in {kept}\n"):
        with pytest.raises(typer.Exit) as ended, continues_from(kept):
            raise KeyboardInterrupt
        assert ended.value.exit_code == 130
        assert capsys.readouterr().err == expected
        kept.write_text("half of the work")


@pytest.mark.parametrize(
    ("command", "work", "kept"),
    [
        (
            ["calibrate", "--images", "PICTURES", "-o", "c.npz"],
            "ppexport.backends.onnx.collect.calibrate",
            "c.npz.partial",
        ),
        (["compare", "A", "B", "-o", "run"], "ppexport.profile.latency_run.measure", "run/latency.jsonl"),
        (["parity", "A", "-o", "run"], "ppexport.parity.run.run_parity", "run/.unfinished"),
    ],
    ids=["calibrate", "compare", "parity"],
)
@pytest.mark.parametrize("is_kept", [True, False])
def test_only_what_is_kept_continues(tmp_path, monkeypatch, command, work, kept, is_kept):
    def interrupted(*arguments, **options):
        if is_kept:
            Path(kept).parent.mkdir(exist_ok=True)
            Path(kept).write_text("half of the work")
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("A", "B"):
        write_enlarger(tmp_path / name)
    monkeypatch.setattr(work, interrupted)
    monkeypatch.setattr("ppexport.parity.references.reference_network", lambda artifact, checkpoint: None)
    command = [str(photo_folder()) if word == "PICTURES" else word for word in command]
    done = CliRunner().invoke(app, [*command, *(["A"] if command[0] == "calibrate" else [])])
    assert done.exit_code == 130, done.output
    assert ("the same command continues" in done.output) == is_kept
    assert "continues" not in done.output or kept in done.output
