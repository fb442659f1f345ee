"""Which token sits in which slot of category attention (AC-MSA), for a batch with or without pure tokens.

Order: ascending category, ties by token position (a stable sort). Slot p of an image with m impure tokens reads the
sorted token r(p): q = p mod 2m, r = q if q < m else 2m-1-q, which is ATD's mirrored tail, defined also for small m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_SIZE = 128
"""Slots per attention group ("category_size" of the published configuration)."""


def group_size(tokens: int) -> int:
    """Slots per group for images of *tokens* tokens."""
    return min(tokens, GROUP_SIZE)


def mirror_slots(slots: Tensor, m: int) -> Tensor:
    """r(p) for slots p (int64) over *m* >= 1 sorted tokens."""
    q = slots % (2 * m)
    return torch.where(q < m, q, 2 * m - 1 - q)


@dataclass(frozen=True)
class Routes:
    """Slots of a batch, flattened over its images. Indices count tokens of the flattened batch (b * n)."""

    source: Tensor
    """(S,) token read by every slot; S is a multiple of the group size."""
    tokens: Tensor
    """(M,) the impure tokens, in slot order."""
    slots: Tensor
    """(M,) the slot that holds each of them."""


def route(categories: Tensor, pure: Tensor | None) -> Routes:
    """Routes for *categories* (b, n) int64 and *pure* (b, n) bool, True = skips the branch; None = no pure token."""
    b, n = categories.shape
    size = group_size(n)
    key = categories if pure is None else categories.masked_fill(pure, torch.iinfo(categories.dtype).max)
    order = key.argsort(dim=1, stable=True)
    counts = [n] * b if pure is None else (n - pure.sum(dim=1)).tolist()
    source, tokens, slots, start = [], [], [], 0
    for image, m in enumerate(counts):
        if m == 0:
            continue
        position = torch.arange(-(-m // size) * size, device=categories.device)
        ranked = order[image] + image * n
        source.append(ranked[mirror_slots(position, m)])
        tokens.append(ranked[:m])
        slots.append(position[:m] + start)
        start += len(position)
    if not source:
        empty = order.new_empty(0)
        return Routes(empty, empty, empty)
    return Routes(torch.cat(source), torch.cat(tokens), torch.cat(slots))
