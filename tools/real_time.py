"""How fast videos are upscaled here, frame by frame: python tools/real_time.py ARTIFACT FOLDER.

Makes clips of the bundled photographs in FOLDER, upscales their frames, and writes the tables of docs/real-time.md:

    pan and zoom    a camera that moves over five photographs, H.264
    static camera   one photograph with something that moves, without loss; in H.264; and in H.264 with noise as sensors
                    have it, different in every frame
"""

from __future__ import annotations

import os

# As in the command line: waiting threads that spin would slow the other stages.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
from figures.places import Place
from numpy.typing import NDArray
from PIL import Image

from ppexport.backends.backend import open_artifact
from ppexport.cli.console import fail
from ppexport.device.machine import describe
from ppexport.device.runner import Prepared, Result, Runner
from ppexport.errors import PpexportError
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.images import photo_folder
from ppexport.imaging.video import frames_of, load_av, read_video
from ppexport.imaging.video_colour import Colours, Converter
from ppexport.imaging.video_damage import Damage
from ppexport.imaging.video_tiles import FrameReport, FrameUpscaler

SIZE = (112, 192)
RATE = 30
PHOTOS = ("astronaut.png", "hubble_deep_field.jpg", "coffee.png", "rocket.jpg", "chelsea.png")
EACH = 12
"""Frames of every photograph."""
TABLE = Path(__file__).parent.parent / "docs" / "real-time.md"
Frames = list[NDArray[np.uint8]]


def photographs() -> list[Image.Image]:
    """The bundled photographs."""
    return [Image.open(photo_folder() / name).convert("RGB") for name in PHOTOS]


def pan_and_zoom() -> Frames:
    """A camera that moves over every photograph and comes nearer, or goes away."""
    found, (height, width) = [], SIZE
    for number, photo in enumerate(photographs()):
        most = min(photo.width / width, photo.height / height)
        for i in range(EACH):
            along = i / (EACH - 1)
            zoom = most * (0.95 - 0.45 * (along if number % 2 else 1 - along))
            w, h = width * zoom, height * zoom
            left, top = along * (photo.width - w), (0.2 + 0.6 * along) * (photo.height - h)
            box = (left, top, left + w, top + h)
            found.append(np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)))
    return found


def static_camera(noise: float) -> Frames:
    """One photograph, and before it something small that moves; *noise* is its deviation in levels."""
    astronaut, _, coffee, *_ = photographs()
    (height, width), rng, found = SIZE, np.random.default_rng(0), []
    scene = np.asarray(astronaut.resize((width, height), Image.Resampling.LANCZOS, (0, 60, 512, 359)))
    thing = np.asarray(coffee.resize((20, 20), Image.Resampling.LANCZOS, (180, 80, 420, 320)))
    for i in range(EACH * len(PHOTOS)):
        frame, left = scene.copy(), 4 + 2 * i
        frame[80:100, left : left + 20] = thing
        noisy = frame + rng.normal(0, noise, frame.shape) if noise else frame
        found.append(np.clip(np.round(noisy), 0, 255).astype(np.uint8))
    return found


def save(path: Path, frames: Frames, codec: str) -> Path:
    """Encode *frames* into the file *path*."""
    av, colours = load_av(), Colours(1, 1, 1, 1, False)
    format = "bgr0" if codec == "ffv1" else "yuv420p"
    converter = Converter(colours._replace(matrix=0) if codec == "ffv1" else colours, format)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE, height=SIZE[0], width=SIZE[1])
        stream.pix_fmt = format
        stream.options = {"crf": "20"} if codec != "ffv1" else {}
        for i, levels in enumerate(frames):
            frame = converter.to_frame(levels)
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Measured:
    """What the frames of a clip took."""

    reports: list[FrameReport]
    pure: list[float]
    """Share of pure tokens in every frame, as far as its tiles were run."""
    processor_ms: list[float]
    """Of the thread that runs the tiles, in every frame: that of one thread does not depend on other programs."""
    in_time: int | None = None

    @property
    def ms(self) -> NDArray[np.float64]:
        """Of every frame."""
        return np.array([1000 * report.seconds for report in self.reports])

    @property
    def unchanged(self) -> float:
        """Share of tiles."""
        tiles = sum(report.tiles + report.unchanged for report in self.reports)
        return sum(report.unchanged for report in self.reports) / tiles


def pixels(path: Path) -> Iterator[NDArray[Any]]:
    """The frames of the clip *path* as a network sees them."""
    video = read_video(path)
    converter = Converter(video.colours, video.format)
    for timed in frames_of(video, Damage()):
        yield converter.to_rgb(timed.frame)


@contextmanager
def metered(runner: Runner) -> Iterator[list[float]]:
    """The processor seconds of the calling thread in every run of *runner* inside the block."""
    found: list[float] = []
    run = runner.run_unchecked

    def timed(prepared: Prepared) -> Result:
        begin = time.thread_time()
        try:
            return run(prepared)
        finally:
            found.append(time.thread_time() - begin)

    with patch.object(runner, "run_unchecked", timed):
        yield found


def measure(runner: Runner, path: Path, fps: float | None = None) -> Measured:
    """Upscale the clip *path*; with a deadline where *fps* is given."""
    manifest = runner.artifact.manifest
    deadline = None if fps is None else Deadline(fps, manifest.capacities)
    if deadline is not None:
        deadline.calibrate(runner)
    upscaler = FrameUpscaler(runner, SIZE, deadline=deadline)
    reports: list[FrameReport] = []
    # One frame for nothing: the first run of a session is slow.
    upscaler.run([next(iter(pixels(path))) ^ 1], lambda picture, report: None)
    if deadline is not None:
        deadline.frames = deadline.in_time = 0
    with metered(runner) as seconds:
        upscaler.run(pixels(path), lambda picture, report: reports.append(report))
    runs = iter(seconds)
    processor = [1000 * sum(islice(runs, report.tiles)) for report in reports]
    tokens = manifest.tokens
    pure = [1 - report.impure_tokens / (tokens * report.tiles) if report.tiles else 1.0 for report in reports]
    return Measured(reports, pure, processor, None if deadline is None else deadline.in_time)


def row(name: str, found: Measured) -> str:
    """A line of the table of clips."""
    ms = found.ms
    return (
        f"| {name} | {100 * np.mean(found.pure):.0f} % | {100 * found.unchanged:.0f} % | "
        f"{np.mean(found.processor_ms):.0f} | {np.median(ms):.0f} | {np.percentile(ms, 90):.0f} | "
        f"{1000 * len(ms) / ms.sum():.2f} |"
    )


def line(found: Measured) -> str:
    """How the time follows the pure share."""
    pure, ms = np.array(found.pure), np.array(found.processor_ms)
    slope, zero = np.polyfit(pure, ms, 1)
    correlation = float(np.corrcoef(pure, ms)[0, 1])
    return (
        f"Over the {len(ms)} frames of pan and zoom, with pure shares from {100 * pure.min():.0f} % to "
        f"{100 * pure.max():.0f} %, a frame takes {zero:.0f} ms of processor time less {-slope / 100:.1f} ms for every "
        f"hundredth of pure pixels (least squares, correlation {correlation:.2f}): one wholly pure would take "
        f"{100 * -slope / zero:.0f} % less than one without."
    )


def main(
    artifact: Annotated[Path, typer.Argument(help="an artifact, a capacity set for the second table")],
    folder: Annotated[Path, typer.Argument(help="where the clips are made")],
    threads: Annotated[int | None, typer.Option(help="threads of the runtime")] = None,
    write: Annotated[bool, typer.Option(help="write the tables into docs/real-time.md")] = True,
) -> None:
    """Make the clips, measure them and write the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = {
        "pan and zoom, H.264": save(folder / "pan_and_zoom.mp4", pan_and_zoom(), "libx264"),
        "static camera, lossless": save(folder / "static_lossless.mkv", static_camera(0), "ffv1"),
        "static camera, H.264": save(folder / "static_h264.mp4", static_camera(0), "libx264"),
        "static camera with noise, H.264": save(folder / "static_noise.mp4", static_camera(3.0), "libx264"),
    }
    with open_artifact(artifact, threads=threads) as runner:
        found = {name: measure(runner, path) for name, path in clips.items()}
        first = found["pan and zoom, H.264"]
        rows = [
            "| clip | pure tokens of the tiles that were run | unchanged tiles | processor ms a frame, mean | "
            "ms a frame, median | p90 | fps |",
            "|---|---|---|---|---|---|---|",
            *(row(name, one) for name, one in found.items()),
        ]
        slow = float(np.median(first.ms))
        deadlines = [
            "| deadline of a frame | frames in time | tiles with too few slots | processor ms a frame, mean | "
            "ms a frame, median |",
            "|---|---|---|---|---|",
        ]
        for share in (1.5, 1.0, 0.8, 0.6):
            budget = share * slow
            met = measure(runner, clips["pan and zoom, H.264"], 1000 / budget)
            tiles = sum(report.tiles + report.unchanged for report in met.reports)
            over = sum(report.over_capacity for report in met.reports)
            share_in_time, share_over = 100 * (met.in_time or 0) / len(met.reports), 100 * over / tiles
            deadlines.append(
                f"| {budget:.0f} ms | {share_in_time:.0f} % | {share_over:.0f} % | "
                f"{np.mean(met.processor_ms):.0f} | {np.median(met.ms):.0f} |"
            )
    size, tiles = "x".join(map(str, SIZE[::-1])), first.reports[0].tiles
    cpu, name = describe()["cpu"], runner.artifact.manifest.name
    cores = "a thread for every physical core" if threads is None else f"{threads} thread"
    where = f"{size} pixels at x{runner.scale}, {tiles} tiles a frame, {name} in ONNX Runtime, {cores}, {cpu}:"
    text = "\n".join([where, "", *rows, "", line(first), "", *deadlines])
    print(text)
    if write:
        Place(TABLE, "measured").write(text)


if __name__ == "__main__":
    try:
        typer.run(main)
    except PpexportError as error:
        fail(str(error))
        raise SystemExit(error.exit_code) from None
