"""The blocks that window attention works in, without a cyclic shift and without a mask.

Before (networks/atd/attention.py): the image is rolled by half a window, cut into windows of 16 x 16, and in the
windows that hold pieces of opposite borders -100 is added to the logits between pieces (rank 6, and a mask for every
window).

After: what the mask keeps apart is cut apart. A shifted image is interior windows, and along its borders blocks of
half a window:

    +--+-----+-----+--+          8 x 8     four corners
    +--+-----+-----+--+          8 x 16    top and bottom
    |  |     |     |  |          16 x 8    left and right
    +--+-----+-----+--+          16 x 16   interior
    |  |     |     |  |
    +--+-----+-----+--+
    +--+-----+-----+--+

Every block attends within itself, with the position bias of its own offsets. The weights that the mask leaves across
the wrap, e^-100 of the others, are left out: they are below the resolution of fp32, as numbers they are denormals,
which CPUs handle a hundred times as slowly. Tensors have rank 4 at most (Core ML takes 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Band = tuple[int, int]
"""First and last + 1 row or column."""


@dataclass(frozen=True)
class Kind:
    """Blocks of one size: those of every band of rows crossed with every band of columns, row by row."""

    height: int
    width: int
    rows: tuple[Band, ...]
    columns: tuple[Band, ...]

    @property
    def area(self) -> int:
        """Tokens of a block."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of all its blocks."""
        return sum(b - a for a, b in self.rows) * sum(b - a for a, b in self.columns)


def kinds_of(height: int, width: int, window: int, shift: int) -> list[Kind]:
    """The kinds of blocks of an image; *height* and *width* are multiples of *window*, *shift* is 0 or half of it."""
    if not shift:
        return [Kind(window, window, ((0, height),), ((0, width),))]
    rows, columns = ((shift, height - shift),), ((shift, width - shift),)
    top_bottom, left_right = ((0, shift), (height - shift, height)), ((0, shift), (width - shift, width))
    kinds = [
        Kind(window, window, rows, columns),
        Kind(shift, window, top_bottom, columns),
        Kind(window, shift, rows, left_right),
        Kind(shift, shift, top_bottom, left_right),
    ]
    return [kind for kind in kinds if kind.tokens]


def partition(image: Tensor, height: int, width: int) -> Tensor:
    """Image (h, w, c) -> blocks (h/height * w/width, height * width, c)."""
    h, w, c = image.shape
    x = image.reshape(h // height, height, w // width, width * c).permute(0, 2, 1, 3)
    return x.reshape(-1, height * width, c)


def merge(blocks: Tensor, height: int, width: int, size: tuple[int, int]) -> Tensor:
    """Blocks (h/height * w/width, height * width, c) -> image (h, w, c) of *size*."""
    h, w = size
    c = blocks.shape[-1]
    x = blocks.reshape(h // height, w // width, height, width * c).permute(0, 2, 1, 3)
    return x.reshape(h, w, c)


def to_blocks(image: Tensor, kind: Kind) -> Tensor:
    """The blocks (count, area, c) of one *kind* of an image (h, w, c)."""
    parts = [
        partition(image[a:b, c:d], kind.height, kind.width)
        for a, b in kind.rows
        for c, d in kind.columns
    ]  # fmt: skip
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def from_blocks(blocks: list[Tensor], kinds: list[Kind]) -> Tensor:
    """The image (h, w, c) of the blocks of all *kinds*, the inverse of `to_blocks`."""
    pieces: dict[int, dict[int, Tensor]] = {}
    for part, kind in zip(blocks, kinds, strict=True):
        first = 0
        for a, b in kind.rows:
            for c, d in kind.columns:
                count = (b - a) * (d - c) // kind.area
                whole = merge(part[first : first + count], kind.height, kind.width, (b - a, d - c))
                pieces.setdefault(a, {})[c] = whole
                first += count
    bands = [[row[c] for c in sorted(row)] for _, row in sorted(pieces.items())]
    joined = [torch.cat(band, dim=1) if len(band) > 1 else band[0] for band in bands]
    return torch.cat(joined) if len(joined) > 1 else joined[0]


class PositionIndex(nn.Module):
    """The row of the position bias table for every pair of tokens in blocks of one kind: int32 (area * area,).

    Before (networks/atd/attention.py): a stored index (256, 256) int64 of 512 KiB, and a gather that exporters fold to
    1 MiB in every layer.

    After: the index comes out of one number per token inside the graph, once for all layers that share it:

        index = base[i] - base[j] + 480,   base = 31 * y + x                              (area,) int32
    """

    base: Tensor

    def __init__(self, kind: Kind, window: int) -> None:
        super().__init__()
        side = 2 * window - 1
        y, x = torch.meshgrid(torch.arange(kind.height), torch.arange(kind.width), indexing="ij")
        self.center = (window - 1) * (side + 1)
        self.register_buffer("base", (y * side + x).flatten().to(torch.int32))

    def forward(self) -> Tensor:
        """Computed in the graph."""
        return (self.base.unsqueeze(1) - self.base.unsqueeze(0) + self.center).view(-1)


class Cut(NamedTuple):
    """How the layers of one shift cut the image into blocks."""

    shift: int
    kinds: list[Kind]
    indices: list[Tensor]
    """For every kind (area * area,) int32: rows of the position bias tables."""
    order: Tensor
    """(n,) int32: the token at every position in the order of the blocks."""
    place: Tensor
    """(n,) int32: the position of every token in that order."""


class BlockCut(nn.Module):
    """Computes a `Cut` in the graph from the numbers of the tokens."""

    def __init__(self, size: tuple[int, int], window: int, shift: int) -> None:
        super().__init__()
        self.size, self.shift = size, shift
        self.kinds = kinds_of(*size, window, shift)
        self.index = nn.ModuleList(PositionIndex(kind, window) for kind in self.kinds)

    def forward(self, tokens: Tensor) -> Cut:
        """*tokens* = 0 ... n - 1, int32."""
        image = tokens.view(*self.size, 1)
        # Lengths in plain numbers: shape inference does not follow the slices of every kind.
        order = [to_blocks(image, kind).view(kind.tokens) for kind in self.kinds]
        positions = torch.split(tokens, [kind.tokens for kind in self.kinds]) if len(self.kinds) > 1 else (tokens,)
        parts = [part.view(-1, kind.area, 1) for part, kind in zip(positions, self.kinds, strict=True)]
        place = from_blocks(parts, self.kinds).reshape(-1)
        indices = [index() for index in self.index]
        return Cut(self.shift, self.kinds, indices, torch.cat(order) if len(order) > 1 else order[0], place)
