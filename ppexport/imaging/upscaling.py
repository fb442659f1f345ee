"""Picture files in and out: what is read goes through a runner, and is written with all that belongs to it."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ppexport.device.runner import Runner
from ppexport.errors import ImageError
from ppexport.files import full_disk
from ppexport.imaging.animations import write_animation
from ppexport.imaging.deep import LARGE
from ppexport.imaging.enlarging import EnlargeOptions, enlarge, runs_of
from ppexport.imaging.images import (
    MAX_PIXELS,
    Picture,
    Pixels,
    WriteOptions,
    check_output,
    output_depth,
    read_image,
    write_image,
)
from ppexport.imaging.passes import Progress, Report, TileRun, Upscaled, silent, upscale_array
from ppexport.imaging.rows import Rows
from ppexport.imaging.tile_queue import TileQueue
from ppexport.imaging.tiles import plan_grid

__all__ = [
    "Progress", "Report", "Settings", "Source", "TileRun", "Upscaled", "read_source", "upscale_array", "upscale_file",
    "upscale_source", "write_enlarged",
]  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How pictures are read, enlarged and written."""

    max_pixels: int = MAX_PIXELS
    """Larger pictures are not read."""
    first_frame: bool = False
    """Whether an animation is taken as the still picture that it begins with."""
    enlarge: EnlargeOptions = field(default_factory=EnlargeOptions)
    write: WriteOptions = field(default_factory=WriteOptions)


_DEFAULT = Settings()


class Source(NamedTuple):
    """A picture that was read, which took `seconds`, and may be enlarged into `target`."""

    name: str
    picture: Picture
    target: Path | IO[bytes]
    suffix: str
    """Of the target's name, or what it would be."""
    seconds: float
    settings: Settings

    def tiles(self, tile: tuple[int, int]) -> int:
        """Runs that it takes with tiles of *tile* (h, w)."""
        frames = 1 if self.picture.frames is None else len(self.picture.frames)
        return frames * sum(len(plan_grid(size, tile)) for size in runs_of(self.picture, self.settings.enlarge))


def read_source(
    source: Path | IO[bytes],
    target: Path | IO[bytes],
    scale: int,
    settings: Settings = _DEFAULT,
    *,
    suffix: str = ".png",
    make_folder: bool = False,
) -> Source:
    """Read the picture *source*, and check all that can be known of *target* before anything is run.

    Of a *target* that is a stream *suffix* says the format. With *make_folder* the folder of *target* is made if the
    picture could be read. Raises ImageError for files that cannot be read or written.
    """
    start = time.perf_counter()
    picture = read_image(source, max_pixels=settings.max_pixels, first_frame=settings.first_frame)
    if isinstance(target, Path):
        if make_folder:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"{error.strerror}{full_disk(error)}"
                raise ImageError(f"the folder {target.parent} cannot be made: {reason}") from None
        check_output(target, picture, scale, settings.write)
        suffix = target.suffix
    name = str(source) if isinstance(source, Path) else "standard input"
    return Source(name, picture, target, suffix, time.perf_counter() - start, settings)


def write_enlarged(source: Source, tiles: TileQueue) -> Report:
    """Enlarge a picture that `read_source` has read, in any thread but that of *tiles*, and write it.

    A large result comes to the writer in rows while its tiles run: PNG, TIFF and PPM never hold it as a whole, other
    formats as Pillow does, with four bytes a pixel.
    """
    start = time.perf_counter()
    picture, settings, scale = source.picture, source.settings, tiles.runner.scale
    reports: list[Report] = []
    streamed: list[Future[Upscaled]] = []

    def run(rgb: Pixels, depth: int) -> NDArray[Any]:
        if not _comes_in_rows(source, scale):
            result = tiles.begin(rgb, depth).result()
            reports.append(result.report)
            return result.rgb
        size = (rgb.shape[0] * scale, rgb.shape[1] * scale, 3)
        rows = Rows(size, np.dtype(np.uint8 if depth == 8 else np.uint16))
        streamed.append(tiles.begin(rgb, depth, rows.put))
        streamed[-1].add_done_callback(rows.end_with)
        return cast("NDArray[Any]", rows)

    try:
        if picture.frames is None:
            large = enlarge(picture, run, scale, settings.enlarge, output_depth(source.suffix, picture))
            notes = write_image(source.target, large, settings.write, suffix=source.suffix)
        else:
            frames = (enlarge(frame, run, scale, settings.enlarge) for frame in picture.frames)
            notes = write_animation(source.target, picture, frames, settings.write, suffix=source.suffix)
        reports += [waiting.result().report for waiting in streamed]
    except MemoryError:
        raise ImageError(f"{source.name} does not fit into memory, {scale} times as large") from None
    finally:
        # Where writing failed the other tiles need not run.
        for waiting in streamed:
            waiting.cancel()
    return replace(
        reports[0],
        lr_size=picture.size,
        sr_size=(picture.size[0] * scale, picture.size[1] * scale),
        tiles=tuple(run for report in reports for run in report.tiles),
        seconds_total=source.seconds + time.perf_counter() - start,
        notes=(*(f"{source.name}: {note}" for note in picture.notes), *notes),
    )


def _comes_in_rows(source: Source, scale: int) -> bool:
    """Whether `write_image` reads the colours of the result in rows, from top to bottom, and nothing else does."""
    picture, (height, width) = source.picture, source.picture.size
    plain = picture.frames is None and picture.alpha is None and not picture.grey and not source.settings.enlarge.wrap
    return plain and height * width * scale**2 > LARGE


def upscale_source(runner: Runner, source: Source, progress: Progress = silent) -> Report:
    """Super-resolve a picture that `read_source` has read; otherwise as `upscale_file`."""
    tiles, done, total = TileQueue(runner), 0, source.tiles(runner.size)

    def ran() -> None:
        nonlocal done
        done += 1
        progress(done, max(done, total))

    def enlarge_it() -> Report:
        try:
            return write_enlarged(source, tiles)
        finally:
            tiles.close()

    with ThreadPoolExecutor(1, "picture") as pictures:
        try:
            progress(0, total)
            writing = pictures.submit(enlarge_it)
            tiles.run(ran)
        except BaseException:
            tiles.abandon()
            raise
    return writing.result()


def upscale_file(
    runner: Runner,
    source: Path,
    target: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = silent,
    settings: Settings = _DEFAULT,
) -> Report:
    """Super-resolve the picture *source* into *target*, which appears whole or not at all, whatever interrupts.

    Alpha goes through the network as a grey picture, and colours that it hides are replaced (`imaging.alpha`); a grey
    picture stays grey; its profile, its colour chunks, its dots per inch and its metadata are kept. *settings* change
    that. Raises what `read_source` and `upscale_array` raise, the former before the first tile is run.
    """
    settings = replace(settings, max_pixels=max_pixels)
    return upscale_source(runner, read_source(source, target, runner.scale, settings), progress)
