"""Routing in the flavour `ort`: only the impure tokens are sorted, and only their results are written back.

Before (routing.py): all n tokens are sorted in every layer, pure ones behind the last category, and a gather over n
rows brings results, or what pure tokens take, to the tokens.

After: which tokens are impure is the same in all layers, so they are listed once,

    tokens[i] = the i-th impure token, then pure ones, C in all

and every layer sorts the C categories of that list. Slot p of C, with m' = min(m, C) and g the first slot of the last
group that holds an impure token,

    q of             order[p]                                  past m': order[g]
    k and v of       order[r(p)], mirrored at m'               past the last group: as in the last group
    writes its result to the token that its q is of, in place, over what pure tokens take.

Slots past m' so have the q, k and v of slot g and write the same row once more: no slot writes what is not a result,
and none needs a place to be thrown away. Where no token is impure, the one row that is written is put back.

With C >= 128 * ceil(m / 128) this is the network's routing. With fewer slots the impure tokens past the first C of the
picture count as pure, the same ones in all layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppexport.networks.routing import GROUP_SIZE
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
    return SortGrid(block, block[-1:] + 1, row.unsqueeze(1) > row, empty.view(-1), ones)


def sorted_places(keys: Tensor, grid: SortGrid) -> Tensor:
    """(C,) int64: where a stable sort by *keys* (C,) int32 puts every key.

    As `counting_sort`, with one histogram over keys and blocks, key by key, filled by a scatter: its exclusive running
    sum is where the keys of every block begin. Counts are fp32, exact to 2^24.
    """
    parts = keys.view(-1, BLOCK)
    same = (parts.unsqueeze(2) == parts.unsqueeze(1)) & grid.earlier
    inside = same.float().sum(dim=2).view(-1)
    cell = (keys * grid.blocks + grid.block).long()
    counts = grid.empty.scatter_add(0, cell, grid.ones)
    begin = counts.cumsum(dim=0) - counts
    return (begin.index_select(0, cell) + inside).long()


class Slots(NamedTuple):
    """What the C slots are for one picture, the same in all layers."""

    tokens: Tensor
    """(C,) int32: the impure tokens in their order, then pure ones."""
    past: Tensor
    """(C,) int32: 0 for impure ones, the key behind the last category for the others."""
    asks: Tensor
    """(C,) int32: the rank among the sorted tokens whose q a slot has, and where its result goes."""
    reads: Tensor
    """(C,) int32: the rank whose k and v it has."""
    some: Tensor
    """(1,) bool: whether any token is impure."""


def plan_slots(tokens: Tensor, positions: Tensor, pure: Tensor, impure: Tensor, categories: int) -> Slots:
    """The slots of a picture with *pure* (n,) bool and *impure* (1,) int32 tokens that are not.

    *tokens* = 0 ... n - 1 and *positions* = 0 ... C - 1, int32.
    """
    before = (~pure).float().cumsum(dim=0).to(torch.int32)
    place = torch.where(pure, impure + tokens - before, before - 1)
    listed = tokens.scatter(0, place.long(), tokens).index_select(0, positions)
    limit = torch.minimum(impure, positions[-1:] + 1)
    one = torch.ones_like(impure)
    group = torch.div(torch.maximum(limit, one) - 1, GROUP_SIZE, rounding_mode="trunc") * GROUP_SIZE
    lane = positions - torch.div(positions, GROUP_SIZE, rounding_mode="trunc") * GROUP_SIZE
    mixed = positions < limit
    zero = torch.zeros_like(impure)
    return Slots(
        tokens=listed,
        past=torch.where(mixed, zero, zero + categories),
        asks=torch.where(mixed, positions, group),
        reads=mirror_slots(torch.minimum(positions, group + lane), limit),
        some=impure > 0,
    )
