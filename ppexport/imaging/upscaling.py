"""Puts a picture of any size through a runner of one size: image -> tiles -> runs -> image.

A picture that fits in one tile is run whole. A larger one is run tile by tile: what attention mixes over the whole
picture then ends at the tile's border, so the result differs a little from the whole-picture network's. Overlaps are
blended so that no border shows; `ppexport.imaging.tiles` says how, and gives the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppexport.device.picture import to_input
from ppexport.device.runner import Prepared, Runner
from ppexport.errors import ImageError
from ppexport.imaging.animations import write_animation
from ppexport.imaging.enlarging import enlarge
from ppexport.imaging.images import MAX_PIXELS, Picture, Pixels, check_output, output_depth, read_image, write_image
from ppexport.imaging.tiles import Blender, Grid, cut, plan_grid

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Done = TypeVar("Done")
Progress = Callable[[int, int], None]
"""Called in the caller's thread with (tiles run, tiles in all), first with (0, all)."""


class TileRun(NamedTuple):
    """One run of the artifact; with more impure tokens than slots the tile is not what the network would give."""

    origin: tuple[int, int]
    """(top, left) of the tile, LR pixels."""
    impure_tokens: int
    """Tokens that category attention had to mix."""
    capacity: int
    """Slots it had for them."""
    seconds: float
    """Inside the runner's `run`."""


@dataclass(frozen=True)
class Report:
    """What an upscaling took. Sizes are (H, W): of the picture before and after, and of a tile in LR pixels."""

    lr_size: tuple[int, int]
    sr_size: tuple[int, int]
    tile: tuple[int, int]
    tiles: tuple[TileRun, ...]
    """One entry per tile, row by row."""
    seconds_total: float
    """From start to end: of a file with reading and writing, of an array without."""

    @property
    def seconds_runtime(self) -> float:
        """Seconds inside the runner."""
        return sum(run.seconds for run in self.tiles)

    @property
    def overhead(self) -> float:
        """What everything but the runs added to the time, as a share of theirs: 0.05 is 5 %."""
        return self.seconds_total / self.seconds_runtime - 1

    @property
    def over_capacity(self) -> tuple[TileRun, ...]:
        """The tiles with more impure tokens than slots."""
        return tuple(run for run in self.tiles if run.impure_tokens > run.capacity)

    @property
    def warning(self) -> str | None:
        """One sentence for the user if any tile is not what the network would give, else None."""
        over = self.over_capacity
        if not over:
            return None
        worst = max(over, key=lambda run: run.impure_tokens - run.capacity)
        return (
            f"{len(over)} of {len(self.tiles)} tiles have more impure tokens than the artifact has slots "
            f"(at worst {worst.impure_tokens} for {worst.capacity}, at row {worst.origin[0]}, column "
            f"{worst.origin[1]}): the result in these tiles is not the network's, use an artifact of full capacity"
        )


class Upscaled(NamedTuple):
    """The result of `upscale_array`: `rgb` is (H * scale, W * scale, 3), uint8 or uint16."""

    rgb: NDArray[Any]
    report: Report


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


def upscale_array(runner: Runner, rgb: Pixels, progress: Progress = _silent, *, depth: int = 8) -> Upscaled:
    """Super-resolve an array.

    Args:
        runner: an opened artifact.
        rgb: (H, W, 3), uint8 (v stands for v / 255) or float32 in [0, 1].
        progress: called after every tile.
        depth: bits of the result's levels, 8 or 16.

    Returns:
        floor(255 * clamp(sr, 0, 1) + 0.5), or with 65535 for 16 bits, and what it took.

    Raises:
        InputError: the runner's tiles are too small to overlap and the picture does not fit in one.
        ImageError: the result does not fit into memory.
        ArtifactError: the runner returns another shape than it should, or values that are not finite.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape or rgb.dtype not in (np.uint8, np.float32):
        raise ValueError(f"upscale_array takes uint8 or float32 pixels (H, W, 3), not {rgb.dtype} {rgb.shape}")
    start = time.perf_counter()
    height, width = rgb.shape[:2]
    grid = plan_grid((height, width), runner.size)
    try:
        blender = Blender(grid, runner.scale, depth)
        runs = _run_tiles(runner, rgb, grid, blender, progress)
    except MemoryError:
        raise ImageError(f"{width}x{height} pixels times {runner.scale} do not fit into memory") from None
    sr = blender.picture()
    seconds = time.perf_counter() - start
    return Upscaled(sr, Report((height, width), (sr.shape[0], sr.shape[1]), grid.tile, tuple(runs), seconds))


def _run_tiles(runner: Runner, rgb: Pixels, grid: Grid, blender: Blender, progress: Progress) -> list[TileRun]:
    """Add the upscaled tiles of *grid* to *blender*; returns what each took.

    Two threads cut, mask, check and blend while the caller's is in the runtime, which only it ever calls. A runner must
    not write into a result it has returned: that is blended while the next tile runs.
    """
    runs: list[TileRun] = []
    to_run, to_finish = iter(grid), iter(grid)

    # All tiles have the centres of the picture: a tile's own would split its few colours further.
    centers = runner.artifact.manifest.centers(rgb)

    def prepare(origin: tuple[int, int]) -> Prepared:
        return runner.prepare(to_input(cut(rgb, origin, grid.tile)), centers)

    def run(prepared: Prepared) -> NDArray[np.float32]:
        begin = time.perf_counter()
        sr, impure_tokens, capacity = runner.run_unchecked(prepared)
        seconds = time.perf_counter() - begin
        runs.append(TileRun(next(to_run), int(impure_tokens), int(capacity), seconds))
        progress(len(runs), len(grid))
        return sr

    def finish(sr: NDArray[np.float32]) -> None:
        # Here and not in `run`, so that the runtime does not wait for it.
        runner.check_picture(sr, f" for the tile at {next(to_finish)}")
        blender.add(sr[0])

    progress(0, len(grid))
    overlap(grid, prepare, run, finish)
    return runs


def overlap(
    items: Iterable[Item],
    prepare: Callable[[Item], Ready],
    run: Callable[[Ready], Done],
    finish: Callable[[Done], None],
) -> None:
    """Call finish(run(prepare(item))) for all *items*, so that the slow stage in the middle never waits for the others.

        preparing thread    prepare(k + 1)
        calling thread      run(k)
        finishing thread    finish(k - 1)

    The runtimes release Python's lock while they compute, and NumPy does for all but the smallest arrays, so that
    threads are enough. No stage is more than one item ahead of the next one: what is held does not grow with the number
    of items. A stage gets the items in their order, one at a time, so what only it touches needs no lock. An exception
    of a stage or of *items* comes out as it was raised, once; if there are several, which one does not depend on the
    clock. Whatever ends the call, KeyboardInterrupt too, both threads have then ended, after what they already had.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "prepare") as preparing, ThreadPoolExecutor(1, "finish") as finishing:

        def prepare_next() -> Future[Ready] | None:
            for item in source:
                return preparing.submit(prepare, item)
            return None

        upcoming = prepare_next()
        last: Future[None] | None = None
        while upcoming is not None:
            prepared = upcoming.result()
            upcoming = prepare_next()
            result = run(prepared)
            if last is not None:
                last.result()
            last = finishing.submit(finish, result)
        if last is not None:
            last.result()


class Source(NamedTuple):
    """A picture that was read, which took `seconds`, and may be enlarged into `target`."""

    picture: Picture
    target: Path
    seconds: float


def read_source(source: Path, target: Path, scale: int, max_pixels: int = MAX_PIXELS) -> Source:
    """Read the picture *source*, and check all that can be known of *target* before anything is run.

    Raises ImageError for files that cannot be read or written.
    """
    start = time.perf_counter()
    picture = read_image(source, max_pixels=max_pixels)
    check_output(target, picture, scale)
    return Source(picture, target, time.perf_counter() - start)


def upscale_source(runner: Runner, source: Source, progress: Progress = _silent) -> Report:
    """Super-resolve a picture that `read_source` has read; otherwise as `upscale_file`."""
    start = time.perf_counter()
    picture, reports = source.picture, list[Report]()

    def run(rgb: Pixels, depth: int) -> NDArray[Any]:
        result = upscale_array(runner, rgb, progress, depth=depth)
        reports.append(result.report)
        return result.rgb

    scale = runner.scale
    if picture.frames is None:
        write_image(source.target, enlarge(picture, run, scale, depth=output_depth(source.target.suffix, picture)))
    else:
        write_animation(source.target, picture, (enlarge(frame, run, scale) for frame in picture.frames))
    return replace(
        reports[0],
        tiles=tuple(tile for report in reports for tile in report.tiles),
        seconds_total=source.seconds + time.perf_counter() - start,
    )


def upscale_file(
    runner: Runner, source: Path, target: Path, *, max_pixels: int = MAX_PIXELS, progress: Progress = _silent
) -> Report:
    """Super-resolve the picture *source* into *target*, which appears whole or not at all, whatever interrupts.

    Alpha goes through the network as a grey picture, and colours that it hides are replaced (`imaging.alpha`); a grey
    picture stays grey; its profile, its colour chunks, its dots per inch and its metadata are kept. Raises what
    `read_source` and `upscale_array` raise, the former before the first tile is run.
    """
    return upscale_source(runner, read_source(source, target, runner.scale, max_pixels), progress)
