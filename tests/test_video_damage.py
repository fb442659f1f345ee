"""Videos that are cut off or damaged, and sound ones that could be taken for such."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_video import upscale
from video_files import look, make_video, moving

from ppexport.imaging.video import frames_of, read_video
from ppexport.imaging.video_damage import Damage

av = pytest.importorskip("av")


def read(path: Path) -> tuple[int, str]:
    """The number of frames of *path*, and what is damaged."""
    damage = Damage()
    return len(list(frames_of(read_video(path), damage))), damage.sentence


def noisy(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.clip(one + rng.integers(-20, 20, one.shape), 0, 255).astype(np.uint8) for one in moving(count)]


def remuxed(source: Path, target: Path, shift: int = 0, options: dict[str, str] | None = None) -> Path:
    """*target* with the packets of *source*, *shift* units of time later."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=options or {}) as out:
        made = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, made
                out.mux(packet)
    return target


# Damage


def test_a_cut_off_video_is_enlarged_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(75)]
    whole = make_video(tmp_path / "whole.mkv", frames, options={"g": "5"})
    cut = tmp_path / "in.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    report = upscale(cut, tmp_path / "out.mkv", crf=40)
    assert 25 < report.frames < 50
    assert len(look(tmp_path / "out.mkv").rgb) == report.frames
    assert any("is cut off: it ends after 1." in sentence for sentence in report.damage)


def test_damage_in_the_middle_is_reported_and_the_rest_comes_out(tmp_path: Path) -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(30)]
    source = make_video(tmp_path / "in.mkv", frames, codec="ffv1", format="yuv420p")
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    for number in (10, 11):
        position, size = packets[number]
        data[position + 40 : position + size] = os.urandom(size - 40)
    source.write_bytes(data)
    report = upscale(source, tmp_path / "out.mkv")
    assert report.frames >= 28
    (sentence,) = report.damage
    assert "in.mkv is damaged, first after 0.4 seconds: frames or sound are missing or blurred there" in sentence
    times = look(tmp_path / "out.mkv").times
    assert times[0] == 0
    assert round(1000 * times[-1]) == 29 * 40


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
@pytest.mark.parametrize("frames", [8, 75])
def test_a_matroska_that_is_cut_anywhere_is_reported(tmp_path: Path, codec: str, frames: int) -> None:
    data = make_video(tmp_path / "whole.mkv", noisy(frames), codec=codec).read_bytes()
    assert read(tmp_path / "whole.mkv") == (frames, "")
    for share in (0.55, 0.7, 0.85, 0.97, 0.999):
        (tmp_path / "in.mkv").write_bytes(data[: int(share * len(data))])
        count, sentence = read(tmp_path / "in.mkv")
        assert count <= frames
        seconds = 0.04 * frames
        assert f"is cut off: it ends after {0.04 * count:.1f} of {seconds:.1f} seconds" in sentence, (share, count)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_a_matroska_with_altered_bytes_is_reported(tmp_path: Path, codec: str) -> None:
    whole = make_video(tmp_path / "whole.mkv", noisy(40), codec=codec).read_bytes()
    rng, lost = random.Random(0), 0
    for share in (0.15, 0.3, 0.5, 0.7, 0.9):
        data, at = bytearray(whole), int(share * len(whole))
        data[at : at + 200] = rng.randbytes(200)
        (tmp_path / "in.mkv").write_bytes(data)
        count, sentence = read(tmp_path / "in.mkv")
        lost += 40 - count
        assert "in.mkv is damaged, first after" in sentence, (share, count)
    # The other two decode anything: only the checksum tells.
    assert lost or codec != "libx264"


def test_the_place_of_the_damage_is_told(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", noisy(75), codec="mpeg4", options={"g": "5"})
    with av.open(str(source)) as container:
        position = next(p.pos for p in container.demux(video=0) if p.pts is not None and p.pts * p.time_base >= 1.2)
    data = bytearray(source.read_bytes())
    # The head of one block: the reader leaves out all that follows in its cluster.
    data[position - 2 : position + 6] = bytes(8)
    source.write_bytes(data)
    count, sentence = read(source)
    assert count < 75
    assert "is damaged, first after 1.2 seconds" in sentence


def test_an_flv_with_altered_bytes_is_reported(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.flv", noisy(50))
    data = bytearray(source.read_bytes())
    assert read(source) == (50, "")
    tags = [at.start() for at in re.finditer(rb"\x09\x00..\x00..\x00\x00\x00\x00", data, re.DOTALL)]
    # The size of one picture's tag.
    data[tags[20] + 1 : tags[20] + 4] = b"\x00\x12\x34"
    source.write_bytes(data)
    count, sentence = read(source)
    assert count < 50
    assert "in.flv is damaged, first after 0." in sentence


@pytest.mark.parametrize("kind", ["faststart", "frag_keyframe+empty_moov", "avi", "flv"])
def test_other_containers_that_are_cut_are_reported(tmp_path: Path, kind: str) -> None:
    suffix, codec = (kind, kind.replace("avi", "mpeg4")) if len(kind) == 3 else ("mp4", "mpeg4")
    whole = make_video(tmp_path / f"whole.{suffix}", noisy(50), codec=codec, options={"g": "10"})
    if suffix == "mp4":
        whole = remuxed(whole, tmp_path / f"{kind}.mp4", options={"movflags": kind})
    assert read(whole) == (50, "")
    data = whole.read_bytes()
    # Inside the pictures, of the last fragment where there are some.
    begin = max(data.rfind(b"movi" if suffix == "avi" else b"mdat"), 0)
    after = max(data.rfind(b"idx1"), data.rfind(b"mfra"), 0) or len(data)
    for share in (0.5, 0.9):
        end = begin + int(share * (after - begin))
        (tmp_path / f"in.{suffix}").write_bytes(data[:end])
        count, sentence = read(tmp_path / f"in.{suffix}")
        assert count < 50
        assert "is cut off: it ends after" in sentence


# No damage

STILL = [0, 1, 2, 30, 31, 32, 282, 283, 284, 534, 535]
"""Times of a recorded screen, in 25ths of a second: nothing moves for ten seconds."""


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "avi", "flv", "ts"])
@pytest.mark.parametrize("pts", [STILL, [*STILL, 800], range(200, 220)], ids=["still", "still at the end", "late"])
def test_times_that_are_no_damage(tmp_path: Path, suffix: str, pts: Sequence[int]) -> None:
    source = make_video(tmp_path / f"in.{suffix}", moving(len(pts)), pts=pts)
    assert read(source) == (len(pts), "")


def test_a_trimmed_mp4_and_its_results_are_whole(tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mp4", noisy(40), options={"g": "10"})
    unit = Fraction(1, 25) / Fraction(1, 12800)
    # As cameras and phones trim: an edit list leaves out what is before time zero.
    source = remuxed(plain, tmp_path / "in.mp4", -13 * int(unit), {"avoid_negative_ts": "disabled"})
    with av.open(str(source)) as container:
        assert container.streams.video[0].frames == 40
    count, sentence = read(source)
    assert 25 <= count < 40
    assert not sentence
    report = upscale(source, tmp_path / "out.mp4")
    assert (report.frames, report.damage) == (count, ())


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "flv"])
def test_sound_that_is_longer_than_the_pictures(tmp_path: Path, suffix: str) -> None:
    from video_files import add_sound

    source = tmp_path / f"in.{suffix}"
    plain = make_video(tmp_path / "plain.mp4", moving(10))
    with av.open(str(plain)) as container, av.open(str(source), "w") as out:
        pictures = out.add_stream_from_template(container.streams.video[0])
        sound: Any = out.add_stream("aac", rate=44100)
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                out.mux(packet)
        add_sound(out, sound, 5 * 48000)
    assert read(source) == (10, "")


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi", "flv"])
def test_bytes_that_somebody_appended(tmp_path: Path, suffix: str) -> None:
    source = make_video(tmp_path / f"in.{suffix}", moving(10))
    source.write_bytes(source.read_bytes() + bytes(5000))
    assert read(source) == (10, "")


@pytest.mark.parametrize("clusters", ["sized", "unsized"])
def test_a_stream_that_was_recorded_live(tmp_path: Path, clusters: str) -> None:
    plain = make_video(tmp_path / "plain.mkv", noisy(40), options={"g": "10"})
    live = remuxed(plain, tmp_path / "live.mkv", options={"live": "1", "cluster_time_limit": "300"})
    data = live.read_bytes()
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in data
    if clusters == "unsized":
        # As browsers record: sizes are not known before the end. Here they are numbers of two bytes.
        data = re.sub(rb"(\x1f\x43\xb6\x75)[\x40-\x7f].", b"\\1\x7f\xff", data, flags=re.DOTALL)
    live.write_bytes(data)
    assert read(live) == (40, "")
    live.write_bytes(data[: int(0.8 * len(data))])
    count, sentence = read(live)
    assert count < 40
    assert "is cut off: it ends after" in sentence
