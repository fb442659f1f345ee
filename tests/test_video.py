"""Videos in and out: streams, times, colours, formats, and files that cannot be used."""

from __future__ import annotations

import os
import re
import sys
import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from test_upscale import Repeat
from video_files import BT601, BT709, BT2020, chart, look, make_video, moving

from ppexport.errors import InputError
from ppexport.imaging.video import is_video, read_video
from ppexport.imaging.video_encoding import VideoOptions
from ppexport.imaging.video_joining import decoding_times
from ppexport.imaging.video_run import VideoReport, plan_video, upscale_video

av = pytest.importorskip("av")


def upscale(source: Path, target: Path, scale: int = 2, **options: Any) -> VideoReport:
    runner = Repeat((64, 48), scale)
    return upscale_video(runner, plan_video(source, target, scale, VideoOptions(**options)))


def enlarged(rgb: np.ndarray, scale: int = 2) -> np.ndarray:
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


# Streams


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_every_frame_and_the_sound_come_out(tmp_path: Path, suffix: str) -> None:
    frames = moving(20)
    source = make_video(tmp_path / f"in.{suffix}", frames, sound=True, aspect=Fraction(4, 3), rotation=90)
    report = upscale(source, tmp_path / f"out.{suffix}", crf=0)
    before, after = look(source), look(tmp_path / f"out.{suffix}")
    assert report.frames == len(after.rgb) == 20
    assert after.times == before.times
    assert after.packets == before.packets
    assert [kind for kind, _ in after.kinds] == ["video", "audio"]
    assert (after.aspect, after.rotation, after.codec) == (Fraction(4, 3), 90, "h264")
    for one, other in zip(before.rgb, after.rgb, strict=True):
        assert one.shape == (48, 64, 3)
        inner = np.abs(enlarged(one).astype(int) - other)
        # Chroma was halved again, and a yellow square has sharp edges.
        assert np.median(inner) <= 1
        assert inner.mean() < 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in.{suffix}", f"out.{suffix}"])


def test_what_the_container_cannot_hold_is_named(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(3), sound=True, attachment=True)
    plan = plan_video(source, tmp_path / "out.mp4", 2)
    assert plan.notes == ("stream 2 (attachment, font.ttf) is left out: mp4 does not hold it",)
    upscale_video(Repeat(), plan)
    assert [kind for kind, _ in look(tmp_path / "out.mp4").kinds] == ["video", "audio"]
    upscale(source, tmp_path / "out.mkv")
    assert look(tmp_path / "out.mkv").kinds[2] == ("attachment", "font.ttf")


def test_subtitles_languages_tags_and_chapters_are_kept(tmp_path: Path) -> None:
    source, plain = tmp_path / "in.mkv", make_video(tmp_path / "plain.mkv", moving(10))
    (tmp_path / "words.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nHello\n\n")
    with av.open(str(plain)) as video, av.open(str(tmp_path / "words.srt")) as words, av.open(str(source), "w") as out:
        pictures = out.add_stream_from_template(video.streams.video[0], opaque=True)
        text = out.add_stream_from_template(words.streams.subtitles[0], opaque=True)
        text.metadata["language"] = "fra"
        out.metadata["title"] = "A title"
        out.set_chapters(
            [{"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
        )
        for stream, container in ((pictures, video), (text, words)):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    upscale(source, tmp_path / "out.mkv")
    before, after = look(source), look(tmp_path / "out.mkv")
    assert after.kinds == before.kinds
    assert [kind for kind, _ in after.kinds] == ["video", "subtitle"]
    assert after.packets == before.packets
    assert after.languages[1] == "fra"
    assert after.metadata["title"] == "A title"
    assert [chapter["metadata"] for chapter in after.chapters] == [{"title": "One"}]
    (note,) = plan_video(source, tmp_path / "out.mp4", 2).notes
    assert re.fullmatch(r"stream 1 \(subtitles, (srt|subrip)\) is left out: mp4 does not hold it", note)


def test_a_variable_frame_rate_stays_as_it_is(tmp_path: Path) -> None:
    pts = [0, 3000, 3001, 9000, 20000, 20500, 21000, 50000, 50001, 60000, 61000, 61500]
    frames = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(len(pts))]
    source = make_video(tmp_path / "in.mp4", frames, pts=pts, time_base=Fraction(1, 90000), options={"crf": "30"})
    upscale(source, tmp_path / "out.mp4", crf=40)
    before, after = look(source), look(tmp_path / "out.mp4")
    assert before.times == [Fraction(at, 90000) for at in pts]
    assert after.times == before.times
    # An encoder that takes no such time base.
    upscale(source, tmp_path / "other.mp4", codec="mpeg4")
    assert look(tmp_path / "other.mp4").times == before.times


def test_decoding_times_ascend_and_never_follow_the_picture() -> None:
    order, pts = [0, 4, 2, 1, 3, 8, 6, 5, 7, 9], [7, 20, 21, 22, 60, 61, 200, 201, 300, 301]
    ends = [*pts[1:], 310]
    times = decoding_times(order, pts, ends)
    assert all(early < late for early, late in pairwise(times))
    assert all(time <= pts[index] for time, index in zip(times, order, strict=True))
    assert times[-1] + ends[order[-1]] - pts[order[-1]] - times[0] == 310 - 7
    assert decoding_times([0, 1, 2], [5, 6, 9], [6, 9, 10]) == [5, 6, 9]


# Colours


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("colours", [BT601, BT709, BT2020])
@pytest.mark.parametrize("format", ["yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_colours_come_back(tmp_path: Path, colours: Any, full: bool, format: str) -> None:
    colours = colours._replace(range=2 if full else 1)
    levels = chart() if "10" not in format else chart().astype(np.uint16) * 257
    source = make_video(tmp_path / "in.mkv", [levels], codec="ffv1", format=format, colours=colours)
    runner = Repeat((64, 128))
    upscale_video(runner, plan_video(source, tmp_path / "out.mkv", 2))
    # The network sees the chart's colours.
    seen = runner.seen[0][0].transpose(1, 2, 0) * 255
    deep, wide = "10" in format, "420" not in format
    inside = [np.s_[4:28, 16 * i + 5 : 16 * i + 11] for i in range(8)]
    for place in inside:
        assert np.abs(seen[place] - chart()[place]).max() <= (1.0 if deep else 2.0 + (not wide))
    assert np.abs(seen[36:60] - chart()[36:60]).max() <= (0.6 if deep and wide else 2)
    before, after = look(source), look(tmp_path / "out.mkv")
    assert after.format == before.format == format
    assert after.colours == before.colours == tuple(colours[:4])
    # And the samples of the result are those of the source.
    unit = 4 if deep else 1
    for place in inside:
        rows, columns = place
        large = np.s_[2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop]
        assert np.abs(enlarged(before.rgb[0])[large] - after.rgb[0][large]).max() <= 3 / (unit if wide else 1)


def test_ten_bits_are_ten_bits_in_between(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 65535, 128).round().astype(np.uint16)[None, :, None], (64, 128, 3))
    source = make_video(tmp_path / "in.mkv", [ramp], codec="ffv1", format="yuv444p10le", colours=BT709)
    runner = Repeat((64, 128))
    upscale_video(runner, plan_video(source, tmp_path / "out.mp4", 2, VideoOptions(codec="libx265", crf=0)))
    assert len(np.unique(runner.seen[0][0, 1])) == 128
    after = look(tmp_path / "out.mp4")
    assert after.format == "yuv444p10le"
    assert np.abs(after.rgb[0][::2, ::2, 1] / 255 - ramp[..., 1] / 65535).max() < 2 / 876


@pytest.mark.parametrize(("height", "matrix"), [(480, 6), (720, 1)])
def test_a_video_without_tags_is_what_players_guess_and_the_result_says_so(
    tmp_path: Path, height: int, matrix: int
) -> None:
    frame = np.full((height, 16, 3), (200, 40, 90), np.uint8)
    colours = (BT601 if matrix == 6 else BT709)._replace(transfer=2)
    source = make_video(tmp_path / "in.mkv", [frame], codec="ffv1", format="yuv444p", colours=colours, tagged=False)
    assert look(source).colours[0] == 2
    upscale(source, tmp_path / "out.mkv")
    after = look(tmp_path / "out.mkv")
    assert after.colours[:2] == (matrix, 1)
    assert np.abs(after.rgb[0].astype(int) - (200, 40, 90)).max() <= 2


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("format", "kept"), [("gray", "yuv420p"), ("gray10le", "yuv420p10le")])
def test_grey_stays_grey(tmp_path: Path, format: str, kept: str, full: bool) -> None:
    bits = 10 if "10" in format else 8
    low, high = (0, (1 << bits) - 1) if full else (16 << (bits - 8), 235 << (bits - 8))
    ramp = np.broadcast_to(np.linspace(low, high, 64).round(), (48, 64))
    kind = np.uint8 if bits == 8 else np.uint16
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        stream = out.add_stream("ffv1", rate=25, width=64, height=48)
        stream.pix_fmt, stream.codec_context.color_range = format, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(ramp.astype(kind), format=format)
        frame.color_range = 2 if full else 1
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    runner = Repeat((48, 64))
    plan = plan_video(tmp_path / "in.mkv", tmp_path / "out.mp4", 2, VideoOptions(codec="libx264", crf=0))
    assert plan.video.colours.grey
    upscale_video(runner, plan)
    expected = (ramp - low) / (high - low)
    assert np.abs(runner.seen[0][0] - expected).max() <= (0.6 / 255 if bits == 8 else 0.6 / 1023)
    after = look(tmp_path / "out.mp4")
    assert after.format.replace("j", "") == kept
    assert np.ptp(after.rgb[0], axis=2).max() < 0.01
    assert np.abs(after.rgb[0][..., 0] - 255 * enlarged(expected)).max() <= (1.2 if bits == 8 else 0.5)


def test_rgb_stays_rgb_where_it_can(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(2), codec="ffv1", format="bgr0", colours=BT709._replace(matrix=0))
    upscale(source, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        got = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for one, other in zip(moving(2), got, strict=True):
        np.testing.assert_array_equal(enlarged(one), other)
    plan = plan_video(source, tmp_path / "out.mp4", 2, VideoOptions(codec="libx264"))
    assert plan.encoding.format == "yuv420p"
    assert "RGB and yuv420p is written, in BT.709, which players show: .mkv keeps colours finer" in plan.notes[0]


@pytest.mark.parametrize(
    ("suffix", "options", "format", "note"),
    [
        (
            "mp4",
            {},
            "yuv420p",
            "in BT.709, which players show: .mkv keeps colours finer, and with --codec ffv1 exactly",
        ),
        ("webm", {}, "yuv420p", "in BT.709, which players show"),
        ("mov", {"codec": "prores"}, "yuv444p10le", "in BT.709, which some players do not show"),
        ("mkv", {}, "yuv444p", "some players do not show: a result in .mp4 or .webm is 4:2:0, which they do"),
        ("mkv", {"codec": "vp9"}, "gbrp", "which few players show: name a result in .mp4 or .webm"),
        ("mkv", {"codec": "ffv1"}, "bgr0", ""),
    ],
)
def test_rgb_becomes_what_players_show_unless_asked(
    tmp_path: Path, suffix: str, options: dict[str, Any], format: str, note: str
) -> None:
    source = make_animation(tmp_path / "in.gif")
    plan = plan_video(source, tmp_path / f"out.{suffix}", 2, VideoOptions(**options))
    assert plan.encoding.format == format
    assert [note in said for said in plan.notes] == ([True] if note else [])


@pytest.mark.parametrize(
    ("name", "format", "seen_through"),
    [("in.gif", "bgra", None), ("in.gif", "bgra", 0), ("in.png", "rgba", None), ("in.png", "rgba", 2)],
)
def test_transparency_is_named_only_where_there_is_some(
    tmp_path: Path, name: str, format: str, seen_through: int | None
) -> None:
    source = make_animation(tmp_path / name, seen_through)
    assert read_video(source).format == format
    plan = plan_video(source, tmp_path / "out.mkv", 2, VideoOptions(codec="ffv1"))
    sentence = ("its transparency is not kept",)
    assert plan.notes == (sentence if seen_through == 0 else ())
    report = upscale_video(Repeat((64, 48)), plan)
    assert report.notes == (sentence if seen_through == 2 else ())
    assert not report.damage


# Codecs


def make_animation(path: Path, seen_through: int | None = None) -> Path:
    """Four frames, one of which is transparent in a corner."""
    frames = [Image.new("RGBA", (40, 30), (60 * i, 0, 200, 255)) for i in range(4)]
    if seen_through is not None:
        frames[seen_through].paste((0, 0, 0, 0), (0, 0, 9, 9))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)
    return path


@pytest.mark.parametrize(
    ("codec", "suffix", "name"),
    [("libx265", "mp4", "hevc"), ("av1", "webm", "av1"), ("vp9", "webm", "vp9"), ("ffv1", "mkv", "ffv1"),
     ("prores", "mov", "prores"), ("mpeg4", "mp4", "mpeg4")],
)  # fmt: skip
def test_every_codec_writes_what_plays(tmp_path: Path, codec: str, suffix: str, name: str) -> None:
    source = make_video(tmp_path / "in.mp4", moving(9))
    upscale(source, tmp_path / f"out.{suffix}", codec=codec)
    after = look(tmp_path / f"out.{suffix}")
    assert (after.codec, len(after.rgb)) == (name, 9)
    assert [round(1000 * at) for at in after.times] == [40 * i for i in range(9)]
    assert np.abs(after.rgb[4].astype(int) - enlarged(moving(9)[4])).mean() < 6


@pytest.mark.skipif(sys.platform != "linux", reason="the scheduling of threads is read as Linux tells it")
def test_an_encoder_leaves_the_machine_to_others(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", moving(1))

    def scheduling() -> dict[int, tuple[int, int]]:
        threads = map(int, os.listdir("/proc/self/task"))
        return {t: (os.sched_getscheduler(t), os.sched_getparam(t).sched_priority) for t in threads}

    before = scheduling()
    context = plan_video(source, tmp_path / "out.webm", 2, VideoOptions(codec="av1")).encoding.open()
    during = scheduling()
    assert len(during) > len(before)
    assert set(during.values()) == {before[threading.get_native_id()]}
    context.encode(None)


def test_the_codec_of_the_source_is_kept(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(2), codec="libx265")
    assert plan_video(source, tmp_path / "out.mkv", 2).encoding.encoder == "libx265"
    assert plan_video(source, tmp_path / "out.webm", 2).encoding.encoder == "libvpx-vp9"


def test_odd_sizes_take_finer_chroma_or_are_refused(tmp_path: Path) -> None:
    frame = moving(1, 47, 63)[0]
    source = make_video(tmp_path / "in.mkv", [frame], codec="ffv1", format="yuv420p")
    plan = plan_video(source, tmp_path / "out.mkv", 3, VideoOptions(codec="libx264"))
    assert plan.encoding.format == "yuv444p"
    assert "whose chroma needs even sides" in plan.notes[0]
    upscale(source, tmp_path / "out.mkv", 3, codec="libx264", crf=0)
    assert look(tmp_path / "out.mkv").rgb[0].shape == (141, 189, 3)
    with pytest.raises(InputError, match="mpeg4 has no pixel format for 189x141 pixels"):
        plan_video(source, tmp_path / "out.mkv", 3, VideoOptions(codec="mpeg4"))


@pytest.mark.parametrize(
    ("options", "suffix", "message"),
    [
        ({"codec": "divx"}, ".mkv", "--codec divx is not one that can be encoded here: libx264, libx265"),
        ({"codec": "ffv1"}, ".mp4", ".mp4 holds no ffv1 here, but libx264, .*; .mkv holds every codec"),
        ({"crf": 99}, ".mp4", r"--crf of libx264 goes from 0 \(best\) to 51, not 99; 18 if left out"),
        ({"crf": 3, "codec": "ffv1"}, ".mkv", "ffv1 takes no --crf: it is lossless"),
        ({}, ".avi", "the extension of an enlarged video is one of .mp4, .m4v, .mov, .mkv, .webm"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], suffix: str, message: str) -> None:
    source = make_video(tmp_path / "in.mp4", moving(1))
    with pytest.raises(InputError, match=message):
        plan_video(source, tmp_path / f"out{suffix}", 2, VideoOptions(**options))


# Bad input


def test_videos_are_recognised_by_content(tmp_path: Path) -> None:
    make_video(tmp_path / "in.mp4", moving(2)).rename(tmp_path / "in.png")
    assert is_video(tmp_path / "in.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "still.mp4", format="PNG")
    frames = [Image.new("RGB", (9, 9), (i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    if features.check("avif"):
        # FFmpeg reads it as it does an MP4.
        frames[0].save(tmp_path / "still.avif")
        frames[0].save(tmp_path / "moving.avif", save_all=True, append_images=frames[1:])
        assert not is_video(tmp_path / "still.avif")
        assert not is_video(tmp_path / "moving.avif")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'in.png'}\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'in.png'}\n")
    for name in ("still.mp4", "moving.gif", "text.mp4", "list.mp4", "list.m3u8", "none"):
        assert not is_video(tmp_path / name), name
    # It may become a video, though.
    assert read_video(tmp_path / "moving.gif").frames == 3


def sound_alone(path: Path) -> Path:
    from video_files import add_sound

    with av.open(str(path), "w") as out:
        add_sound(out, out.add_stream("aac", rate=48000), 9000)
    return path


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    whole = make_video(tmp_path / "in.mp4", moving(9))
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:900])
    sound_alone(tmp_path / "sound.mp4")
    (tmp_path / "concat:in.mp4").write_text("x")
    reasons = {
        "none.mp4": "cannot be read: No such file",
        "empty.mp4": "is empty",
        ".": "is a folder",
        "text.mp4": "is no video, or it is damaged or cut off",
        "cut.mp4": "is no video, or it is damaged or cut off",
        "picture.png": "is a picture and no video: name a picture to write, such as a .png",
        "concat:in.mp4": "is no video, or it is damaged or cut off",
        "sound.mp4": "has no video stream, only audio",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            plan_video(tmp_path / name, tmp_path / "out.mp4", 2)
    assert not (tmp_path / "out.mp4").exists()


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", moving(2))
    (tmp_path / "link.mp4").symlink_to(source)
    for target, reason in (
        ("in.mp4", "is the input itself, which is never replaced"),
        ("link.mp4", "is the input itself"),
        ("none/out.mp4", "cannot be written: the folder .*none does not exist"),
    ):
        with pytest.raises(InputError, match=reason):
            plan_video(source, tmp_path / target, 2)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        plan_video(source, tmp_path / "folder.mp4", 2)


def test_a_size_that_changes_is_an_error(tmp_path: Path) -> None:
    parts = [make_video(tmp_path / f"{h}.h264", moving(3, h, 64)) for h in (48, 64)]
    (tmp_path / "in.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(InputError, match="changes its size from 64x48 to 64x64 at frame 3: split it there"):
        upscale(tmp_path / "in.h264", tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").exists()


def with_timecode(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, width=64, height=48)
        stream.pix_fmt, stream.metadata["timecode"] = "yuv420p", "01:00:00:00"
        for i, levels in enumerate(moving(4)):
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mov", "mp4", "mkv"])
def test_the_clock_of_a_camera_is_kept_once(tmp_path: Path, suffix: str) -> None:
    source = with_timecode(tmp_path / "in.mov")
    assert [kind for kind, _ in look(source).kinds] == ["video", "data"]
    assert plan_video(source, tmp_path / f"out.{suffix}", 2).notes == ()
    assert not upscale(source, tmp_path / f"out.{suffix}").damage
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        tags = {name.lower(): value for name, value in container.streams.video[0].metadata.items()}
        assert tags["timecode"] == "01:00:00:00"
        assert len(container.streams) == (1 if suffix == "mkv" else 2)


def test_a_stream_whose_packets_the_container_refuses_is_left_out_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_timecode(tmp_path / "in.mov")
    # As it was before: a second clock, which the muxer takes, and refuses at its end.
    monkeypatch.setattr("ppexport.imaging.video_joining._is_timecode", lambda stream: False)
    (sentence,) = upscale(source, tmp_path / "out.mov").damage
    assert "the source's other streams, but for sound and subtitles, were left out (" in sentence
    assert len(look(tmp_path / "out.mov").rgb) == 4


def test_an_animated_picture_may_become_a_video(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 30), (60 * i, 0, 200)) for i in range(4)]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:], duration=[100, 200, 50, 70])
    upscale(tmp_path / "in.gif", tmp_path / "out.mp4")
    after = look(tmp_path / "out.mp4")
    assert [round(1000 * at) for at in after.times] == [0, 100, 300, 350]
    assert np.abs(after.rgb[2] - (120, 0, 200)).max() <= 6


def test_a_cover_is_a_stream_of_its_own(tmp_path: Path) -> None:
    source, plain = tmp_path / "in.mp4", make_video(tmp_path / "plain.mp4", moving(3))
    with av.open(str(plain)) as video, av.open(str(source), "w") as out:
        cover = out.add_stream("mjpeg", rate=1, width=40, height=30)
        cover.pix_fmt, cover.disposition = "yuvj420p", int(av.stream.Disposition.attached_pic)
        pictures = out.add_stream_from_template(video.streams.video[0], opaque=True)
        still = av.VideoFrame.from_ndarray(moving(1, 30, 40)[0], format="rgb24").reformat(format="yuvj420p")
        still.pts = 0
        out.mux(cover.encode(still))
        out.mux(cover.encode(None))
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                out.mux(packet)
    assert read_video(source).size == (48, 64)
    upscale(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        covers = [bool(s.disposition & av.stream.Disposition.attached_pic) for s in container.streams.video]
        assert sorted(covers) == [False, True]
        assert len(list(container.decode(container.streams.video[covers.index(False)]))) == 3
