"""The portable layer with heads of a multiple of 8 channels, for runtimes whose fused attention needs that.

Before (layers.py), in ATD-light: q, k, v (groups, 4, area, 12) from wqkv (144, 48), output projections (48, 48).

After: zero rows in wqkv and zero columns in the projections pad every head:

    wqkv (192, 48) -> q, k, v (groups, 4, area, 16) -> attention -> (n, 64) -> proj (48, 64)

q . k gains products of zeros, v gains channels that are zero and that the projection does not read: the result is
exact. A runtime that pads on its own (TensorRT-RTX 1.7 does, for fp16) copies q, k and v once more in every layer: at
32x32 it builds 1100 kernels for heads of 12 and 1028 for these.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ppexport.networks.atd.atd_light import TransformerLayer
from ppexport.twin.layers import PortableLayer

STEP = 8


def padded_width(width: int) -> int:
    """Channels of a padded head for one of *width*."""
    return -(-width // STEP) * STEP


def pad_rows(linear: nn.Linear, groups: int) -> nn.Linear:
    """A copy of *linear* whose output is *groups* heads, each padded with zeros."""
    width = linear.out_features // groups
    wide = padded_width(width)
    padded = nn.Linear(linear.in_features, groups * wide)
    with torch.no_grad():
        padded.weight.zero_().view(groups, wide, -1)[:, :width] = linear.weight.view(groups, width, -1)
        padded.bias.zero_().view(groups, wide)[:, :width] = linear.bias.view(groups, width)
    return padded


def pad_columns(linear: nn.Linear, heads: int) -> nn.Linear:
    """A copy of *linear* that reads *heads* padded heads, and ignores the padding."""
    width = linear.in_features // heads
    wide = padded_width(width)
    padded = nn.Linear(heads * wide, linear.out_features)
    with torch.no_grad():
        rows = linear.out_features
        padded.weight.zero_().view(rows, heads, wide)[:, :, :width] = linear.weight.view(rows, heads, width)
        padded.bias.copy_(linear.bias)
    return padded


class PaddedLayer(PortableLayer):
    """A layer for TensorRT."""

    def _add_attention(self, source: TransformerLayer, size: tuple[int, int], dense: bool) -> None:
        padded = copy.deepcopy(source)
        self.heads = source.attn_win.heads
        # A plain number, so that what is traced holds no arithmetic on shapes.
        self.width = source.attn_win.proj.in_features // self.heads
        padded.wqkv = pad_rows(source.wqkv, 3 * self.heads)
        for attention in (padded.attn_win, padded.attn_aca):
            attention.proj = pad_columns(attention.proj, self.heads)
        super()._add_attention(padded, size, dense)

    def _values(self, qkv: Tensor, channels: int) -> Tensor:
        """v of all heads (n, c) without its padding."""
        wide = padded_width(self.width)
        v = qkv[:, 2 * self.heads * wide :].view(-1, self.heads, wide)
        return v[:, :, : self.width].reshape(-1, channels)
