"""Which entries of a position bias table a block of tokens uses.

Before (networks/attention.py): a stored index (256, 256) int64 of 512 KiB, and a gather that exporters fold to 1 MiB
per layer.

After: the index comes out of one number per token inside the graph, once for all layers that share it, for blocks of
any size up to a window:

    index = base[i] - base[j] + 480,   base = 31 * y + x                              (area,) int32
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppexport.twin.blocks import Kind


class PositionIndex(nn.Module):
    """The row of the bias table for every pair of tokens in blocks of one kind: int32 (area * area,)."""

    base: Tensor

    def __init__(self, kind: Kind, window: int) -> None:
        super().__init__()
        side = 2 * window - 1
        y, x = torch.meshgrid(torch.arange(kind.height), torch.arange(kind.width), indexing="ij")
        self.center = (window - 1) * (side + 1)
        self.register_buffer("base", (y * side + x).flatten().to(torch.int32))

    def forward(self) -> Tensor:
        """Computed in the graph."""
        return (self.base.unsqueeze(1) - self.base.unsqueeze(0) + self.center).view(-1)
