"""Routing in the flavour `ort`: only the impure tokens are sorted, and no select runs over all channels.

Before (routing.py): all n tokens are sorted in every layer, pure ones behind the last category, and results are brought
to the tokens by a gather and a select over n rows.

After: which tokens are impure is the same in all layers, so they are listed once,

    tokens[i] = the i-th impure token, then pure ones, C in all

and every layer sorts the C categories of that list. Results and what pure tokens take lie in one table of C + n rows,
and the row of a token is C + its own place, but the place of its slot where it was mixed: a scatter of numbers, not
of rows.

With C >= m, in whole groups, this is the network's routing. With fewer slots the impure tokens past the first C of the
picture count as pure, the same ones in all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppexport.twin.blocks import Cut
from ppexport.twin.counting_sort import BLOCK
from ppexport.twin.routing import mirror_slots


class SortGrid(NamedTuple):
    """What sorting C keys takes beside the keys, the same in all layers; a block is 32 keys."""

    block: Tensor
    """(C,) int32: the block of every key."""
    blocks: Tensor
    """(1,) int32: how many there are."""
    earlier: Tensor
    """(32, 32) bool: whether the second of two keys of a block stands before the first."""
    empty: Tensor
    """(K * blocks,) fp32: 0."""
    ones: Tensor
    """(C,) fp32: 1."""


def sort_grid(positions: Tensor, keys: int) -> SortGrid:
    """For *keys* values in [0, keys); *positions* = 0 ... C - 1, int32, C a multiple of 32 that may be traced."""
    block = torch.div(positions, BLOCK, rounding_mode="trunc")
    row = positions[:BLOCK]
    # Made from the positions, so that a traced C leaves no arithmetic on shapes.
    ones = (positions >= 0).float()
    empty = torch.zeros(keys, 1) * ones.view(-1, BLOCK)[:, 0]
    return SortGrid(block, block.amax(dim=0, keepdim=True) + 1, row.unsqueeze(1) > row, empty.view(-1), ones)


def sorted_places(keys: Tensor, grid: SortGrid) -> Tensor:
    """(C,) int64: where a stable sort by *keys* (C,) int32 puts every key.

    As `counting_sort`, with one histogram over keys and blocks, key by key, filled by a scatter: its exclusive running
    sum is where the keys of every block begin. Counts are fp32, exact to 2^24.
    """
    parts = keys.view(-1, BLOCK)
    same = (parts.unsqueeze(2) == parts.unsqueeze(1)) & grid.earlier
    inside = same.float().sum(dim=2).view(-1)
    cell = (keys * grid.blocks + grid.block).long()
    # Not index_put: the ScatterND that it becomes loses counts in ONNX Runtime, which adds in parallel.
    counts = grid.empty.scatter_add(0, cell, grid.ones)
    begin = counts.cumsum(dim=0) - counts
    return (begin.index_select(0, cell) + inside).long()


class Slots(NamedTuple):
    """What the C slots are for one picture, the same in all layers."""

    tokens: Tensor
    """(C,) int32: the impure tokens in their order, then pure ones."""
    mixed: Tensor
    """(C,) bool: whether the token is impure."""
    past: Tensor
    """(C,) int32: 0 for impure ones, the key behind the last category for the others."""
    reads: Tensor
    """(C,) int32: the rank among the sorted tokens that every slot reads."""
    limit: Tensor
    """(1,) int32: min(m, C), how many tokens are mixed."""
    rest: Tensor
    """(n,) int32: the row behind those of the slots, of every token in the order of the blocks."""


def plan_slots(tokens: Tensor, positions: Tensor, pure: Tensor, impure: Tensor, categories: int) -> Slots:
    """The slots of a picture with *pure* (n,) bool and *impure* (1,) int32 tokens that are not.

    *tokens* = 0 ... n - 1 and *positions* = 0 ... C - 1, int32.
    """
    before = (~pure).float().cumsum(dim=0).to(torch.int32)
    place = torch.where(pure, impure + tokens - before, before - 1)
    # The maximum, not the last element: its length 1 is plain in the graph, so that C does not hide the length n of all
    # that the capacity is added to, and ONNX Runtime plans the memory of the whole network as without slots.
    capacity = positions.amax(dim=0, keepdim=True) + 1
    limit = torch.minimum(impure, capacity)
    mixed = positions < limit
    zero = torch.zeros_like(impure)
    return Slots(
        tokens=tokens.scatter(0, place.long(), tokens).index_select(0, positions),
        mixed=mixed,
        past=torch.where(mixed, zero, zero + categories),
        reads=mirror_slots(positions, limit),
        limit=limit,
        rest=tokens + capacity,
    )


class Places(NamedTuple):
    """Where the tokens of the list stand in the order of the blocks of one shift."""

    place: Tensor
    """(C,) int32."""
    target: Tensor
    """(C,) int64: the same, for a scatter."""
    least: Tensor
    """(C,) int32: 0 for impure tokens; for the others their row behind those of the slots, past every slot's."""


def plan_places(slots: Slots, place: Tensor) -> Places:
    """For *place* (n,) int32, the position of every token in the order of the blocks."""
    listed = place.index_select(0, slots.tokens)
    # A scalar: zeros of a known length would be stored one by one.
    zero = torch.zeros((), dtype=torch.int32)
    return Places(listed, listed.long(), torch.where(slots.mixed, zero, slots.rest.index_select(0, listed)))


class RowPlan(NamedTuple):
    """What all layers of one run share, computed once."""

    ones: Tensor
    """(n,) fp32."""
    zeros: Tensor
    """(n,) fp32."""
    grid: SortGrid
    """For sorting the categories of all tokens."""
    places: dict[int, Places]
    """By shift: where the tokens of the slots stand in the order of the blocks; {} for a network without Pure-Pass."""
    slots: Slots | None = None
    """None for a network without Pure-Pass, as the next one."""
    slot_grid: SortGrid | None = None
    """For sorting the categories of the slots."""
    slots_for_all: Tensor | None = None
    """(1,) bool: whether no token is pure and each has a slot; None where that cannot be."""


def plan_rows(
    tokens: Tensor,
    cuts: Mapping[int, Cut],
    pure: Tensor | None,
    capacity: Tensor | int,
    impure: Tensor,
    categories: int,
) -> RowPlan:
    """The plan of a picture, with *capacity* slots and *impure* (1,) int32 tokens that are not *pure* (n,) bool."""
    ones, zeros = torch.ones(1).expand(tokens.shape[0]), torch.zeros(1).expand(tokens.shape[0])
    grid = sort_grid(tokens, categories)
    if pure is None:
        return RowPlan(ones, zeros, grid, {})
    positions = tokens[:capacity]
    slots = plan_slots(tokens, positions, pure, impure, categories)
    slot_grid = sort_grid(positions, categories + 1)
    enough = not isinstance(capacity, int) or capacity == len(tokens)
    for_all = slots.limit == tokens.shape[0] if enough else None
    places = {shift: plan_places(slots, cut.place) for shift, cut in cuts.items()}
    return RowPlan(ones, zeros, grid, places, slots, slot_grid, for_all)
