"""Upscales a video file: decode, upscale, encode into segments, join; resumable, and playable where it was stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ppexport.device.artifact import Artifact
from ppexport.device.runner import Runner
from ppexport.errors import InputError
from ppexport.files import check_file_target, full_disk, sha256_file
from ppexport.imaging.background import Ahead, Behind
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.images import MAX_PIXELS, Pixels
from ppexport.imaging.video import TRANSPARENCY, Timed, Video, frames_of, load_av, read_video
from ppexport.imaging.video_colour import is_see_through
from ppexport.imaging.video_damage import Damage
from ppexport.imaging.video_encoding import Encoding, FrameEncoder, VideoOptions, choose_encoding
from ppexport.imaging.video_joining import join, other_streams
from ppexport.imaging.video_segments import (
    WORK,
    SegmentStore,
    SegmentWriter,
    segment_store,
    unused_partial,
    work_folder,
)
from ppexport.imaging.video_tiles import FrameReport, FrameUpscaler

AHEAD, BEHIND = 3, 2
"""Frames that are decoded ahead, and that wait for their encoder."""
SEGMENT_FRAMES, SEGMENT_SECONDS = 240, 60.0
"""A segment ends after so many frames, or after so many seconds of work, once it has a few."""
FEW = 8

Progress = Callable[[int, int], None]
"""Called in the encoding thread with (frames done, frames in all as far as is known)."""


class InterruptedVideo(KeyboardInterrupt):
    """Ctrl-C, after which `partial` is a playable file of the first `frames` frames; None where there is none yet."""

    def __init__(self, partial: Path | None, frames: int) -> None:
        super().__init__()
        self.partial, self.frames = partial, frames


class VideoPlan(NamedTuple):
    """A video that can be upscaled into `target`."""

    video: Video
    target: Path
    encoding: Encoding
    notes: tuple[str, ...]
    """Sentences about what the result will lack or have otherwise."""


@dataclass(frozen=True)
class VideoReport:
    """What upscaling a video took. Sizes are (H, W)."""

    lr_size: tuple[int, int]
    sr_size: tuple[int, int]
    encoder: str
    format: str
    frames: int = 0
    """Of the result."""
    resumed: int = 0
    """Of them, those that an earlier run had done; nothing below is about them."""
    tiles: int = 0
    """Tiles that were run."""
    unchanged: int = 0
    """Tiles that were not, since they equal the last frame's."""
    tiles_over_capacity: int = 0
    frames_over_capacity: int = 0
    seconds_runtime: float = 0.0
    seconds_total: float = 0.0
    frames_in_time: int | None = None
    """Of the deadline, where one was given."""
    damage: tuple[str, ...] = ()
    """Sentences about what of the source could not be decoded or copied."""
    notes: tuple[str, ...] = ()
    """Sentences about what turned out not to be kept."""

    @property
    def fps(self) -> float:
        """Frames of this run a second, from its first to its last."""
        return (self.frames - self.resumed) / self.seconds_total if self.seconds_total else 0.0

    def with_frame(self, took: FrameReport) -> VideoReport:
        """This, with one more frame."""
        return replace(
            self,
            frames=self.frames + 1,
            tiles=self.tiles + took.tiles,
            unchanged=self.unchanged + took.unchanged,
            tiles_over_capacity=self.tiles_over_capacity + took.over_capacity,
            frames_over_capacity=self.frames_over_capacity + bool(took.over_capacity),
            seconds_runtime=self.seconds_runtime + took.seconds_runtime,
        )

    @property
    def overhead(self) -> float | None:
        """What everything but the runs added to the time, as a share of theirs; None where there were none."""
        return self.seconds_total / self.seconds_runtime - 1 if self.seconds_runtime else None


def plan_video(
    source: Path,
    target: Path,
    scale: int,
    options: VideoOptions | None = None,
    max_pixels: int = MAX_PIXELS,
) -> VideoPlan:
    """Read the header of the video *source*, and check all that can be known before anything is run.

    Raises InputError for a source that is no video, a target that cannot be written or is the source itself, or options
    that cannot be; UnavailableError without PyAV.
    """
    load_av()
    video = read_video(source, max_pixels)
    encoding = choose_encoding(video, target, scale, options or VideoOptions())
    if os.path.exists(target) and os.path.samefile(source, target):
        raise InputError(f"{target} is the input itself, which is never replaced: name another file for the result")
    if not target.parent.is_dir():
        raise InputError(f"{target} cannot be written: the folder {target.parent} does not exist")
    check_file_target(target)
    return VideoPlan(video, target, encoding, (*video.notes, *encoding.notes, *other_streams(video, target)))


def upscale_video(
    runner: Runner, plan: VideoPlan, progress: Progress = lambda done, total: None, fps: float | None = None
) -> VideoReport:
    """Super-resolve a video; the result appears whole or not at all.

    Segments are kept beside it until then, and the same call continues after the last whole one.

    Args:
        runner: an opened artifact.
        plan: what `plan_video` returned.
        progress: called after every frame.
        fps: a deadline for every frame, met with fewer slots where it must be (`Deadline`).

    Raises:
        InterruptedVideo: after Ctrl-C; its `partial` plays.
        InputError: the source cannot be read to its end, the disk is full, or another process makes the same video.
        ArtifactError: the runner returns values that are not finite.
    """
    with segment_store(plan.target, work_key(runner.artifact, plan, fps)) as store:
        try:
            report = _upscaled(runner, plan, store, progress, fps)
        except KeyboardInterrupt:
            raise InterruptedVideo(_partial(plan, store), store.frames) from None
        if not report.frames:
            raise InputError(f"{plan.video.path} holds no frame that can be decoded")
        try:
            notes = join(store, plan.encoding, plan.target)
        except KeyboardInterrupt:
            raise InterruptedVideo(None, store.frames) from None
        if store.partial is not None:
            plan.target.with_name(store.partial).unlink(missing_ok=True)
        store.remove()
        return replace(report, damage=(*report.damage, *notes))


def work_key(artifact: Artifact, plan: VideoPlan, fps: float | None) -> dict[str, Any]:
    """What makes two runs continue one another, under names that people know."""
    encoding = plan.encoding
    return {
        "input": sha256_file(plan.video.path),
        "artifact": artifact.manifest.files,
        "--codec": encoding.encoder,
        "--crf": encoding.crf,
        "pixel format": encoding.format,
        "size": list(encoding.size),
        "--fps": fps,
        "PyAV": load_av().__version__,
    }


def _partial(plan: VideoPlan, store: SegmentStore) -> Path | None:
    """A playable file of what is done, beside the result."""
    if not store.segments:
        return None
    # It is removed at the end, so it takes the name of no other file, which could even be the source.
    target = plan.target
    if store.partial is None:
        store.partial = unused_partial(target).name
    partial = target.with_name(store.partial)
    store.save()
    join(store, plan.encoding, partial, whole=False)
    return partial


class _Encoding:
    """Frames into segments, in the encoding thread."""

    def __init__(self, plan: VideoPlan, store: SegmentStore, progress: Progress, report: VideoReport) -> None:
        self._plan, self._store, self._progress = plan, store, progress
        self._converter = plan.encoding.converter()
        self._open: tuple[ExitStack, SegmentWriter, FrameEncoder, float] | None = None
        self.report = report

    def add(self, item: tuple[Timed, NDArray[Any], FrameReport]) -> None:
        """Encode the next picture."""
        timed, levels, took = item
        if self._open is None:
            stack, encoder = ExitStack(), FrameEncoder(self._plan.encoding, self._converter)
            self._open = stack, stack.enter_context(self._store.writing()), encoder, time.monotonic()
        stack, writer, encoder, begun = self._open
        try:
            writer.frame(timed.pts, timed.duration)
            for packet in encoder.encode(levels):
                writer.packet(packet)
        except BaseException:
            # A segment that lacks a packet is none.
            self._open = None
            stack.__exit__(*sys.exc_info())
            raise
        self.report = self.report.with_frame(took)
        self._progress(self.report.frames, max(self._plan.video.frames, self.report.frames))
        if encoder.frames >= SEGMENT_FRAMES or (encoder.frames >= FEW and time.monotonic() - begun >= SEGMENT_SECONDS):
            self.end_segment()

    def end_segment(self) -> None:
        """Complete the segment that is open."""
        if self._open is None:
            return
        (stack, writer, encoder, _), self._open = self._open, None
        with stack:
            for packet in encoder.finish():
                writer.packet(packet)
            writer.header = encoder.header


def _upscaled(
    runner: Runner, plan: VideoPlan, store: SegmentStore, progress: Progress, fps: float | None
) -> VideoReport:
    """Fill *store* to the end of the video."""
    video, encoding, damage = plan.video, plan.encoding, Damage()
    deadline = None if fps is None else Deadline(fps, runner.artifact.manifest.capacities)
    if deadline is not None:
        deadline.calibrate(runner)
    upscaler = FrameUpscaler(runner, video.size, encoding.depth, deadline)
    converter, waiting, notes = encoding.converter(), list[Timed](), list[str]()

    def decoded() -> Iterator[tuple[Timed, Pixels]]:
        for timed in frames_of(video, damage, store.frames):
            if video.maybe_alpha and not notes and is_see_through(timed.frame):
                notes.append(TRANSPARENCY)
            yield timed, converter.to_rgb(timed.frame)

    begin = time.perf_counter()
    first = VideoReport(
        video.size, encoding.size, encoding.encoder, encoding.format, frames=store.frames, resumed=store.frames
    )
    encoder = _Encoding(plan, store, progress, first)
    progress(store.frames, max(video.frames, store.frames))
    try:
        # After Ctrl-C or an error, too, what is done is kept.
        with closing_segment(encoder), Ahead(decoded(), AHEAD) as ahead, Behind(encoder.add, BEHIND) as behind:

            def pixels() -> Iterator[Pixels]:
                for timed, rgb in ahead:
                    waiting.append(timed._replace(frame=None))  # type: ignore[arg-type]
                    yield rgb

            upscaler.run(pixels(), lambda sr, took: behind.put((waiting.pop(0), sr, took)), ahead.stop)
    except OSError as error:
        raise InputError(f"{plan.target} cannot be made: {error.strerror}{full_disk(error)}") from None
    progress(encoder.report.frames, encoder.report.frames)
    return replace(
        encoder.report,
        seconds_total=time.perf_counter() - begin,
        frames_in_time=None if deadline is None else deadline.in_time,
        damage=(damage.sentence,) if damage.sentence else (),
        notes=tuple(notes),
    )


@contextmanager
def closing_segment(encoder: _Encoding) -> Iterator[None]:
    """Complete the segment that is open at the end of the block, whatever ends it."""
    try:
        yield
    finally:
        encoder.end_segment()


def unfinished(target: Path) -> bool:
    """Whether an earlier run left work on *target*."""
    return (work_folder(target) / WORK).is_file()
