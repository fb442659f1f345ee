"""Videos that are interrupted, continued and joined."""

from __future__ import annotations

import errno
import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_upscale import Repeat
from video_files import look, make_video

from ppexport.device.runner import Result
from ppexport.errors import InputError
from ppexport.folders import held
from ppexport.imaging import video_run, video_segments
from ppexport.imaging.video_encoding import VideoOptions
from ppexport.imaging.video_run import InterruptedVideo, plan_video, unfinished, upscale_video
from ppexport.imaging.video_segments import SegmentWriter, work_folder

pytest.importorskip("av")


def frames(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_video(tmp_path / "in.mkv", frames(20), codec="ffv1", format="yuv444p", sound=True)


def interrupted_at(run: int) -> Repeat:
    runner = Repeat((64, 48))

    def change(number: int, result: Result) -> Result:
        if number == run:
            signal.raise_signal(signal.SIGINT)
        return result

    runner.change = change
    return runner


def test_ctrl_c_leaves_a_playable_file_and_the_same_command_continues(tmp_path: Path, source: Path) -> None:
    upscale_video(Repeat((64, 48)), plan_video(source, tmp_path / "whole.mkv", 2))
    whole = look(tmp_path / "whole.mkv")
    target = tmp_path / "out.mkv"
    # Two tiles a frame.
    with pytest.raises(InterruptedVideo) as stopped:
        upscale_video(interrupted_at(21), plan_video(source, target, 2))
    partial = tmp_path / "out.partial.mkv"
    assert stopped.value.partial == partial
    assert not target.exists()
    seen = look(partial)
    assert 8 <= stopped.value.frames == len(seen.rgb) <= 10
    for one, other in zip(whole.rgb, seen.rgb, strict=False):
        np.testing.assert_array_equal(one, other)
    assert 0 < len(seen.packets[1]) < len(whole.packets[1])
    assert unfinished(target)

    # Again, this time before any frame is done; then to the end.
    with pytest.raises(InterruptedVideo) as again:
        upscale_video(interrupted_at(0), plan_video(source, target, 2))
    assert again.value.frames == stopped.value.frames
    runner = Repeat((64, 48))
    report = upscale_video(runner, plan_video(source, target, 2))
    assert (report.frames, report.resumed) == (20, stopped.value.frames)
    assert len(runner.seen) == 2 * (20 - stopped.value.frames)
    after = look(target)
    assert after.times == whole.times
    assert after.packets == whole.packets
    for one, other in zip(whole.rgb, after.rgb, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv", "whole.mkv"]


def test_what_plays_of_an_interrupted_run_takes_the_name_of_no_other_file(tmp_path: Path, source: Path) -> None:
    # It is the source, even.
    source = source.rename(tmp_path / "out.partial.mkv")
    content, target = source.read_bytes(), tmp_path / "out.mkv"
    for run in (21, 5):
        with pytest.raises(InterruptedVideo) as stopped:
            upscale_video(interrupted_at(run), plan_video(source, target, 2))
        assert stopped.value.partial == tmp_path / "out.partial2.mkv"
    assert upscale_video(Repeat((64, 48)), plan_video(source, target, 2)).frames == 20
    assert source.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mkv", "out.partial.mkv"]


def test_the_list_names_no_other_file_as_its_playable_one(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.mkv"
    with pytest.raises(InterruptedVideo):
        upscale_video(interrupted_at(21), plan_video(source, target, 2))
    path = work_folder(target) / video_segments.WORK
    path.write_text(json.dumps({**json.loads(path.read_text()), "partial": "in.mkv"}))
    upscale_video(Repeat((64, 48)), plan_video(source, target, 2))
    assert source.exists()


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InterruptedVideo) as stopped:
        upscale_video(interrupted_at(0), plan_video(source, tmp_path / "out.mkv", 2))
    assert (stopped.value.partial, stopped.value.frames) == (None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libx265", "mkv"), ("av1", "mp4"), ("vp9", "webm")])
def test_segments_of_codecs_that_reorder_are_joined(
    tmp_path: Path, codec: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_run, "SEGMENT_FRAMES", 7)
    pts = [0, 30, 70, 71, 72, 150, 151, 180, 200, 230, 260, 263, 300, 301, 330, 360, 390, 391, 420, 450]
    y, x = np.mgrid[:48, :64]
    plain = [np.stack([x + 3 * i, y + 2 * i, x + y], axis=2).astype(np.uint8) for i in range(20)]
    source = make_video(tmp_path / "in.mkv", plain, pts=pts, codec="ffv1")
    target = tmp_path / f"out.{suffix}"
    upscale_video(Repeat((64, 48)), plan_video(source, target, 2, VideoOptions(codec=codec)))
    before, after = look(source), look(target)
    assert after.times == before.times
    for one, other in zip(plain, after.rgb, strict=True):
        assert np.abs(one.repeat(2, 0).repeat(2, 1) - other).mean() < 8
    import av

    with av.open(str(target)) as container:
        times = [packet.dts for packet in container.demux(video=0) if packet.dts is not None]
    assert all(early < late for early, late in pairwise(times))


def test_a_killed_run_loses_only_the_segment_that_was_open(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_run, "SEGMENT_FRAMES", 6)
    target = tmp_path / "out.mkv"
    with pytest.raises(InterruptedVideo):
        upscale_video(interrupted_at(33), plan_video(source, target, 2))
    folder = work_folder(target)
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "00000.packets"
    # As if the last segments had been damaged, and a new one begun.
    (folder / names[1]).write_bytes(b"damaged")
    (folder / ".00009.packets.abc.body").write_bytes(b"begun")
    report = upscale_video(Repeat((64, 48)), plan_video(source, target, 2))
    assert (report.frames, report.resumed) == (20, 6)
    assert len(look(target).rgb) == 20
    assert not folder.exists()


def test_another_command_does_not_take_the_work_for_its_own(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.mkv"
    with pytest.raises(InterruptedVideo):
        upscale_video(interrupted_at(21), plan_video(source, target, 2))
    with pytest.raises(InputError, match=r"work on .*out.mkv with another --codec \(ffv1\): run the same"):
        upscale_video(Repeat((64, 48)), plan_video(source, target, 2, VideoOptions(codec="libx264")))
    make_video(source, frames(19), codec="ffv1", format="yuv444p")
    with pytest.raises(InputError, match="with another input"):
        upscale_video(Repeat((64, 48)), plan_video(source, target, 2))


def test_two_processes_do_not_write_one_video(tmp_path: Path, source: Path) -> None:
    plan = plan_video(source, tmp_path / "out.mkv", 2)
    with held(work_folder(plan.target), "tests"), pytest.raises(InputError, match="another process is making"):
        upscale_video(Repeat((64, 48)), plan)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": {}, "partial": null, "segments": [[1]]}', "[" * 9999])
def test_a_list_of_segments_that_cannot_be_read(tmp_path: Path, source: Path, content: str) -> None:
    target = tmp_path / "out.mkv"
    work_folder(target).mkdir()
    (work_folder(target) / "work.json").write_text(content)
    with pytest.raises(InputError, match=r"work.json is (no|not a) list of segments"):
        upscale_video(Repeat((64, 48)), plan_video(source, target, 2))


def test_names_in_the_list_stay_inside_the_folder(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.mkv"
    with pytest.raises(InterruptedVideo):
        upscale_video(interrupted_at(21), plan_video(source, target, 2))
    path = work_folder(target) / "work.json"
    work = json.loads(path.read_text())
    outside = tmp_path / "outside.packets"
    os.rename(work_folder(target) / work["segments"][0][0], outside)
    work["segments"][0][0], work["partial"] = "../outside.packets", "../in.mkv"
    path.write_text(json.dumps(work))
    report = upscale_video(Repeat((64, 48)), plan_video(source, target, 2))
    assert report.resumed == 0
    assert source.exists()
    assert outside.exists()


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_run, "SEGMENT_FRAMES", 6)
    plan, count = plan_video(source, tmp_path / "out.mkv", 2), 0
    packet = SegmentWriter.packet

    def full(self: SegmentWriter, encoded: Any) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        packet(self, encoded)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "packet", full)
        with pytest.raises(InputError, match=r"out.mkv cannot be made: No space left on device \(the disk at"):
            upscale_video(Repeat((64, 48)), plan)
    assert sorted(path.name for path in work_folder(plan.target).iterdir()) == ["00000.packets", "work.json"]
    report = upscale_video(Repeat((64, 48)), plan)
    assert (report.frames, report.resumed) == (20, 6)


def test_a_disk_that_is_full_at_the_end_keeps_what_is_done(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_video(source, tmp_path / "out.mkv", 2)

    def full(*_: Any, **__: Any) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(video_run, "join", full)
        with pytest.raises(InputError, match="the disk is full"):
            upscale_video(Repeat((64, 48)), plan)
    assert not plan.target.exists()
    runner = Repeat((64, 48))
    assert upscale_video(runner, plan).resumed == 20
    assert not runner.seen


def test_a_work_folder_that_is_a_link_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    work_folder(tmp_path / "out.mkv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link, where ppexport keeps what is unfinished"):
        upscale_video(Repeat((64, 48)), plan_video(source, tmp_path / "out.mkv", 2))
    assert video_segments.WORK not in os.listdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("missing", [10**9, 20])
def test_the_last_bytes_that_do_not_fit_are_noticed(
    tmp_path: Path, source: Path, suffix: str, missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    options = VideoOptions(codec="libx264")
    upscale_video(Repeat((64, 48)), plan_video(source, tmp_path / f"whole.{suffix}", 2, options))
    plan = plan_video(source, tmp_path / f"out.{suffix}", 2, options)
    most = max((tmp_path / f"whole.{suffix}").stat().st_size - missing, 100)
    join, before = video_run.join, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            return join(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    # Without a handler the kernel ends a process that writes beyond the limit.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(video_run, "join", limited)
            with pytest.raises(InputError, match=rf"out.{suffix} cannot be written: File too large"):
                upscale_video(Repeat((64, 48)), plan)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert not plan.target.exists()
    assert upscale_video(Repeat((64, 48)), plan).resumed == 20
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
