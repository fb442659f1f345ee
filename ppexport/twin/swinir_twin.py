"""The static twin of SwinIR-light for one LR size.

Before (networks/swinir/swinir_light.py): shifted layers roll the image by half a window, and add -100 to the logits
between the pieces of opposite borders.

After: as for ATD-light, what the mask keeps apart is cut apart (`blocks`), and the scale of the queries and the mean of
the image are in weights and biases (`folded`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ppexport.device.mask import padded_size, reflect_index
from ppexport.errors import TwinError
from ppexport.networks.network import Network, Trace
from ppexport.networks.swinir.swinir_light import SwinBlock, SwinIRLight, SwinLayer
from ppexport.twin.blocks import BlockCut
from ppexport.twin.counting_sort import count_up
from ppexport.twin.folded import add_mean, scale_queries
from ppexport.twin.layers import Shared, StaticWindowAttention, image_of, tokens_of
from ppexport.twin.ort_swin import RowSwinGroup
from ppexport.twin.twin import StaticTwin


class StaticSwinAttention(StaticWindowAttention):
    """Window attention with its own projection to q, k and v."""

    def __init__(self, source: SwinLayer, size: tuple[int, int]) -> None:
        super().__init__(source.attn, size, source.shift)
        self.qkv = scale_queries(source.attn.qkv, source.attn.scale)

    def forward(self, z: Tensor, shared: Shared) -> Tensor:
        """Normed tokens (n, c) -> tokens (n, c)."""
        return super().forward(self.qkv(z), shared)


class StaticSwinLayer(nn.Module):
    """One layer."""

    def __init__(self, source: SwinLayer, size: tuple[int, int]) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = (copy.deepcopy(m) for m in (source.norm1, source.norm2, source.mlp))
        self.attn = StaticSwinAttention(source, size)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        x = x + self.attn(self.norm1(x), shared)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class StaticSwinGroup(nn.Module):
    """The layers of one block."""

    def __init__(self, source: SwinBlock, size: tuple[int, int]) -> None:
        super().__init__()
        layers = [layer for layer in source.residual_group.blocks if isinstance(layer, SwinLayer)]
        self.blocks = nn.ModuleList(StaticSwinLayer(layer, size) for layer in layers)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        for layer in self.blocks:
            x = layer(x, shared)
        return x


GROUPS: dict[str, type[StaticSwinGroup | RowSwinGroup]] = {"portable": StaticSwinGroup, "ort": RowSwinGroup}
"""What the blocks of a flavour are made of."""


class StaticSwinBlock(nn.Module):
    """Transformer layers, a 3x3 convolution and a residual connection."""

    def __init__(self, source: SwinBlock, size: tuple[int, int], flavour: str) -> None:
        super().__init__()
        self.size = size
        self.residual_group = GROUPS[flavour](source, size)
        self.conv = copy.deepcopy(source.conv)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        return tokens_of(self.conv(image_of(self.residual_group(x, shared), self.size))) + x


def check_reflection(arch: str, size: tuple[int, int], multiple: int) -> None:
    """Raise TwinError where images of *size* have too few pixels to be reflected up to multiples of *multiple*."""
    for side in size:
        padded = padded_size(side, multiple)
        if padded - side >= side:
            raise TwinError(
                f"{arch} pads a side of {side} pixels to {padded} by reflection, which needs more than half as many: "
                f"use {multiple // 2 + 1} pixels or more"
            )


class SwinIRTwin(StaticTwin):
    """The twin of SwinIR-light."""

    mean: Tensor
    high: Tensor
    low: Tensor

    def __init__(self, network: SwinIRLight, size: tuple[int, int], flavour: str) -> None:
        window = network.config.window
        padded = height, width = padded_size(size[0], window), padded_size(size[1], window)
        super().__init__(network, size, padded, height * width, flavour)
        self.cut, self.shifted_cut = (BlockCut(padded, window, shift) for shift in (0, window // 2))
        self.conv_first, self.patch_embed = copy.deepcopy(network.conv_first), copy.deepcopy(network.patch_embed)
        self.norm, self.conv_after_body = copy.deepcopy(network.norm), copy.deepcopy(network.conv_after_body)
        blocks = [block for block in network.layers if isinstance(block, SwinBlock)]
        self.layers = nn.ModuleList(StaticSwinBlock(block, padded, flavour) for block in blocks)
        last = network.upsample[0]
        assert isinstance(last, nn.Conv2d)
        self.upsample = nn.Sequential(add_mean(last, network.mean, self.scale), nn.PixelShuffle(self.scale))
        self.register_buffer("mean", network.mean.detach().clone())
        for name, value in zip(("high", "low"), count_up(self.tokens), strict=True):
            self.register_buffer(name, value)
        self.pad_by(reflect_index)

    def forward(
        self,
        lr: Tensor,
        mask: Tensor | None = None,
        slots: Tensor | None = None,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `StaticTwin.forward`; there is nothing to route."""
        self.check_lr(lr)
        if mask is not None or slots is not None or categories is not None:
            raise ValueError("swinir_light takes no mask, no slots and no categories")
        tokens = (self.high + self.low).view(-1)
        shared = Shared(tokens, {cut.shift: cut for cut in (self.cut(tokens), self.shifted_cut(tokens))}, None)
        first = self.conv_first(self.pad(lr) - self.mean)
        x = self.patch_embed(first).squeeze(0)
        for block in self.layers:
            x = block(x, shared)
        deep = self.conv_after_body(image_of(self.norm(x), self.padded)) + first
        sr = self.upsample(deep)[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale]
        return sr, torch.zeros(1, dtype=torch.int32)


def make_swinir_twin(network: Network, size: tuple[int, int], capacity: int | None, flavour: str) -> SwinIRTwin:
    """The twin of *network*, as `make_twin`; *size* is checked."""
    if not isinstance(network, SwinIRLight):
        raise TwinError(f"no static rewrite is known for {type(network).__name__}: use swinir_light")
    if capacity is not None:
        raise TwinError("swinir_light routes nothing: leave the capacity out")
    check_reflection(network.arch, size, network.config.window)
    return SwinIRTwin(network, size, flavour).eval()
