"""Whether a machine keeps up with a frame rate, how large frames it keeps up with, and at which scale.

`real_time.json`, version 1:

    format, version, created, subject, machine
    fps, folder         the rate, and the name of the folder of frames
    artifacts           of this artifact and of those it was compared with: {name, scale, lr_size, tiles,
                        exact, deadline, largest}; sizes are [height, width]
      exact             every tile with the slots it needs: {frames, in_time, p90_ms}
      deadline          fewer slots where a frame would be late: {frames, in_time, p90_ms, tiles_over, frames_over}
      largest           the largest frames of this shape that keep up with all the slots they need, or null
    highest_scale       of those whose frames keep up with all the slots they need, or null
    sentences           the answers for people

Keeping up is: nine frames of ten in time. All tiles of every frame are run, also those that did not change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppexport.device.job import Job
from ppexport.device.launch import ask
from ppexport.device.runner import Runner
from ppexport.device.target import Target, open_target
from ppexport.errors import InputError, counted
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.images import pictures_in, read_levels
from ppexport.imaging.video_tiles import FrameReport, FrameUpscaler
from ppexport.profile.result import Profile, follow_up
from ppexport.profile.statistics import percentile

FRAMES = 32
"""Frames that are timed at least; a shorter sequence is repeated."""
SECONDS = 60.0
"""After this time no further frame is begun."""
PROBE, LATE = 10, 1
"""Frames that a size is tried with, and how many of them may be late."""
STEP, MOST = 16, 4096
"""Widths that are tried are multiples of the first, up to the second."""

Frame = NDArray[np.uint8]


def profile_real_time(
    job: Job, result: Profile, folder: Path, fps: float, others: Sequence[Sequence[Target]]
) -> list[dict[str, Any]]:
    """Write for every target whether it keeps up with *fps* on the frames in *folder*.

    *others* are further artifacts, each with a target for every one of the job's. Returns what is in the files. Raises
    PpexportError.
    """

    def measure(only: Job, subject: dict[str, Any]) -> dict[str, Any]:
        (target,) = only.targets
        compared = [target, *(other[job.targets.index(target)] for other in others)]
        asked = replace(only, images=folder.resolve(), fps=fps)
        found = [
            ask("ppexport.profile.real_time:measure_real_time", replace(asked, targets=(one,))) for one in compared
        ]
        return {"fps": fps, "folder": folder.name, "artifacts": found, **answers(found, fps)}

    return follow_up("real_time", job, result, measure)


def measure_real_time(job: Job) -> dict[str, Any]:
    """Time the frames in the folder `job.images` against `job.fps`, for the measuring process. Raises PpexportError."""
    runner, files, fps = open_target(job.targets[0]), pictures_in(job.images), float(job.fps or 0)
    first = read_levels(files[0])
    deadline = Deadline(fps, runner.artifact.manifest.capacities)
    deadline.calibrate(runner)
    exact = timed(runner, files, first, None)
    met = timed(runner, files, first, deadline)
    size = largest_size(runner, first, fps)
    return {
        "name": job.targets[0].name,
        "artifact": Path(job.targets[0].artifact).name,
        "scale": runner.scale,
        "lr_size": list(first.shape[:2]),
        "tiles": exact[0].tiles,
        "exact": _figures(exact, fps),
        "deadline": {
            **_figures(met, fps),
            "tiles_over": sum(report.over_capacity for report in met),
            "frames_over": sum(bool(report.over_capacity) for report in met),
        },
        "largest": None if size is None else list(size),
    }


def timed(runner: Runner, files: Sequence[Path], first: Frame, deadline: Deadline | None) -> list[FrameReport]:
    """What the frames take, after one that is not counted. Raises InputError for frames of different sizes."""
    reports: list[FrameReport] = []

    def frames() -> Iterator[Frame]:
        yield first
        begin, count = time.monotonic(), 0
        while count < FRAMES:
            for path in files:
                rgb = read_levels(path)
                if rgb.shape != first.shape:
                    (h, w), name = rgb.shape[:2], files[0].name
                    raise InputError(f"{path} is {w} pixels wide and {h} high, {name} has another size")
                if count and time.monotonic() - begin > SECONDS:
                    return
                yield rgb
                count += 1

    upscaler = FrameUpscaler(runner, first.shape[:2], deadline=deadline, reuse=False)
    upscaler.run(frames(), lambda picture, report: reports.append(report))
    return reports[1:]


def _figures(reports: Sequence[FrameReport], fps: float) -> dict[str, Any]:
    seconds = np.array([report.seconds for report in reports])
    in_time = int(np.count_nonzero(seconds <= 1 / fps))
    return {"frames": len(reports), "in_time": in_time, "p90_ms": percentile(1000 * seconds, 90)}


def largest_size(runner: Runner, photo: Frame, fps: float) -> tuple[int, int] | None:
    """The largest size (H, W) of frames with the content and the shape of *photo* that keep up with *fps*.

    Every tile has the slots it needs. Sides are multiples of 16; sizes are doubled until one does not keep up, and the
    last that does is then searched by halves. None where the smallest does not keep up.
    """

    def size(step: int) -> tuple[int, int]:
        width = STEP * step
        return max(STEP, round(width * photo.shape[0] / photo.shape[1] / STEP) * STEP), width

    def holds(step: int) -> bool:
        height, width = size(step)
        frame = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
        late = -1

        def frames() -> Iterator[Frame]:
            for _ in range(PROBE + 1):
                if late > LATE:
                    return
                yield frame

        def done(picture: object, report: FrameReport) -> None:
            # The first is not counted.
            nonlocal late
            late += late < 0 or report.seconds > 1 / fps

        try:
            FrameUpscaler(runner, (height, width), reuse=False).run(frames(), done)
        except InputError:
            # Tiles that are too small to overlap hold no more than one.
            return False
        return late <= LATE

    low, high = 0, 1
    while STEP * high <= MOST and holds(high):
        low, high = high, 2 * high
    high = min(high, MOST // STEP + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return size(low) if low else None


def answers(found: Sequence[dict[str, Any]], fps: float) -> dict[str, Any]:
    """What the measurements mean."""
    keeping = [one["scale"] for one in found if one["exact"]["in_time"] >= 0.9 * one["exact"]["frames"]]
    sentences = []
    for one in found:
        exact, met, largest = one["exact"], one["deadline"], one["largest"]
        h, w = one["lr_size"]
        up_to = "with no size that was tried" if largest is None else f"with frames up to {largest[1]}x{largest[0]}"
        sentences.append(
            f"{one['artifact']} x{one['scale']} at {fps:g} fps: {exact['in_time']} of {exact['frames']} frames of "
            f"{w}x{h} in time, {met['in_time']} of {met['frames']} with fewer slots where they must be "
            f"({counted(met['tiles_over'], 'tile')} in {counted(met['frames_over'], 'frame')} over capacity); keeps up "
            f"{up_to} of this content (width x height)"
        )
    if len(found) > 1:
        scale = f"x{max(keeping)}" if keeping else "none of them"
        sentences.append(f"the highest scale that keeps up with {fps:g} fps on these frames: {scale}")
    return {"highest_scale": max(keeping, default=None), "sentences": sentences}
