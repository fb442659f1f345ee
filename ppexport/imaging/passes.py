"""Puts an array of any size through a runner of one size: array -> tiles -> runs -> array.

A picture that fits in one tile is run whole. A larger one is run tile by tile: what attention mixes over the whole
picture then ends at the tile's border, so the result differs a little from the whole-picture network's. Overlaps are
blended so that no border shows; `ppexport.imaging.tiles` says how, and gives the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppexport.device.picture import to_input
from ppexport.device.runner import Prepared, Runner
from ppexport.errors import ImageError
from ppexport.imaging.images import Pixels
from ppexport.imaging.pipeline import overlap
from ppexport.imaging.tiles import Blender, cut, plan_grid

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
    notes: tuple[str, ...] = ()
    """Sentences about what was assumed or left out of what belongs to a file."""

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


def silent(done: int, total: int) -> None:
    """No progress is shown."""


class Pass:
    """An array on its way through a runner: the stages of `overlap` for each tile, in the order of `grid`.

    A runner must not write into a result it has returned: that is blended while the next tile runs.
    """

    def __init__(
        self, runner: Runner, rgb: Pixels, depth: int = 8, emit: Callable[[NDArray[Any]], None] | None = None
    ) -> None:
        """As `upscale_array`, which says what is raised; *emit* as `Blender` takes it."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape or rgb.dtype not in (np.uint8, np.float32):
            raise ValueError(f"upscale_array takes uint8 or float32 pixels (H, W, 3), not {rgb.dtype} {rgb.shape}")
        self._begun = time.perf_counter()
        self.runner, self.rgb, self.runs = runner, rgb, list[TileRun]()
        self.grid = plan_grid((rgb.shape[0], rgb.shape[1]), runner.size)
        with self.memory():
            self._blender = Blender(self.grid, runner.scale, depth, emit)
        # All tiles have the centres of the picture: a tile's own would split its few colours further.
        self._centers = runner.artifact.manifest.centers(rgb)
        self._finished = 0
        self._to_run, self._to_finish = iter(self.grid), iter(self.grid)

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Raise ImageError where memory runs out in the block."""
        try:
            yield
        except MemoryError:
            height, width = self.grid.size
            raise ImageError(f"{width}x{height} pixels times {self.runner.scale} do not fit into memory") from None

    def prepare(self, origin: tuple[int, int]) -> Prepared:
        """The tile at *origin*."""
        return self.runner.prepare(to_input(cut(self.rgb, origin, self.grid.tile)), self._centers)

    def run(self, prepared: Prepared) -> NDArray[np.float32]:
        """The result of a tile, not looked at, so that the runtime does not wait for that."""
        begin = time.perf_counter()
        sr, impure_tokens, capacity = self.runner.run_unchecked(prepared)
        seconds = time.perf_counter() - begin
        self.runs.append(TileRun(next(self._to_run), int(impure_tokens), int(capacity), seconds))
        return sr

    def finish(self, sr: NDArray[np.float32]) -> bool:
        """Check and blend a result; whether it was the last one."""
        self.runner.check_picture(sr, f" for the tile at {next(self._to_finish)}")
        self._blender.add(sr[0])
        self._finished += 1
        return self._finished == len(self.grid)

    def result(self) -> Upscaled:
        """The picture, without rows if they were emitted, when all tiles are finished."""
        sr, seconds, (height, width) = self._blender.picture(), time.perf_counter() - self._begun, self.grid.size
        size = height * self.runner.scale, width * self.runner.scale
        return Upscaled(sr, Report(self.grid.size, size, self.grid.tile, tuple(self.runs), seconds))


def upscale_array(runner: Runner, rgb: Pixels, progress: Progress = silent, *, depth: int = 8) -> Upscaled:
    """Super-resolve an array.

    Two threads cut, mask, check and blend while the caller's is in the runtime, which only it ever calls.

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
    one = Pass(runner, rgb, depth)

    def run(prepared: Prepared) -> NDArray[np.float32]:
        sr = one.run(prepared)
        progress(len(one.runs), len(one.grid))
        return sr

    with one.memory():
        progress(0, len(one.grid))
        overlap(one.grid, one.prepare, run, one.finish)
    return one.result()
