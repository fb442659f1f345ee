"""Frames without a container, from one pipe to another, for people with pipelines of their own.

    ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - | ppexport upscale ARTIFACT - - --raw 640x360 rgb24 | ffmpeg ...

A frame is its rows from top to bottom, pixels from left to right, of each red, green and blue: one byte each in rgb24,
two bytes, little-endian, in rgb48le. Frames come out in the format that they came in, `scale` times as wide and high.

`FrameFunction` is the same for scripts that ask for single frames, and `upscale_clip` for those of VapourSynth.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppexport.device.runner import Runner
from ppexport.errors import InputError
from ppexport.imaging.background import Ahead, Behind
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.images import Pixels
from ppexport.imaging.video_run import AHEAD, BEHIND, VideoReport
from ppexport.imaging.video_tiles import FrameReport, FrameUpscaler

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
FORMATS: dict[str, np.dtype[Any]] = {"rgb24": np.dtype(np.uint8), "rgb48le": np.dtype("<u2")}


class RawForm(NamedTuple):
    """What the frames of a pipe are."""

    size: tuple[int, int]
    """(H, W)."""
    format: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a sample."""
        return FORMATS[self.format]

    @property
    def bytes(self) -> int:
        """Of a frame."""
        return self.size[0] * self.size[1] * 3 * self.dtype.itemsize


def check_raw(size: str, format: str) -> RawForm:
    """*size* as WIDTHxHEIGHT, as ffmpeg writes it, and *format*. Raises InputError for anything else."""
    match = SIZE.fullmatch(size)
    if match is None or not all(map(int, match.groups())):
        raise InputError(f"--raw takes WIDTHxHEIGHT and a format, such as --raw 640x360 rgb24, not {size!r}")
    if format not in FORMATS:
        raise InputError(f"--raw takes frames in {' or '.join(FORMATS)}, not {format!r}")
    return RawForm((int(match[2]), int(match[1])), format)


def _pixels(samples: NDArray[Any]) -> Pixels:
    """Samples of 8 or 16 bits (H, W, 3) for a runner."""
    return samples if samples.dtype == np.uint8 else samples.astype(np.float32) / np.float32(65535)


def upscale_stream(
    runner: Runner, form: RawForm, source: IO[bytes], sink: IO[bytes], fps: float | None = None
) -> VideoReport:
    """Super-resolve the frames of *source* into *sink*, each as soon as it is done.

    Args:
        runner: an opened artifact.
        form: what the frames are.
        source: ends after a frame.
        sink: gets the frames in the same format.
        fps: a deadline for every frame, met with fewer slots where it must be (`Deadline`).

    Raises:
        InputError: *source* is empty or ends inside a frame (those before it were written), or *sink* was closed.
        ArtifactError: the runner returns values that are not finite.
    """
    deadline = None if fps is None else Deadline(fps, runner.artifact.manifest.capacities)
    if deadline is not None:
        deadline.calibrate(runner)
    upscaler = FrameUpscaler(runner, form.size, 8 * form.dtype.itemsize, deadline)
    (h, w), s, begin = form.size, runner.scale, time.perf_counter()
    report = VideoReport(form.size, (h * s, w * s), "raw", form.format)

    def write(item: tuple[NDArray[Any], FrameReport]) -> None:
        nonlocal report
        picture, took = item
        try:
            sink.write(np.ascontiguousarray(picture, form.dtype).data.cast("B"))
            sink.flush()
        except BrokenPipeError:
            raise InputError(f"whoever read the frames closed the pipe after {report.frames:,} of them") from None
        report = report.with_frame(took)

    with Ahead(_frames(form, source), AHEAD) as ahead, Behind(write, BEHIND) as behind:
        upscaler.run(ahead, lambda picture, took: behind.put((picture, took)), ahead.stop)
    if not report.frames:
        raise InputError("standard input holds no frame")
    in_time = None if deadline is None else deadline.in_time
    return replace(report, seconds_total=time.perf_counter() - begin, frames_in_time=in_time)


def _frames(form: RawForm, source: IO[bytes]) -> Iterator[Pixels]:
    count = 0
    while data := _whole(source, form.bytes):
        if len(data) < form.bytes:
            (h, w), rest = form.size, len(data)
            raise InputError(
                f"the input ends inside frame {count + 1:,}, after {rest:,} of {form.bytes:,} bytes: are its frames "
                f"{w}x{h} in {form.format}?"
            )
        yield _pixels(np.frombuffer(data, form.dtype).reshape(*form.size, 3))
        count += 1


def _whole(source: IO[bytes], count: int) -> bytes:
    """*count* bytes of *source*, fewer at its end: pipes return what they have."""
    parts, left = [], count
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class FrameFunction:
    """Super-resolves single frames of one size, for scripts.

    Tiles that equal those of the frame before are not run again, so frames are best asked for in their order. Threads
    that call it take turns.
    """

    def __init__(self, runner: Runner, width: int, height: int, bits: int = 8) -> None:
        """*bits* of the samples that come and go, 8 or 16."""
        if bits not in (8, 16):
            raise InputError(f"frames have 8 or 16 bits, not {bits}")
        self._upscaler, self._lock = FrameUpscaler(runner, (height, width), bits), threading.Lock()

    def __call__(self, rgb: NDArray[Any]) -> NDArray[Any]:
        """(H, W, 3), uint8 or uint16 by the bits -> (H * scale, W * scale, 3) of the same kind, read-only."""
        found: list[NDArray[Any]] = []
        with self._lock:
            self._upscaler.run([_pixels(rgb)], lambda picture, took: found.append(picture))
        picture: NDArray[Any] = found[0].view()
        picture.flags.writeable = False
        return picture


def upscale_clip(clip: Any, runner: Runner) -> Any:
    """A VapourSynth clip of *clip*, super-resolved by an opened *runner*; for scripts (docs/video.md has one).

    Args:
        clip: a video node in RGB24 or RGB48, of one size.
        runner: what `ppexport.open_artifact` returns, which must stay open.

    Raises:
        InputError: the clip has another format.
    """
    form = clip.format
    if form is None or form.name not in ("RGB24", "RGB48") or not clip.width:
        name = "of several formats" if form is None else form.name
        raise InputError(f"the clip is {name}, not RGB24 or RGB48 of one size: convert it with core.resize before")
    function = FrameFunction(runner, clip.width, clip.height, form.bits_per_sample)
    large = clip.std.BlankClip(width=clip.width * runner.scale, height=clip.height * runner.scale, keep=True)

    def change(n: int, f: Any) -> Any:
        empty, small = f
        picture = function(np.stack([np.asarray(small[plane]) for plane in range(3)], axis=2))
        made = empty.copy()
        for plane in range(3):
            np.copyto(np.asarray(made[plane]), picture[..., plane])
        # Times, colours and whatever else the source's frames say.
        made.props.update(small.props)
        return made

    return large.std.ModifyFrame(clips=[large, clip], selector=change)
