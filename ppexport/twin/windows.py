"""Which windows attend, without a data-dependent shape.

Before (networks/swinir, networks/camixer): a boolean mask over k windows, and lists as long as m of them are hard.

After: hard windows come first, each kind in the order of the image, and C slots read the first C:

    before[i] = how many hard windows come before window i             (k,) int32
    rank[i]   = before[i] where i is hard, else m + i - before[i]      (k,) int32
    order     = 0 ... k - 1, scattered to rank
    source[p] = order[p]                                               the window that slot p reads
    result[i] = slots[min(rank[i], C - 1)] where rank[i] < min(m, C), else what an easy window takes

C is fixed when the twin is built, or, in a capacity set, follows from the length of the input `slots`. Slots past the
last hard window are computed and never read. With fewer slots than hard windows the surplus ones are taken as easy,
which the output `impure_tokens` shows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppexport.device.mask import least_pure
from ppexport.twin.blocks import Kind, to_blocks
from ppexport.twin.counting_sort import prefix


class WindowSlots(NamedTuple):
    """Which windows C slots read, and where every window finds its result."""

    source: Tensor
    """(C,) int32: the window that every slot reads."""
    slot: Tensor
    """(k,) int32: the slot of every window that attends; any slot for the others."""
    attends: Tensor
    """(k,) bool."""
    hard: Tensor
    """(1,) int32: m, how many windows should attend."""

    def read(self, windows: Tensor) -> Tensor:
        """The slots (C, area, c) of *windows* (k, area, c)."""
        return windows.index_select(0, self.source)

    def write(self, slots: Tensor, easy: Tensor) -> Tensor:
        """*slots* (C, area, c) in the windows that attend, *easy* (k, area, c), or a number (), in the others."""
        return torch.where(self.attends.view(-1, 1, 1), slots.index_select(0, self.slot), easy)


def hard_windows_of(pure: Tensor, size: tuple[int, int], kind: Kind, share: float) -> Tensor:
    """(k,) bool: the windows of *kind* with less than *share* of their pixels *pure* (n,), in an image of *size*."""
    counts = to_blocks(pure.float().view(*size, 1), kind).sum(dim=1).view(-1)
    return counts < least_pure(share, kind.area)


def count_slots(tokens: Tensor, windows: int, area: int, capacity: Tensor | int) -> Tensor:
    """0 ... C - 1 (C,) int32: as many as *capacity* tokens hold of so many *windows* of *area* tokens.

    *tokens* = 0 ... at least windows * area - 1, int32. *capacity* may be a traced length: what is read off the tokens
    needs no arithmetic on shapes, and a slice ends at the last window.
    """
    return torch.div(tokens[: windows * area][:capacity].view(-1, area)[:, 0], area, rounding_mode="trunc")


def plan_windows(hard: Tensor, windows: Tensor, positions: Tensor) -> WindowSlots:
    """The slots of the *hard* (k,) bool of *windows* = 0 ... k - 1, int32; *positions* = 0 ... C - 1, int32."""
    before, m = (found.view(-1) for found in prefix(hard.float().unsqueeze(1), windows))
    easy = (~hard).to(torch.int32)
    # Arithmetic, since not every runtime can choose between integers.
    rank = before + easy * (m + windows - 2 * before)
    order = windows.scatter(0, rank.long(), windows)
    last = positions[-1:]
    limit = torch.minimum(m, last + 1)
    return WindowSlots(order.index_select(0, positions), torch.minimum(rank, last), rank < limit, m)


class WindowPlan(nn.Module):
    """`plan_windows` in a module of its own, so that its counts stay fp32 where a mixer's products are fp16."""

    def forward(self, hard: Tensor, windows: Tensor, positions: Tensor) -> WindowSlots:
        """As `plan_windows`."""
        return plan_windows(hard, windows, positions)
