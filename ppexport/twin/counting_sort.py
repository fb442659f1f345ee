"""A stable sort of few keys, without Sort, TopK, NonZero, CumSum or a data-dependent shape.

Before (networks/atd/attention.py):

    order = keys.argsort(stable=True)                               # (n,) token in every rank

After:

    same  = keys[i] == keys[j] and j before i, inside blocks of 32 tokens -> rank inside the block
    less  = how many keys of every block are smaller than each key  # (blocks, K + 1)
    before = exclusive running sum of less over the blocks          # (blocks, K + 1)
    start = before[:, 1:] - before[:, :-1] + sum of less over all blocks
                                                                    # (blocks, K) equal keys in earlier blocks, and
                                                                    # smaller keys anywhere
    destination = start[block, key] + rank inside the block         # (n,) rank of every token
    order[destination] = token                                      # one scatter

Counts are floats only up to 2048, where they are exact in TF32 and in fp16, in which some processors compute every
float: those of at most 64 blocks of 32 tokens. Larger ones are int32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = 32
"""Tokens compared pairwise; n is a multiple of 256."""
SPAN = 64
"""Rows of counts of at most 32 that are summed as floats."""


def count_up(size: int) -> tuple[Tensor, Tensor]:
    """Two small constants whose outer sum is 0 ... size - 1, so that no file holds a long range."""
    step = next(s for s in (256, 128, BLOCK) if size % s == 0)
    return torch.arange(0, size, step, dtype=torch.int32).unsqueeze(1), torch.arange(step, dtype=torch.int32)


def in_spans(counts: Tensor) -> Tensor:
    """*counts* (r, K) as equal parts (parts, at most 64, K)."""
    # Plain numbers, so that no arithmetic on shapes is traced.
    rows, keys = map(int, counts.shape)
    return counts.view(-1, next(size for size in range(min(rows, SPAN), 0, -1) if rows % size == 0), keys)


def total(counts: Tensor) -> Tensor:
    """(1, K) int32: the sum over the rows of *counts* (r, K), floats of at most 32 each."""
    return in_spans(counts).sum(dim=1).to(torch.int32).sum(dim=0, keepdim=True, dtype=torch.int32)


def prefix(counts: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Running sums over the rows of *counts* (r, K), floats of at most 32 each; *tokens* counts up from 0.

    Returns (r, K) int32, the sum over all rows before each, and (1, K) int32, that over all rows.
    """
    parts = in_spans(counts)
    number, size, _ = map(int, parts.shape)
    row = tokens[:size]
    before = ((row.unsqueeze(1) > row).float() @ parts).to(torch.int32)
    sums = parts.sum(dim=1).to(torch.int32)
    if number > 1:
        part = tokens[:number]
        # Products, since not every runtime can choose between integers.
        earlier = (part.unsqueeze(1) > part).to(torch.int32).unsqueeze(-1)
        before = before + (earlier * sums).sum(dim=1, keepdim=True, dtype=torch.int32)
        sums = sums.sum(dim=0, keepdim=True, dtype=torch.int32)
    return before.view(counts.shape), sums


class CountingSort(nn.Module):
    """Ranks of n tokens by an integer key in [0, keys); ties keep the order of the tokens."""

    values: Tensor

    def __init__(self, tokens: int, keys: int) -> None:
        super().__init__()
        if tokens % BLOCK:
            raise ValueError(f"a counting sort takes a multiple of {BLOCK} tokens, not {tokens}")
        self.keys = keys
        self.register_buffer("values", torch.arange(keys + 1, dtype=torch.int32))

    def forward(self, keys: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """*keys* (n,) int32 and *tokens* = 0 ... n - 1, int32 -> (n,) int32, twice.

        The first is the rank of every token, its destination; the second the order, its inverse.
        """
        blocks = keys.view(-1, BLOCK)
        row = tokens[:BLOCK]
        same = (blocks.unsqueeze(2) == blocks.unsqueeze(1)) & (row.unsqueeze(1) > row)
        inside = same.float().sum(dim=2).to(torch.int32)
        less = (self.values > blocks.unsqueeze(2)).float().sum(dim=1)
        before, everywhere = prefix(less, tokens)
        start = before[:, 1:] - before[:, :-1] + everywhere[:, :-1]
        cell = tokens[: blocks.shape[0]].unsqueeze(1) * self.keys + blocks
        destination = start.view(-1).index_select(0, cell.view(-1)) + inside.view(-1)
        # Every place is written, so what the scatter starts from does not matter.
        order = tokens.scatter(0, destination.long(), tokens)
        return destination, order
