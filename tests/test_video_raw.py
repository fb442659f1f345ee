"""Raw frames and single frames, without a container."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_upscale import Repeat

from ppexport.errors import InputError
from ppexport.imaging.video_raw import FrameFunction, RawForm, check_raw, upscale_clip, upscale_stream

rng = np.random.default_rng(6)


class Trickle(io.RawIOBase):
    """A pipe, which gives what it has."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.data.read(min(size, 700))


@pytest.mark.parametrize(("format", "kind"), [("rgb24", np.uint8), ("rgb48le", np.uint16)])
def test_frames_come_out_as_they_went_in_but_larger(format: str, kind: Any) -> None:
    frames = rng.integers(0, np.iinfo(kind).max, (5, 30, 40, 3), dtype=kind, endpoint=True)
    frames[3] = frames[2]
    sink, runner = io.BytesIO(), Repeat((64, 48))
    report = upscale_stream(runner, check_raw("40x30", format), Trickle(frames.astype(frames.dtype).tobytes()), sink)
    made = np.frombuffer(sink.getvalue(), kind).reshape(5, 60, 80, 3)
    np.testing.assert_array_equal(made, frames.repeat(2, 1).repeat(2, 2))
    assert (report.frames, report.tiles, report.unchanged) == (5, 4, 1)
    assert report.seconds_total > report.seconds_runtime


@pytest.mark.parametrize("size", ["40", "40x", "0x9", "40X30", "-4x30", "40x30 ", "999999x9"])
def test_sizes_are_width_by_height(size: str) -> None:
    with pytest.raises(InputError, match="--raw takes WIDTHxHEIGHT and a format, such as --raw 640x360 rgb24"):
        check_raw(size, "rgb24")


def test_a_reader_that_leaves_is_one_sentence() -> None:
    class Closed(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError

    data = bytes(2 * 30 * 40 * 3)
    with pytest.raises(InputError, match="whoever read the frames closed the pipe after 0 of them"):
        upscale_stream(Repeat((64, 48)), RawForm((30, 40), "rgb24"), io.BytesIO(data), Closed())


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (16, np.uint16)])
def test_a_function_of_single_frames(bits: int, kind: Any) -> None:
    runner = Repeat((64, 48))
    function = FrameFunction(runner, 40, 30, bits)
    frame = rng.integers(0, np.iinfo(kind).max, (30, 40, 3), dtype=kind)
    for _ in range(2):
        picture = function(frame)
        assert (picture.dtype, picture.flags.writeable) == (kind, False)
        np.testing.assert_array_equal(picture, frame.repeat(2, 0).repeat(2, 1))
    assert len(runner.seen) == 1
    with pytest.raises(InputError, match="frames have 8 or 16 bits, not 10"):
        FrameFunction(runner, 40, 30, 10)


# VapourSynth


class Frame(list[np.ndarray]):
    """Three planes, as VapourSynth's frames hold them."""

    def __init__(self, planes: Any, **props: Any) -> None:
        super().__init__(np.array(plane) for plane in planes)
        self.props = props

    def copy(self) -> Frame:
        return Frame(self, **self.props)


class Clip:
    """What `upscale_clip` uses of a video node."""

    def __init__(self, name: str, height: int, width: int, get: Callable[[int], Frame]) -> None:
        self.format, self.height, self.width = (
            SimpleNamespace(name=name, bits_per_sample=int(name[3:]) // 3),
            height,
            width,
        )
        self.get_frame, self.std = get, self

    def BlankClip(self, width: int, height: int, keep: bool) -> Clip:
        kind = np.uint8 if self.format.bits_per_sample == 8 else np.uint16
        return Clip(self.format.name, height, width, lambda n: Frame(np.zeros((3, height, width), kind), made=True))

    def ModifyFrame(self, clips: list[Clip], selector: Callable[[int, list[Frame]], Frame]) -> Clip:
        return Clip(
            self.format.name, self.height, self.width, lambda n: selector(n, [clip.get_frame(n) for clip in clips])
        )


def test_a_clip_of_a_script_in_any_order() -> None:
    frames = rng.integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    clip = Clip("RGB24", 30, 40, lambda n: Frame(np.moveaxis(frames[n], 2, 0), _Matrix=0, number=n))
    large = upscale_clip(clip, Repeat((64, 48)))
    assert (large.width, large.height) == (80, 60)
    for n in (3, 0, 1):
        found = large.get_frame(n)
        np.testing.assert_array_equal(np.stack(found, axis=2), frames[n].repeat(2, 0).repeat(2, 1))
        assert found.props == {"made": True, "_Matrix": 0, "number": n}


def test_a_clip_that_is_not_rgb_is_refused() -> None:
    clip = Clip("RGB24", 30, 40, lambda n: Frame(np.zeros((3, 30, 40), np.uint8)))
    clip.format.name = "YUV420P8"
    with pytest.raises(InputError, match="the clip is YUV420P8, not RGB24 or RGB48 of one size"):
        upscale_clip(clip, Repeat((64, 48)))


def test_a_clip_of_vapoursynth_itself() -> None:
    vs = pytest.importorskip("vapoursynth")
    clip = vs.core.std.BlankClip(width=40, height=30, format=vs.RGB48, length=2, color=[9000, 200, 60000])
    found = upscale_clip(clip, Repeat((64, 48))).get_frame(1)
    assert np.asarray(found[2]).shape == (60, 80)
    assert [int(np.asarray(found[plane])[5, 5]) for plane in range(3)] == [9000, 200, 60000]
