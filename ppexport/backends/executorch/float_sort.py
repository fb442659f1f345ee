"""The counting sort with its large comparisons in operators that XNNPACK has.

Before (twin/counting_sort.py): keys are compared as integers, which gives n * 97 truth values that are made numbers and
summed. XNNPACK has no integers, and ExecuTorch's own kernels take a third of a layer's time for them.

After: keys are fp32, which is exact, and for whole numbers

    a == b    is    max(1 - |a - b|, 0)

so both sums are XNNPACK's. What is left of integers has n numbers, not n * 97.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.twin.counting_sort import BLOCK, CountingSort, prefix


class FloatSort(CountingSort):
    """As `CountingSort`, whose ranks and order it gives."""

    numbers: Tensor
    smaller: Tensor
    ones: Tensor

    def __init__(self, source: CountingSort) -> None:
        # The number of tokens was checked when *source* was made.
        super().__init__(BLOCK, source.keys)
        self.register_buffer("numbers", self.values[:-1].float().unsqueeze(1))
        self.register_buffer("smaller", torch.ones(self.keys, self.keys).tril(-1))
        self.register_buffer("ones", torch.ones(1, BLOCK))

    def forward(self, keys: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `CountingSort.forward`."""
        blocks = keys.view(-1, BLOCK)
        count, row, numbers = blocks.shape[0], tokens[:BLOCK], blocks.float()
        earlier = (row.view(BLOCK, 1) > row).float()
        same = equal(numbers.view(count, BLOCK, 1), numbers.view(count, 1, BLOCK)) * earlier
        inside = F.linear(same, self.ones).view(-1).to(torch.int32)
        hist = F.linear(equal(numbers.view(count, 1, BLOCK), self.numbers), self.ones).view(count, self.keys)
        before, totals = prefix(hist, tokens)
        start = before + F.linear(totals.float(), self.smaller).to(torch.int32)
        cell = tokens[:count].view(count, 1) * self.keys + blocks
        destination = start.view(-1).index_select(0, cell.view(-1)) + inside
        return destination, tokens.scatter(0, destination.long(), tokens)


def equal(a: Tensor, b: Tensor) -> Tensor:
    """1 where the whole numbers *a* and *b* are the same, else 0."""
    return (1.0 - (a - b).abs()).relu()
