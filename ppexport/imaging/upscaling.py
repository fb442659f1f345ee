"""Picture files in and out: what is read goes through a runner, and is written with all that belongs to it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppexport.device.runner import Runner
from ppexport.errors import ImageError
from ppexport.files import full_disk
from ppexport.imaging.images import MAX_PIXELS, Picture, Pixels, check_output, read_image, write_image
from ppexport.imaging.passes import Progress, Report, TileRun, Upscaled, silent, upscale_array
from ppexport.imaging.rows import Rows
from ppexport.imaging.tile_queue import TileQueue, Waiting
from ppexport.imaging.tiles import plan_grid

__all__ = [
    "Progress", "Report", "Source", "TileRun", "Upscaled", "read_source", "upscale_array", "upscale_file",
    "upscale_source", "write_enlarged",
]  # fmt: skip


LARGE = 64_000_000


class Source(NamedTuple):
    """A picture that was read, which took `seconds`, and may be enlarged into `target`."""

    picture: Picture
    target: Path
    seconds: float


def read_source(
    source: Path, target: Path, scale: int, max_pixels: int = MAX_PIXELS, *, make_folder: bool = False
) -> Source:
    """Read the picture *source*, and check all that can be known of *target* before anything is run.

    With *make_folder* the folder of *target* is made if the picture could be read. Raises ImageError for files that
    cannot be read or written.
    """
    start = time.perf_counter()
    picture = read_image(source, max_pixels=max_pixels)
    if make_folder:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"the folder {target.parent} cannot be made: {error.strerror}{full_disk(error)}") from None
    check_output(target, picture, scale)
    return Source(picture, target, time.perf_counter() - start)


def _comes_in_rows(target: Path, picture: Picture, pixels: int) -> bool:
    """Whether `write_image` reads the colours of a result of so many *pixels* in rows, from top to bottom."""
    return pixels > LARGE and target.suffix.lower() == ".png" and picture.alpha is None and not picture.grey


def write_enlarged(source: Source, tiles: TileQueue) -> Report:
    """Enlarge a picture that `read_source` has read, in any thread but that of *tiles*, and write it.

    A large result is written while its tiles run, and never held as a whole, where the format allows it.
    """
    start = time.perf_counter()
    picture, reports, streamed = source.picture, list[Report](), list[tuple[Waiting, Rows]]()

    def run(rgb: Pixels, depth: int) -> NDArray[Any]:
        height, width = rgb.shape[0] * tiles.runner.scale, rgb.shape[1] * tiles.runner.scale
        if not _comes_in_rows(source.target, picture, height * width):
            result = tiles.begin(rgb, depth).result()
            reports.append(result.report)
            return result.rgb
        rows = Rows((height, width, 3), np.dtype(np.uint8 if depth == 8 else np.uint16))
        waiting = tiles.begin(rgb, depth, rows.put)
        waiting.add_done_callback(rows.end_with)
        streamed.append((waiting, rows))
        return cast(NDArray[Any], rows)

    try:
        sr = run(picture.bled, 8)
        alpha = picture.alpha
        if alpha is not None:
            size = sr.shape[1], sr.shape[0]
            alpha = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC))
        write_image(source.target, replace(picture, rgb=sr, alpha=alpha))
        reports += [waiting.result().report for waiting, _ in streamed]
    finally:
        for waiting, _ in streamed:
            waiting.cancel()
    runs = tuple(run for report in reports for run in report.tiles)
    return replace(reports[0], tiles=runs, seconds_total=source.seconds + time.perf_counter() - start)


def upscale_source(runner: Runner, source: Source, progress: Progress = silent) -> Report:
    """Super-resolve a picture that `read_source` has read; otherwise as `upscale_file`."""
    tiles, done = TileQueue(runner), 0
    total = len(plan_grid(source.picture.size, runner.size))

    def ran() -> None:
        nonlocal done
        done += 1
        progress(done, max(done, total))

    def enlarge() -> Report:
        try:
            return write_enlarged(source, tiles)
        finally:
            tiles.close()

    with ThreadPoolExecutor(1, "picture") as pictures:
        try:
            progress(0, total)
            writing = pictures.submit(enlarge)
            tiles.run(ran)
        except BaseException:
            tiles.abandon()
            raise
    return writing.result()


def upscale_file(
    runner: Runner, source: Path, target: Path, *, max_pixels: int = MAX_PIXELS, progress: Progress = silent
) -> Report:
    """Super-resolve the picture *source* into *target*, which appears whole or not at all, whatever interrupts.

    Alpha is enlarged with Pillow's bicubic filter, and colours that it hides are replaced (`imaging.alpha`); a grey
    picture stays grey; its profile, its colour chunks and its dots per inch are kept. Raises what `read_source` and
    `upscale_array` raise, the former before the first tile is run.
    """
    return upscale_source(runner, read_source(source, target, runner.scale, max_pixels), progress)
