"""Which token every slot of category attention reads, and where every token finds its result.

Before (networks/atd/attention.py): a boolean mask, a stable argsort, and index lists whose length is the number of
impure tokens m.

After: pure tokens get the key past the last category, one counting sort orders all tokens, and C slots read

    source[p] = order[r(p)]           q = p mod 2m, r = min(q, 2m-1-q)                 (int32, from m)
    slot[i]   = rank[i]               where rank[i] < min(m, C); every other token is treated as pure

C is fixed when the twin is built, or, in a capacity set, the length of the input `slots`: nothing else depends on it,
and what that input holds is never read. Slots past the last group that holds an impure token are computed and never
read. With C >= m, in whole groups, this is the network's routing; with fewer slots the surplus tokens count as pure,
which the output `impure_tokens` shows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppexport.twin.counting_sort import CountingSort


class Slots(NamedTuple):
    """What the C slots are for one image, the same in all layers."""

    ranks: Tensor
    """(C,) int32: r(p), the rank among the sorted tokens that every slot reads."""
    limit: Tensor
    """(1,) int32: min(m, C), tokens of lower rank are mixed."""
    last: Tensor
    """(1,) int32: C - 1."""
    least: Tensor
    """(n,) int32: the key that a token has at least, which is past the last category where it is pure, else 0."""


def plan_slots(tokens: Tensor, capacity: Tensor | int, pure: Tensor, impure: Tensor, categories: int) -> Slots:
    """The slots of a picture with *pure* (n,) bool and *impure* (1,) int32 tokens that are not.

    *tokens* = 0 ... n - 1, int32; *capacity* may be a traced length.
    """
    positions = tokens[:capacity]
    # Read off the positions, so that a traced capacity needs no arithmetic on shapes.
    last = positions[-1:]
    # Minimum instead of clamp: TensorRT's Clip is for floats.
    limit = torch.minimum(impure, last + 1)
    return Slots(mirror_slots(positions, impure), limit, last, pure.to(torch.int32) * categories)


def mirror_slots(slots: Tensor, m: Tensor) -> Tensor:
    """r(p) for *slots* (C,) int32 over *m* (int32, scalar) sorted tokens; anything in range where m is 0."""
    m = torch.maximum(m, torch.ones_like(m))
    q = slots - torch.div(slots, 2 * m, rounding_mode="trunc") * (2 * m)
    return torch.minimum(q, 2 * m - 1 - q)


class Router(nn.Module):
    """Routes n tokens into slots by category, pure tokens left out."""

    def __init__(self, tokens: int, categories: int) -> None:
        super().__init__()
        self.sort = CountingSort(tokens, categories + 1)

    def forward(self, categories: Tensor, slots: Slots, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The routing of one layer.

        Args:
            categories: (n,) int32, of every token.
            slots: of the picture.
            tokens: 0 ... n - 1, int32.

        Returns:
            (C,) int32, the token that every slot reads; (n,) int32, the place of every token in the sorted order,
            which is its slot if it was mixed; (n,) bool, whether it was mixed: the others take the compensation.
        """
        # The larger of two keys, since not every runtime can choose between integers.
        rank, order = self.sort(torch.maximum(categories, slots.least), tokens)
        return order.index_select(0, slots.ranks), rank, rank < slots.limit
