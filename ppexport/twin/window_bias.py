"""What is added to the logits of window attention: the position bias, and the mask of shifted windows.

Before (networks/attention.py): a stored index (256, 256) int64 of 512 KiB, a gather that exporters fold to 1 MiB per
layer, and a mask of 256 KiB for every window.

After: both come out of a few hundred numbers inside the graph, once for all layers that share them:

    index = base[i] - base[j] + 480,   base = 31 * y + x                              (256,) int32
    kinds = -100 where region[kind, i] != region[kind, j]                             (4, 1, 256, 256) fp32
    mask  = kinds[kind of window]         a window is inside, in the last column, in the last row, or in both
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PositionIndex(nn.Module):
    """The row of the bias table for every pair of positions in a window: int32 (window^2, window^2)."""

    base: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        side = 2 * window - 1
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        self.center = (window - 1) * (side + 1)
        self.register_buffer("base", (y * side + x).flatten().to(torch.int32))

    def forward(self) -> Tensor:
        """Computed in the graph."""
        return self.base.unsqueeze(1) - self.base.unsqueeze(0) + self.center


class ShiftMask(nn.Module):
    """0 inside one region of the shifted image and -100 across the wrap: fp32 (windows, 1, window^2, window^2)."""

    region: Tensor
    kind: Tensor

    def __init__(self, height: int, width: int, window: int, shift: int) -> None:
        super().__init__()
        wrapped = (torch.arange(window) >= window - shift).to(torch.int32)
        inside = torch.zeros_like(wrapped)
        rows = (inside, inside, wrapped, wrapped)
        columns = (inside, wrapped, inside, wrapped)
        region = torch.stack([(2 * r[:, None] + c[None, :]).flatten() for r, c in zip(rows, columns, strict=True)])
        last_row = torch.arange(height // window) == height // window - 1
        last_column = torch.arange(width // window) == width // window - 1
        kind = (2 * last_row[:, None].int() + last_column[None, :].int()).flatten()
        self.register_buffer("region", region)
        self.register_buffer("kind", kind.to(torch.int32))

    def forward(self) -> Tensor:
        """Computed in the graph, for all shifted layers."""
        differs = self.region.unsqueeze(2) != self.region.unsqueeze(1)
        kinds = torch.where(differs, torch.tensor(-100.0), torch.tensor(0.0)).unsqueeze(1)
        return kinds.index_select(0, self.kind)
