"""Cuts a picture into overlapping tiles of one fixed size, and blends the upscaled tiles into a picture.

    origins   multiples of 16, so that windows and Pure-Pass cells lie where they lie in the whole picture
    overlap   at least OVERLAP pixels, hence 16 or more for tiles whose side is a multiple of 16
    weights   raised cosines across the overlaps, divided by their sum: separable, and one in total at every pixel

The last tile may reach past the picture, by less than 16 pixels, where it sees mirrored copies as the network would.

PP-ATD-light x2 on coffee.png halved to 300x200 (to 296x200 for 56x56), tiles against the whole picture, before
rounding to 8 bits. The step ratio is the mean absolute step between the pixels at tile borders (at the overlaps'
middles; at their ends) over that up to 8 pixels beside them; in brackets the same for the whole picture, which a
visible seam would exceed:

    overlap   tiles         dB      step ratio
    0         20 of 64x64   46.34   1.517 (1.133)
    8         24 of 56x56   49.84   1.100 (1.102); 1.194 (1.194)
    16        24 of 64x64   49.96   1.168 (1.171); 1.180 (1.188)
    24        54 of 56x56   50.36   1.123 (1.127); 1.126 (1.130)
    32        54 of 64x64   50.51   1.189 (1.196); 1.162 (1.172)

Against the whole picture a tile's error is larger in its outermost four pixels than elsewhere, so that 8 pixels of
overlap leave no seam; more overlap buys about half a decibel for twice the runs. With linear ramps an overlap of 8
shows faintly at its ends (1.201).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.mask import mirror_index
from ppexport.device.picture import to_levels
from ppexport.errors import InputError
from ppexport.imaging.pixels import Pixels

MULTIPLE = 16
"""Origins are multiples of this, which is a multiple of what every network pads to."""
OVERLAP = 8
"""Pixels (LR) that neighbouring tiles share at least; the module's table says why."""
_ROWS = 64
"""Rows that are made levels at a time, so that of a large tile's band no second one is held meanwhile."""


def plan(length: int, tile: int) -> tuple[int, ...]:
    """Ascending origins of the tiles that cover [0, *length*): multiples of 16, the first 0; one if *length* fits.

    Consecutive tiles share `OVERLAP` pixels or more. As few tiles as that allows are spread evenly.
    Raises InputError if several are needed and *tile* is too small for them to overlap so far.
    """
    if length <= tile:
        return (0,)
    if tile < MULTIPLE + OVERLAP:
        raise InputError(
            f"a side of {length} pixels does not fit in one tile of {tile}, and tiles below {MULTIPLE + OVERLAP} "
            f"pixels cannot overlap: export the model with a larger --size"
        )
    stride = (tile - OVERLAP) // MULTIPLE
    last = -(-(length - tile) // MULTIPLE)
    gaps = -(-last // stride)
    return tuple(MULTIPLE * (i * last // gaps) for i in range(gaps + 1))


def axis_weights(origins: tuple[int, ...], tile: int, length: int) -> list[NDArray[np.float32]]:
    """The weight of every tile along one axis, each float32 (visible,): its part inside [0, *length*).

    At each position the weights of all tiles are positive where a tile is and sum to one. All arguments are in the
    same unit: SR pixels when upscaled tiles are blended.
    """
    total = np.zeros(length)
    ramps = []
    for i, origin in enumerate(origins):
        centre = np.arange(min(tile, length - origin)) + 0.5
        ramp = np.ones(len(centre))
        if i > 0:
            ramp *= _rise(centre / (origins[i - 1] + tile - origin))
        if i + 1 < len(origins):
            ramp *= _rise((tile - centre) / (origin + tile - origins[i + 1]))
        total[origin : origin + len(ramp)] += ramp
        ramps.append(ramp)
    return [(r / total[o : o + len(r)]).astype(np.float32) for o, r in zip(origins, ramps, strict=True)]


def _rise(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raised cosine from 0 at *position* 0 to 1 at *position* 1 and beyond; rise(t) + rise(1 - t) = 1."""
    rise: NDArray[np.float64] = np.sin(np.minimum(position, 1.0) * (np.pi / 2)) ** 2
    return rise


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a picture lie, in LR pixels: its size and theirs (H, W), their top and left edges."""

    size: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(top, left) of every tile, row by row."""
        return ((y, x) for y in self.rows for x in self.columns)


def plan_grid(size: tuple[int, int], tile: tuple[int, int]) -> Grid:
    """Cover a picture of *size* (H, W) with tiles of (h, w); see `plan`."""
    return Grid(size, tile, plan(size[0], tile[0]), plan(size[1], tile[1]))


def cut(rgb: Pixels, origin: tuple[int, int], tile: tuple[int, int]) -> Pixels:
    """The tile (h, w, 3) of *rgb* (H, W, 3) at *origin* (top, left); past the picture it holds mirrored copies."""
    for axis in (0, 1):
        start, stop, length = origin[axis], origin[axis] + tile[axis], rgb.shape[axis]
        if stop <= length:
            rgb = rgb[start:stop] if axis == 0 else rgb[:, start:stop]
        else:
            rgb = np.take(rgb, mirror_index(length, stop)[start:], axis=axis)
    return rgb


class Blender:
    """Blends the upscaled tiles of *grid*, added one at a time and in its order, into a picture.

    The picture has levels of *depth* bits, 8 (uint8) or 16 (uint16). Besides it only a band as high as a tile and as
    wide as the picture is held in float32. With *emit*, which gets the rows (n, W * scale, 3) that are complete, from
    top to bottom, the picture is not held either.
    """

    def __init__(
        self, grid: Grid, scale: int, depth: int = 8, emit: Callable[[NDArray[Any]], None] | None = None
    ) -> None:
        height, width = (side * scale for side in grid.size)
        tile_h, tile_w = (side * scale for side in grid.tile)
        tops, self._lefts = (tuple(o * scale for o in origins) for origins in (grid.rows, grid.columns))
        self._row_weights = axis_weights(tops, tile_h, height)
        self._column_weights = axis_weights(self._lefts, tile_w, width)
        self._edges = (*tops, height)
        self._depth = depth
        self._emit = emit
        self._out = np.empty((0 if emit else height, width, 3), np.uint8 if depth == 8 else np.uint16)
        # band[:, r] is row edges[i] + r of the picture; rows above the next tile's top are complete and leave it.
        self._band = np.zeros((3, min(tile_h, height), width), np.float32)
        self._tiles = len(grid)
        self._added = 0

    def add(self, sr: NDArray[np.float32]) -> None:
        """Add the next tile, float32 (3, h * scale, w * scale). Raises ValueError if there was a last one already."""
        if self._added == self._tiles:
            raise ValueError(f"more than {self._tiles} tiles")
        row, column = divmod(self._added, len(self._lefts))
        wy, wx = self._row_weights[row], self._column_weights[column]
        left = self._lefts[column]
        self._band[:, : len(wy), left : left + len(wx)] += sr[:, : len(wy), : len(wx)] * (wy[:, None] * wx)
        self._added += 1
        if column == len(self._lefts) - 1:
            self._complete(self._edges[row], self._edges[row + 1])

    def _complete(self, top: int, bottom: int) -> None:
        """Move the band's rows from *top* to *bottom* into the picture."""
        band, done = self._band, bottom - top
        for start in range(0, done, _ROWS):
            stop = min(start + _ROWS, done)
            levels = to_levels(band[:, start:stop], self._depth).transpose(1, 2, 0)
            if self._emit is None:
                self._out[top + start : top + stop] = levels
            else:
                self._emit(levels)
        band[:, :-done] = band[:, done:]
        band[:, -done:] = 0

    def picture(self) -> NDArray[Any]:
        """The picture (H * scale, W * scale, 3), with *emit* without rows. Raises ValueError if tiles are missing."""
        if self._added < self._tiles:
            raise ValueError(f"fewer than {self._tiles} tiles")
        return self._out
