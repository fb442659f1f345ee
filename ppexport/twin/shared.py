"""What all layers of one run share: positions, blocks, masks, and what parity injects or records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppexport.networks.network import Trace
from ppexport.twin import ort_routing
from ppexport.twin.blocks import Kind, PositionIndex, from_blocks, kinds_of, to_blocks
from ppexport.twin.routing import Slots


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


@dataclass
class Shared:
    """Tensors that all layers of one run share."""

    tokens: Tensor
    """(n,) int32: 0 ... n - 1."""
    cuts: dict[int, Cut]
    """By shift, 0 and half a window."""
    pure: Tensor | None
    """(n,) bool, None for a network without Pure-Pass."""
    slots: Slots | None = None
    """The slots of category attention in the portable flavour, None for a network without Pure-Pass."""
    row_slots: ort_routing.Slots | None = None
    """The flavour `ort`: its slots, None for a network without Pure-Pass."""
    grid: ort_routing.SortGrid | None = None
    """The flavour `ort`: for sorting the categories of all tokens."""
    slot_grid: ort_routing.SortGrid | None = None
    """The flavour `ort`: for sorting those of its slots, None for a network without Pure-Pass."""
    slots_for_all: Tensor | None = None
    """The flavour `ort`: (1,) bool, whether no token is pure and each has a slot; None where that cannot be."""
    places: dict[int, ort_routing.Places] = field(default_factory=dict)
    """The flavour `ort`, by shift: where the tokens of its slots stand in the order of the blocks."""
    norm: tuple[Tensor, Tensor] | None = None
    """The flavour `ort`: (n,) ones and (n,) zeros."""
    forced: Tensor | None = None
    """(layers, n) int32: categories to use in place of the token's own choice."""
    trace: Trace | None = None
    """Filled with what every layer chose and computed."""
