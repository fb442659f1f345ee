"""SwinIR-light (arXiv 2108.10257) and Pure-Pass on it, with the module names of published checkpoints.

A layer computes, on tokens x (b, n, c), where every second layer shifts its windows by half a window:

    x <- x + proj(attention(qkv(LayerNorm(x))))            inside windows of 8x8
    x <- x + fc2(GELU(fc1(LayerNorm(x))))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.errors import CheckpointError
from ppexport.networks.atd.attention import (
    attend,
    merge_heads,
    relative_position_index,
    shift_mask,
    split_heads,
    window_merge,
    window_partition,
)
from ppexport.networks.atd.atd_light import PatchNorm
from ppexport.networks.network import Network, Trace
from ppexport.networks.pure_pass import _uniform_windows as uniform_windows
from ppexport.networks.pure_pass import pixel_labels

if TYPE_CHECKING:
    from pydantic import BaseModel

Easy = dict[int, Tensor]
"""{shift: (b * k,) bool}: the windows of the grid of that shift that skip attention."""
RGB_MEAN = (0.4488, 0.4371, 0.4040)


@dataclass(frozen=True)
class SwinIRConfig:
    """The published configuration of SwinIR-light; only *scale* varies."""

    scale: int
    dim: int = 60
    depths: tuple[int, ...] = (6, 6, 6, 6)
    heads: int = 6
    window: int = 8
    hidden: int = 120


class SwinAttention(nn.Module):
    """Attention inside windows with a relative position bias."""

    relative_position_index: Tensor

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__()
        self.window, self.heads = config.window, config.heads
        self.scale = (config.dim // config.heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * config.window - 1) ** 2, config.heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # A published state dict holds this index, so it is a buffer and is checked when weights are loaded.
        self.register_buffer("relative_position_index", relative_position_index(config.window))
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, windows: Tensor, mask: Tensor | None, easy: Tensor | None = None) -> Tensor:
        """Windows (b * k, area, c) -> the same. *mask* (k, area, area) is added to the logits.

        Windows that are *easy* (b * k,) take their values in place of attention.
        """
        qkv = self.qkv(windows)
        hard = qkv if easy is None else qkv[~easy]
        q, k, v = split_heads(hard, self.heads)
        area = self.window**2
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(area, area, self.heads).permute(2, 0, 1)
        if mask is not None:
            whole = mask.repeat(windows.shape[0] // mask.shape[0], 1, 1)
            bias = bias + (whole if easy is None else whole[~easy]).unsqueeze(1)
        mixed = merge_heads(attend(q * self.scale, k, v, bias))
        if easy is not None:
            values = qkv[..., -windows.shape[-1] :]
            mixed = values.masked_scatter(~easy[:, None, None], mixed)
        out: Tensor = self.proj(mixed)
        return out


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwinLayer(nn.Module):
    """One transformer layer, its windows shifted by *shift* pixels."""

    def __init__(self, config: SwinIRConfig, shift: int) -> None:
        super().__init__()
        self.window, self.shift = config.window, shift
        self.norm1 = nn.LayerNorm(config.dim)
        self.attn = SwinAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = Mlp(config.dim, config.hidden)

    def forward(self, x: Tensor, size: tuple[int, int], easy: Tensor | None) -> Tensor:
        """Tokens (b, n, c) of an image of *size* -> tokens; *easy* (b * k,) tells the windows that skip attention."""
        b, n, c = x.shape
        image = self.norm1(x).view(b, *size, c)
        if self.shift:
            image = image.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(image, self.window)
        mask = shift_mask(*size, self.window, self.shift, x.device) if self.shift else None
        image = window_merge(self.attn(windows, mask, easy), self.window, *size)
        if self.shift:
            image = image.roll((self.shift, self.shift), dims=(1, 2))
        x = x + image.reshape(b, n, c)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SwinGroup(nn.Module):
    """The layers of one block, under their published names `blocks.*`."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinLayer(config, config.window // 2 if i % 2 else 0) for i in range(depth))

    def forward(self, x: Tensor, size: tuple[int, int], easy: Easy) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        for layer in self.blocks:
            x = layer(x, size, easy.get(layer.shift))
        return x


class SwinBlock(nn.Module):
    """Six layers, a 3x3 convolution and a residual connection."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        self.residual_group = SwinGroup(config, depth)
        self.conv = nn.Conv2d(config.dim, config.dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int], easy: Easy) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        b, _, c = x.shape
        image = self.residual_group(x, size, easy).transpose(1, 2).reshape(b, c, *size)
        out: Tensor = self.conv(image)
        return out.flatten(2).transpose(1, 2) + x


class SwinIRLight(Network):
    """SwinIR-light: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "swinir_light"
    mean: Tensor

    def __init__(self, scale: int, options: BaseModel | None = None) -> None:
        super().__init__(scale, options)
        self.config = config = SwinIRConfig(scale)
        self.conv_first = nn.Conv2d(3, config.dim, 3, padding=1)
        self.patch_embed = PatchNorm(config.dim)
        self.layers = nn.ModuleList(SwinBlock(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(config.dim)
        self.conv_after_body = nn.Conv2d(config.dim, config.dim, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(config.dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def easy_windows(self, padded: Tensor) -> Easy:
        """{shift: (b * k,) bool}, the windows of each grid that skip attention; SwinIR-light has none."""
        return {}

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """As `Network.forward`; there are no categories to inject."""
        h, w = x.shape[2:]
        window, scale = self.config.window, self.scale
        padded = reflect_pad(x, window)
        size = (padded.shape[2], padded.shape[3])
        easy = self.easy_windows(padded)
        first = self.conv_first(padded - self.mean)
        tokens = self.patch_embed(first)
        for block in self.layers:
            tokens = block(tokens, size, easy)
        deep = self.norm(tokens).transpose(1, 2).reshape(first.shape)
        out: Tensor = self.upsample(self.conv_after_body(deep) + first) + self.mean
        return out[:, :, : h * scale, : w * scale]

    def check_state(self, state: dict[str, Tensor], where: Path | str) -> None:
        """Raise CheckpointError for weights of another scale, or of another window."""


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """Reflect (b, c, h, w) to the right and to the bottom up to multiples of *multiple*, without repeating the edge."""
    h, w = x.shape[2:]
    return F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="reflect")


class PPSwinIRLight(SwinIRLight):
    """SwinIR-light in which windows of one label skip attention and take their own values."""

    arch = "pp_swinir_light"

    def easy_windows(self, padded: Tensor) -> Easy:
        """The pure windows of the grid of each shift; a window that wraps around the border is never pure."""
        labels = pixel_labels(padded, self.options.colors)
        window, half = self.config.window, self.config.window // 2
        regular = uniform_windows(labels, window)
        shifted = torch.zeros_like(regular)
        if min(labels.shape[1:]) > window:
            shifted[:, :-1, :-1] = uniform_windows(labels[:, half:-half, half:-half], window)
        return {0: regular.flatten(), half: shifted.flatten()}
