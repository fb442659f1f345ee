"""A stable sort of few keys, without Sort, TopK, NonZero, CumSum or a data-dependent shape.

Before (networks/atd/attention.py):

    order = keys.argsort(stable=True)                               # (n,) token in every rank

After:

    same  = keys[i] == keys[j] and j before i, inside blocks of 32 tokens -> rank inside the block
    hist  = how often every key occurs in every block               # (blocks, K)
    start = exclusive prefix of hist over the blocks, plus the exclusive prefix of its totals over the keys
    destination = start[block, key] + rank inside the block         # (n,) rank of every token
    order[destination] = token                                      # one scatter

Counts are fp32: they are exact to 2^24 tokens, and the operands of every matmul are at most 128, so TF32, which keeps
11 bits, would not change them. Sums of larger counts are sums, never matmuls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 32
"""Tokens compared pairwise; n is a multiple of 256."""
SPAN = 128
"""Blocks whose counts one triangular matmul sums."""
LARGEST = 1 << 24
"""fp32 counts exactly below this many tokens."""


def count_up(size: int) -> tuple[Tensor, Tensor]:
    """Two small constants whose outer sum is 0 ... size - 1, so that no file holds a long range."""
    step = next(s for s in (256, 128, BLOCK) if size % s == 0)
    return torch.arange(0, size, step, dtype=torch.int32).unsqueeze(1), torch.arange(step, dtype=torch.int32)


def sum_before(x: Tensor, tokens: Tensor) -> Tensor:
    """Exclusive running sum over the rows of *x* (r, K), for counts of any size: masked sums, no matmul."""
    rows = tokens[: x.shape[0]]
    before = (rows.unsqueeze(1) > rows).unsqueeze(-1)
    return torch.where(before, x.unsqueeze(0), torch.zeros(())).sum(dim=1)


def prefix(counts: Tensor, tokens: Tensor) -> Tensor:
    """Exclusive running sum over the rows of *counts* (r, K), each at most 128. *tokens* counts up from 0."""
    rows, keys = counts.shape
    span = tokens[: min(rows, SPAN)]
    before = (span.unsqueeze(1) > span).float()
    if rows <= SPAN:
        return before @ counts
    padded = F.pad(counts, (0, 0, 0, -rows % SPAN)).view(-1, SPAN, keys)
    across = sum_before(padded.sum(dim=1), tokens)
    return (before @ padded + across.unsqueeze(1)).view(-1, keys)[:rows]


class CountingSort(nn.Module):
    """Ranks of n tokens by an integer key in [0, keys); ties keep the order of the tokens."""

    values: Tensor

    def __init__(self, tokens: int, keys: int) -> None:
        super().__init__()
        if tokens % BLOCK or tokens >= LARGEST:
            raise ValueError(f"a counting sort takes a multiple of {BLOCK} tokens below {LARGEST}, not {tokens}")
        self.keys = keys
        self.register_buffer("values", torch.arange(keys, dtype=torch.int32))

    def forward(self, keys: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """*keys* (n,) int32 and *tokens* = 0 ... n - 1, int32 -> (n,) int32, twice.

        The first is the rank of every token, its destination; the second the order, its inverse.
        """
        blocks = keys.view(-1, BLOCK)
        row = tokens[:BLOCK]
        same = (blocks.unsqueeze(2) == blocks.unsqueeze(1)) & (row.unsqueeze(1) > row)
        inside = same.float().sum(dim=2)
        hist = (blocks.unsqueeze(2) == self.values).float().sum(dim=1)
        totals = hist.sum(dim=0).unsqueeze(1)
        start = prefix(hist, tokens) + sum_before(totals, tokens).view(1, -1)
        cell = tokens[: blocks.shape[0]].unsqueeze(1) * self.keys + blocks
        first = start.view(-1).index_select(0, cell.view(-1))
        destination = (first + inside.view(-1)).to(torch.int32)
        # Every place is written, so what the scatter starts from does not matter.
        order = tokens.scatter(0, destination.long(), tokens)
        return destination, order
