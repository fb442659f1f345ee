"""The baseline: ATD-light with the least change that makes it export, as anyone would write it in an afternoon.

Everything is the network's own code (6-D window partition, cyclic shift, position bias by index, one projection for all
heads, branch output by index_copy) but for three places that keep the exporter from its work:

    argsort(categories, stable)   ->  sort of the unique keys category * n + token, which exports as TopK of all n
    shift mask made in place      ->  the same mask as a constant, added to the bias for every window
    mirror padding by the shape   ->  the same gather with constant indices, and only where there is something to pad

The exporter folds constants, as it does by default, so bias and mask of a shifted layer become one constant of
(windows, heads, 256, 256): the file has 237 MB at 64x64.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ppexport.backends.onnx.export_onnx import quiet_exporter
from ppexport.device.mask import mirror_index, padded_size
from ppexport.errors import ExportError, InputError, first_line
from ppexport.files import atomic_path
from ppexport.networks.atd.attention import (
    CategoryAttention,
    WindowAttention,
    attend,
    group_size,
    merge_heads,
    shift_mask,
    split_heads,
    window_merge,
    window_partition,
)
from ppexport.networks.atd.network import ATDLight, TransformerLayer
from ppexport.networks.atd.pp_network import PPATDLight

OPSET = 17


class PlainCategoryAttention(nn.Module):
    """AC-MSA of one picture (b = 1) without pure tokens; n is a multiple of 128, so no group is filled up."""

    def __init__(self, source: CategoryAttention) -> None:
        super().__init__()
        self.source = source

    def forward(
        self, qkv: Tensor, categories: Tensor, pure: Tensor | None = None, compensation: Tensor | None = None
    ) -> Tensor:
        """Branch output (1, n, c) of *qkv* (1, n, 3c) and *categories* (1, n)."""
        _, n, width = qkv.shape
        dim = width // 3
        keys = categories.view(n) * n + torch.arange(n)
        order = keys.sort().indices
        groups = qkv.view(n, width)[order].view(-1, group_size(n), width)
        q, k, v = split_heads(groups, self.source.heads)
        q = q * self.source.logit_scale.clamp(max=math.log(100)).exp()
        mixed = self.source.proj(merge_heads(attend(q, k, v)).view(n, dim))
        out: Tensor = mixed.new_zeros(n, dim).index_copy(0, order, mixed)
        return out.view(1, n, dim)


class PlainWindowAttention(nn.Module):
    """SW-MSA of one picture with the mask of every window as a constant."""

    mask: Tensor

    def __init__(self, source: WindowAttention, size: tuple[int, int], shift: int) -> None:
        super().__init__()
        self.source = source
        if shift:
            mask = shift_mask(*size, source.window, shift, torch.device("cpu")).unsqueeze(1)
            self.register_buffer("mask", mask, persistent=False)

    def forward(self, qkv: Tensor, size: tuple[int, int], shift: int, index: Tensor) -> Tensor:
        """Branch output (1, n, c) of *qkv* (1, n, 3c) for an image of *size*; *index* from relative_position_index."""
        b, n, width = qkv.shape
        (h, w), source = size, self.source
        image = qkv.view(b, h, w, width)
        if shift:
            image = image.roll((-shift, -shift), dims=(1, 2))
        q, k, v = split_heads(window_partition(image, source.window), source.heads)
        area = source.window * source.window
        bias = source.relative_position_bias_table[index.flatten()].view(area, area, source.heads).permute(2, 0, 1)
        if shift:
            bias = bias + self.mask
        mixed = source.proj(merge_heads(attend(q * source.scale, k, v, bias)))
        out = window_merge(mixed, source.window, h, w)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        return out.reshape(b, n, width // 3)


class PlainNetwork(nn.Module):
    """A copy of dense *network* that exports for LR pictures of *size* (h, w), before padding."""

    def __init__(self, network: ATDLight, size: tuple[int, int]) -> None:
        super().__init__()
        if isinstance(network, PPATDLight):
            raise InputError("the plain export is of atd_light: Pure-Pass has list lengths that depend on the picture")
        self.network = copy.deepcopy(network)
        self.size, self.padded = size, (padded_size(size[0]), padded_size(size[1]))
        for module in self.network.modules():
            if isinstance(module, TransformerLayer):
                # Same call, other class: the layers' own forward stays as it is.
                replaced: dict[str, nn.Module] = {
                    "attn_aca": PlainCategoryAttention(module.attn_aca),
                    "attn_win": PlainWindowAttention(module.attn_win, self.padded, module.shift),
                }
                for name, plain in replaced.items():
                    module.add_module(name, plain)

    def forward(self, lr: Tensor) -> Tensor:
        """*lr* (1, 3, h, w) in [0, 1] -> (1, 3, h * scale, w * scale), not clipped."""
        for axis, size, padded in zip((2, 3), self.size, self.padded, strict=True):
            if size != padded:
                lr = lr.index_select(axis, torch.from_numpy(mirror_index(size, padded)))
        height, width = (side * self.network.config.scale for side in self.size)
        out: Tensor = self.network(lr)
        return out[:, :, :height, :width] if self.size != self.padded else out


def export_plain(network: ATDLight, size: tuple[int, int], target: Path) -> None:
    """Write the plain ONNX of dense *network* for *size* (h, w) to *target*, atomically. Raises ExportError."""
    try:
        with torch.no_grad(), quiet_exporter(), atomic_path(target) as temporary:
            torch.onnx.export(
                PlainNetwork(network, size).eval(),
                (torch.rand(1, 3, *size),),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=True,
                input_names=["lr"],
                output_names=["sr"],
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        # A file beyond the 2 GB of protobuf is a RuntimeError or a ValueError.
        raise ExportError(f"the plain network does not export at {size[0]}x{size[1]}: {first_line(error)}") from None
