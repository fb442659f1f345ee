"""Upscales the frames of a video, tile by tile, without running again what did not change.

    decoding thread     frame n + 2 and further, a few ahead
    preparing thread    tile k + 1: compared with the last frame's, cut, masked
    calling thread      run(k)
    finishing thread    checked and kept; after a frame's last tile all kept ones are blended
    encoding thread     frame n - 1

The stages do not stop between frames. A tile whose input pixels equal those of the frame before, bit for bit, mirrored
ones and the picture's adaptive colour centres included, keeps its result: the runner is a function of these alone, so
that the video is exactly the one that all runs would give. Where no tile of a frame changed, the last picture is given
again, the very same array.

Kept are the results of one frame's tiles in float32: 15 MB for 640x360 at x2, 140 MB for 1920x1080.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppexport.device.picture import to_input
from ppexport.device.runner import Prepared, Runner
from ppexport.errors import ImageError
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.images import Pixels
from ppexport.imaging.pipeline import overlap
from ppexport.imaging.tiles import Blender, cut, plan_grid


class FrameReport(NamedTuple):
    """What one frame took."""

    tiles: int
    """Tiles that were run."""
    unchanged: int
    """Tiles that were not, since they equal the last frame's."""
    over_capacity: int
    """Tiles of the picture with more impure tokens than slots: they are not what the network would give."""
    impure_tokens: int
    """Tokens of the tiles that were run, which took slots."""
    seconds_runtime: float
    seconds: float
    """From when the runner turned to the frame until its picture was blended."""


@dataclass
class _Frame:
    """A frame on its way."""

    rgb: Pixels
    centers: NDArray[np.int32] | None = None
    same: list[bool] = field(default_factory=list)
    begun: float = 0.0
    tiles: int = 0
    impure_tokens: int = 0
    seconds_runtime: float = 0.0
    changed: bool = False
    over: int = 0


class _Tile(NamedTuple):
    frame: _Frame
    number: int
    prepared: Prepared | None
    """None for a tile that equals the last frame's."""


class FrameUpscaler:
    """Upscales frames of one size by an opened runner.

    Args:
        runner: an opened artifact.
        size: (H, W) of the frames.
        depth: bits of the levels of the results, 8 or 16.
        deadline: chooses fewer slots where a frame would be late; None for all that are needed.
        reuse: whether tiles that did not change are left out.

    Raises:
        InputError: the runner's tiles are too small to overlap.
    """

    def __init__(
        self,
        runner: Runner,
        size: tuple[int, int],
        depth: int = 8,
        deadline: Deadline | None = None,
        *,
        reuse: bool = True,
    ) -> None:
        self.runner, self.depth, self.deadline, self.reuse = runner, depth, deadline, reuse
        self.grid = plan_grid(size, runner.size)
        self._origins = tuple(self.grid)
        self._before: _Frame | None = None
        self._results: list[NDArray[np.float32] | None] = [None] * len(self.grid)
        # Of every tile's kept result: (impure tokens, slots).
        self._slots = [(0, 0)] * len(self.grid)
        self._picture: NDArray[Any] | None = None

    def run(
        self,
        frames: Iterable[Pixels],
        done: Callable[[NDArray[Any], FrameReport], None],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Upscale *frames*, and call *done* with every picture (H * scale, W * scale, 3), never to be written into.

        Args:
            frames: uint8 or float32 in [0, 1], (H, W, 3); iterated in another thread, a frame ahead.
            done: called in another thread, in the order of the frames.
            stop: makes *frames* end, called where an exception, KeyboardInterrupt too, ends the run.

        Raises:
            ArtifactError: the runner returns values that are not finite.
            ImageError: a frame does not fit into memory.
        """

        def finish(tile: tuple[_Tile, NDArray[np.float32] | None]) -> None:
            self._finish(*tile, done)

        try:
            overlap(self._tiles(frames), self._prepare, self._run, finish, stop)
        except MemoryError:
            height, width = self.grid.size
            raise ImageError(f"{width}x{height} pixels times {self.runner.scale} do not fit into memory") from None

    def _tiles(self, frames: Iterable[Pixels]) -> Iterator[tuple[_Frame, int]]:
        for rgb in frames:
            if rgb.shape != (*self.grid.size, 3):
                raise ValueError(f"frames have the shape {(*self.grid.size, 3)}, not {rgb.shape}")
            frame = _Frame(rgb)
            for number in range(len(self.grid)):
                yield frame, number

    # In the preparing thread.

    def _prepare(self, item: tuple[_Frame, int]) -> _Tile:
        frame, number = item
        if number == 0:
            frame.centers = self.runner.artifact.manifest.centers(frame.rgb)
            frame.same = self._compared(frame)
            self._before = frame
        return _Tile(frame, number, None if frame.same[number] else self._prepared(frame, number))

    def _prepared(self, frame: _Frame, number: int) -> Prepared:
        return self.runner.prepare(to_input(cut(frame.rgb, self._origins[number], self.grid.tile)), frame.centers)

    def _compared(self, frame: _Frame) -> list[bool]:
        """Whether each tile equals the last frame's. What lies past the picture mirrors pixels of the same tile."""
        before = self._before
        if before is None or not self.reuse or not _equal_centers(before.centers, frame.centers):
            return [False] * len(self.grid)
        height, width = self.grid.tile
        return [
            np.array_equal(before.rgb[y : y + height, x : x + width], frame.rgb[y : y + height, x : x + width])
            for y, x in self._origins
        ]

    # In the calling thread.

    def _run(self, tile: _Tile) -> tuple[_Tile, NDArray[np.float32] | None]:
        frame, number, prepared = tile
        begin = time.perf_counter()
        if number == 0:
            frame.begun = begin
        impure, slots = self._slots[number]
        if prepared is None and impure <= slots:
            return tile, None
        if prepared is None and self.deadline is None:
            # More slots than these the artifact does not have.
            frame.over += 1
            return tile, None
        if prepared is None:
            # There may be more time for it than there was.
            prepared = self._prepared(frame, number)
        if self.deadline is not None:
            left = sum(not same for same in frame.same[number + 1 :]) + 1
            capacity = self.deadline.choose(prepared.capacity, left, begin - frame.begun)
            if frame.same[number] and capacity <= slots:
                frame.over += 1
                return tile, None
            prepared = prepared._replace(capacity=capacity)
            begin = time.perf_counter()
        result = self.runner.run_unchecked(prepared)
        seconds = time.perf_counter() - begin
        if self.deadline is not None:
            self.deadline.observe(result.capacity, seconds)
        self._slots[number] = int(result.impure_tokens), int(result.capacity)
        frame.over += result.impure_tokens > result.capacity
        frame.tiles += 1
        frame.impure_tokens += int(result.impure_tokens)
        frame.seconds_runtime += seconds
        return tile, result.sr

    # In the finishing thread.

    def _finish(
        self, tile: _Tile, sr: NDArray[np.float32] | None, done: Callable[[NDArray[Any], FrameReport], None]
    ) -> None:
        frame, number, _ = tile
        if sr is not None:
            self.runner.check_picture(sr, f" for the tile at {self._origins[number]}")
            self._results[number] = sr[0]
            frame.changed = True
        if number + 1 < len(self.grid):
            return
        if frame.changed or self._picture is None:
            blender = Blender(self.grid, self.runner.scale, self.depth)
            for result in self._results:
                blender.add(result)  # type: ignore[arg-type]
            self._picture = blender.picture()
        seconds = time.perf_counter() - frame.begun
        if self.deadline is not None:
            self.deadline.ended(seconds, seconds - frame.seconds_runtime)
        report = FrameReport(
            frame.tiles, len(self.grid) - frame.tiles, frame.over, frame.impure_tokens, frame.seconds_runtime, seconds
        )
        done(self._picture, report)


def _equal_centers(one: NDArray[np.int32] | None, other: NDArray[np.int32] | None) -> bool:
    return (one is None and other is None) or (one is not None and other is not None and np.array_equal(one, other))
