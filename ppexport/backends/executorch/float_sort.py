"""The counting sort in operators that XNNPACK has.

Before (twin/counting_sort.py): keys are compared as integers, which gives n * 97 truth values that are made numbers and
summed; the sums are int32. XNNPACK has no integers, and ExecuTorch's own kernels take a third of a layer's time for
them.

After: keys and counts are fp32, which is exact for as many tokens as it is built for, since XNNPACK computes an fp32
program in fp32. For whole numbers

    a == b    is    max(1 - |a - b|, 0)

and every sum is a product with constants, so all of it is one subgraph:

    hist[k, b]   = how often key k occurs in block b
    start[k, b]  = sum of hist[k, :b] + sum of hist[:k, :]          blocks in spans of 64 at most, then the spans
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.errors import ExportError
from ppexport.twin.counting_sort import BLOCK, SPAN, CountingSort

LARGEST = 1 << 24
"""fp32 counts exactly below this many tokens."""


class FloatSort(CountingSort):
    """As `CountingSort`, whose ranks and order it gives."""

    numbers: Tensor

    def __init__(self, source: CountingSort, tokens: int) -> None:
        """Raises ExportError where fp32 does not count so many *tokens*."""
        super().__init__(tokens, source.keys)
        if tokens >= LARGEST:
            raise ExportError(f"{tokens} tokens are more than fp32 counts exactly: export a smaller size")
        count = tokens // BLOCK
        span = next(size for size in range(min(count, SPAN), 0, -1) if count % size == 0)
        self.spans = count // span, span
        self.register_buffer("numbers", torch.arange(source.keys).float().view(-1, 1, 1))
        # Rows of ones before the diagonal sum what comes before.
        for name, length in (("tokens", BLOCK), ("keys", source.keys), ("blocks", span), ("parts", count // span)):
            self.register_buffer(f"earlier_{name}", torch.ones(length, length).tril(-1))
            self.register_buffer(f"all_{name}", torch.ones(1, length))

    def forward(self, keys: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `CountingSort.forward`."""
        blocks = keys.view(-1, BLOCK)
        count, numbers, constant = blocks.shape[0], blocks.float(), self.get_buffer
        same = equal(numbers.view(count, BLOCK, 1), numbers.view(count, 1, BLOCK)) * constant("earlier_tokens")
        inside = F.linear(same, constant("all_tokens")).view(-1).to(torch.int32)
        hist = F.linear(equal(numbers.view(1, count, BLOCK), self.numbers), constant("all_tokens"))
        parts = hist.view(-1, *self.spans)
        sums = F.linear(parts, constant("all_blocks")).view(-1, self.spans[0])
        smaller = F.linear(F.linear(sums, constant("all_parts")).view(1, -1), constant("earlier_keys"))
        across = F.linear(sums, constant("earlier_parts")).view(-1, self.spans[0], 1) + smaller.view(-1, 1, 1)
        start = F.linear(parts, constant("earlier_blocks")) + across
        cell = blocks * count + tokens[:count].view(count, 1)
        # Added as integers: between a gather and a scatter an XNNPACK operator would be a subgraph of its own.
        destination = start.view(-1).index_select(0, cell.view(-1)).to(torch.int32) + inside
        return destination, tokens.scatter(0, destination.long(), tokens)


def equal(a: Tensor, b: Tensor) -> Tensor:
    """1 where the whole numbers *a* and *b* are the same, else 0."""
    return (1.0 - (a - b).abs()).relu()
