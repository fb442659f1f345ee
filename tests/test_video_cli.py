"""`ppexport upscale` with videos and raw frames, with a network of one layer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import exported_once
from small_networks import small_network
from test_cli import run as run_command
from video_files import look, make_video, moving

import ppexport
from ppexport.cli.pictures import Opener
from ppexport.cli.upscale_video import Asked, upscale_moving
from ppexport.device.artifact import read_artifact
from ppexport.files import RUN_MODULE
from ppexport.imaging import video_run
from ppexport.imaging.upscaling import Settings, upscale_array
from ppexport.imaging.video_colour import Colours, Converter

pytest.importorskip("av")

COMMAND = [sys.executable, "-c", RUN_MODULE, "ppexport", "upscale"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = small_network()
    return exported_once(tmp_path_factory, network, backend="onnx", size=(32, 48), capacities=[256, 1024, 1536])


def run(*arguments: Any, code: int = 0) -> str:
    done = run_command("upscale", *arguments, code=code)
    return " ".join((done.stdout + done.stderr).split())


def test_a_video_is_the_networks_frame_by_frame(small: Path, tmp_path: Path) -> None:
    frames = [*moving(3), moving(3)[2], moving(3)[2]]
    colours = Colours(1, 1, 1, 1, False)
    source = make_video(tmp_path / "in.mkv", frames, codec="ffv1", format="yuv444p", colours=colours, sound=True)
    out = run(small, source, tmp_path / "out.mkv", "--threads", 1, "--json", tmp_path / "out.json")
    assert "64x48 pixels, 25 frames a second, yuv444p in BT.709, limited range, 4 tiles a frame" in out
    assert "written as yuv444p by ffv1" in out
    assert "5 frames, 128 pixels wide and 96 high" in out
    # Two frames are the one before, and the square moves in the upper tiles only.
    assert "8 tiles run, 12 unchanged (60.00 %)" in out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert (figures["frames"], figures["unchanged"], figures["sr_size"]) == (5, 12, [96, 128])
    seen, before, converter = look(tmp_path / "out.mkv"), look(source), Converter(colours, "yuv444p")
    with ppexport.open_artifact(small, threads=1) as runner:
        for one, other in zip(before.rgb, seen.rgb, strict=True):
            expected = upscale_array(runner, one.astype(np.uint8)).rgb
            again = converter.to_rgb(converter.to_frame(expected))
            np.testing.assert_array_equal(again, other)


def test_a_deadline_that_nothing_meets_is_counted(small: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(3)]
    source = make_video(tmp_path / "in.mkv", noise, codec="ffv1", format="yuv444p")
    out = run(small, source, tmp_path / "out.mkv", "--fps", 10000, "--json", tmp_path / "out.json")
    assert "0 of 3 frames in time for 10000 fps; 3 tiles in 3 frames had fewer slots than impure tokens" in out
    assert json.loads((tmp_path / "out.json").read_text())["frames_over_capacity"] == 3
    out = run(small, source, tmp_path / "out.mkv", "--fps", 0.001)
    assert "3 of 3 frames in time for 0.001 fps; 0 tiles in 0 frames" in out


def test_errors_are_one_sentence(small: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", moving(2))
    picture = tmp_path / "in.png"
    from PIL import Image

    Image.new("RGB", (9, 9)).save(picture)
    for arguments, message in {
        (source, tmp_path / "out.png"): "extension of an enlarged video is one of",
        (picture, tmp_path / "out.mp4"): "in.png is a picture and no video: name a picture to write",
        (source, "-"): "if it is a video, name it and the video to write",
        (picture, tmp_path / "out.png", "--crf", 3): "--codec, --crf and --fps are for videos",
        (source, tmp_path / "out.mp4", "--lossless"): "--codec ffv1 is lossless",
        (source, tmp_path / "out.mp4", "--max-pixels", 99): "has frames of 64x48 = 3,072 pixels, more than the",
        (source, tmp_path / "out.mp4", "--fps", 0): "a deadline is a number of frames a second above 0",
        (source, source): "is the input itself",
        (tmp_path / "none.mp4", tmp_path / "out.mp4"): "none.mp4 cannot be read: No such file",
        (source, tmp_path / "no" / "out.mp4"): "out.mp4 cannot be written: the folder",
        (source, "-o", tmp_path / "d", "--crf", 3): "are for one video: name it and the video to write, without --out",
        ("-", "-", "--raw", "9", "rgb24"): "--raw takes WIDTHxHEIGHT and a format",
        ("-", "-", "--raw", "9x9", "yuv420p"): "--raw takes frames in rgb24 or rgb48le, not 'yuv420p'",
        (source, "-", "--raw", "9x9", "rgb24"): "write - - for IN and OUT",
    }.items():
        assert message in run(small, *arguments, code=2), arguments
    # Not behind what is said of the video, when the model has been opened.
    assert "tiles a frame" not in run(small, source, tmp_path / "out.mp4", "--fps", 0, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "in.png"]


def test_existing_results_are_left_or_refused(small: Path, tmp_path: Path) -> None:
    source, target = make_video(tmp_path / "in.mp4", moving(1)), tmp_path / "out.mp4"
    target.write_bytes(b"old")
    assert "is left as it is" in run(small, source, target, "--existing", "skip")
    assert "exists already" in run(small, source, target, "--existing", "refuse", code=2)
    assert target.read_bytes() == b"old"
    run(small, source, target)
    assert len(look(target).rgb) == 1


def test_ctrl_c_says_what_plays_and_the_same_command_continues(small: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(60)]
    source = make_video(tmp_path / "in.mkv", noise, codec="ffv1", format="yuv444p")
    command = [*COMMAND, str(small), str(source), str(tmp_path / "out.mkv"), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        part = tmp_path / ".out.mkv.part"
        while process.poll() is None and not any(part.glob(".*.body")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    said = " ".join(said.split())
    assert f"interrupted: {tmp_path / 'out.partial.mkv'} plays the first" in said
    assert "and the same command continues" in said
    count = len(look(tmp_path / "out.partial.mkv").rgb)
    assert 0 < count < 60
    out = run(small, source, tmp_path / "out.mkv", "--threads", 1)
    assert "continuing what an earlier run has done" in out
    assert f"60 frames ({count} of them by an earlier run)" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv"]


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("during", ["the header", "opening the model", "the hash", "the first tile"])
def test_ctrl_c_before_the_first_frame_says_that_nothing_was_done(
    small: Path, tmp_path: Path, during: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make_video(tmp_path / "in.mp4", moving(9)), tmp_path / "out.mp4"
    open_it: Any = Opener(partial(ppexport.open_artifact, small, threads=1))
    if during == "the header":
        monkeypatch.setattr(video_run, "read_video", interrupt)
    elif during == "opening the model":
        open_it = interrupt
    elif during == "the hash":
        monkeypatch.setattr(video_run, "sha256_file", interrupt)
    else:
        monkeypatch.setattr(video_run.FrameUpscaler, "run", interrupt)
    with pytest.raises(typer.Exit) as ended:
        upscale_moving(read_artifact(small), open_it, str(source), str(target), Asked(crf=30), Settings(), None, None)
    assert ended.value.exit_code == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(f"interrupted: {target} was not written, and no frame was done")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def test_another_command_than_the_interrupted_one_hears_one_sentence(small: Path, tmp_path: Path) -> None:
    source, target = make_video(tmp_path / "in.mp4", moving(20)), tmp_path / "out.mp4"
    plan = video_run.plan_video(source, target, 2)
    with ppexport.open_artifact(small, threads=1) as runner, pytest.raises(video_run.InterruptedVideo):
        video_run.upscale_video(runner, plan, lambda done, total: interrupt() if done == 9 else None)
    for arguments, other in {
        ("--crf", 30): "--crf (18)",
        ("--codec", "mpeg4"): "--codec (libx264)",
        ("--fps", 9): "--fps",
    }.items():
        out = run(small, source, target, *arguments, code=2)
        assert f"holds unfinished work on {target} with another {other}: run the same command as before" in out
        assert "continu" not in out.replace("to continue it, or remove that folder", "")
        assert out.count("error: ") == 1
    assert "continuing what an earlier run has done" in run(small, source, target)


# Raw frames


def piped(small: Path, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, str(small), "-", "-", "--threads", "1", "--raw", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("format", ["rgb24", "rgb48le"])
def test_raw_frames_go_through_pipes(small: Path, format: str) -> None:
    frames = np.stack(moving(3))
    if format == "rgb48le":
        frames = (frames.astype("<u2") * 257 + 3).astype("<u2")
    done = piped(small, frames.tobytes(), "64x48", format)
    assert done.returncode == 0, done.stderr
    made = np.frombuffer(done.stdout, frames.dtype).reshape(3, 96, 128, 3)
    with ppexport.open_artifact(small, threads=1) as runner:
        for frame, picture in zip(frames, made, strict=True):
            if format == "rgb24":
                np.testing.assert_array_equal(picture, upscale_array(runner, frame).rgb)
            else:
                found = upscale_array(runner, frame.astype(np.float32) / np.float32(65535), depth=16).rgb
                np.testing.assert_array_equal(picture, found)
    assert b"standard output: 3 frames, 128 pixels wide and 96 high" in done.stderr


def test_raw_frames_that_end_early_are_an_error_after_the_whole_ones(small: Path) -> None:
    data = np.stack(moving(3)).tobytes()[:-1]
    done = piped(small, data, "64x48", "rgb24")
    assert done.returncode == 2
    assert len(done.stdout) == 2 * 96 * 128 * 3
    assert b"the input ends inside frame 3, after 9,215 of 9,216 bytes: are its frames 64x48 in rgb24?" in done.stderr
    assert piped(small, b"", "64x48", "rgb24").returncode == 2


@contextmanager
def pipe_of_frames(small: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*COMMAND, str(small), "-", "-", "--threads", "1", "--raw", "64x48", "rgb24"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_frame_comes_out_before_the_next_goes_in_and_ctrl_c_ends_it(small: Path) -> None:
    with pipe_of_frames(small) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(moving(1)[0].tobytes())
        process.stdin.flush()
        assert len(process.stdout.read(96 * 128 * 3)) == 96 * 128 * 3
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130


def test_a_reader_that_leaves_ends_it_with_one_sentence(small: Path) -> None:
    with pipe_of_frames(small) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        try:
            for frame in moving(40):
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass
        assert process.wait(120) == 2
        assert b"closed the pipe after" in process.stderr.read()


def test_nothing_but_frames_comes_out(small: Path) -> None:
    done = piped(small, moving(1)[0].tobytes(), "64x48", "rgb24", "--json", "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert os.linesep.encode() not in done.stdout
