"""The static twin of SwinIR-light and of Pure-Pass on it, for one LR size.

Before (networks/swinir/swinir_light.py): in shifted layers the image is rolled by half a window and -100 is added to
the logits between the pieces of opposite borders; the windows that Pure-Pass finds easy are left out of the batch.

After: what the mask keeps apart is cut apart (`blocks`): interior windows and, along the borders, blocks of half a
window. With Pure-Pass the whole windows are ordered by `CountingSort`, hard ones first, q and k are computed for the
first C of them only, and a gather by rank puts the results back:

    order, rank = sort(easy)          (k,)
    hard        = attention(z[order[:C]], v[order[:C]])                (C, 64, 60)
    mixed       = where(rank < hard windows, hard[rank], v)            (k, 64, 60)

The border blocks of a shifted layer are never easy, and always attend.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.swinir.swinir_light import SwinAttention, SwinBlock, SwinIRLight, SwinLayer
from ppexport.device.mask import padded_size
from ppexport.twin.counting_sort import count_up
from ppexport.twin.blocks import from_blocks, to_blocks
from ppexport.twin.folded import add_mean, position_table
from ppexport.twin.layers import heads_of, image_of, tokens_of
from ppexport.twin.shared import BlockCut, Cut
from ppexport.twin.twin import StaticTwin


class StaticSwinAttention(nn.Module):
    """Window attention of one image, every kind of block in a batch of its own."""

    relative_position_bias_table: Tensor

    def __init__(self, source: SwinAttention, size: tuple[int, int], shift: int) -> None:
        super().__init__()
        self.heads, self.size, self.shift = source.heads, size, shift
        self.qkv, self.proj = copy.deepcopy(source.qkv), copy.deepcopy(source.proj)
        with torch.no_grad():
            rows = self.proj.in_features
            self.qkv.weight[:rows] *= source.scale
            self.qkv.bias[:rows] *= source.scale
        table = source.relative_position_bias_table.detach().t().contiguous()
        self.register_buffer("relative_position_bias_table", table)

    def forward(self, z: Tensor, cut: Cut) -> Tensor:
        """Normed tokens (n, c) -> tokens (n, c)."""
        channels = self.proj.in_features
        image, mixed = self.qkv(z).view(*self.size, 3 * channels), []
        for kind, index in zip(cut.kinds, cut.indices, strict=True):
            q, k, v = heads_of(to_blocks(image, kind), kind.area, self.heads, channels)
            bias = self.relative_position_bias_table.index_select(1, index).view(1, self.heads, kind.area, kind.area)
            weights = (q @ k.transpose(2, 3) + bias).softmax(dim=-1)
            mixed.append((weights @ v).transpose(1, 2).reshape(-1, kind.area, channels))
        out: Tensor = self.proj(from_blocks(mixed, cut.kinds).reshape(-1, channels))
        return out


class StaticMlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = copy.deepcopy(source.fc1), copy.deepcopy(source.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class StaticSwinLayer(nn.Module):
    """One layer."""

    def __init__(self, source: SwinLayer, size: tuple[int, int]) -> None:
        super().__init__()
        self.shift = source.shift
        self.norm1, self.norm2 = copy.deepcopy(source.norm1), copy.deepcopy(source.norm2)
        self.attn = StaticSwinAttention(source.attn, size, source.shift)
        self.mlp = StaticMlp(source.mlp)

    def forward(self, x: Tensor, cuts: dict[int, Cut]) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        x = x + self.attn(self.norm1(x), cuts[self.shift])
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class StaticSwinGroup(nn.Module):
    """The layers of a block."""

    def __init__(self, source: SwinBlock, size: tuple[int, int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(StaticSwinLayer(layer, size) for layer in source.residual_group.blocks)

    def forward(self, x: Tensor, cuts: dict[int, Cut]) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        for layer in self.blocks:
            x = layer(x, cuts)
        return x


class StaticSwinBlock(nn.Module):
    """The layers, a 3x3 convolution and a residual connection."""

    def __init__(self, source: SwinBlock, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.residual_group = StaticSwinGroup(source, size)
        self.conv = copy.deepcopy(source.conv)

    def forward(self, x: Tensor, cuts: dict[int, Cut]) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        return tokens_of(self.conv(image_of(self.residual_group(x, cuts), self.size))) + x


def reflect_index(size: int, padded: int) -> Tensor:
    """Where each of *padded* positions reads along an axis of *size*: reflected without repeating the edge."""
    q = torch.arange(padded)
    return torch.where(q < size, q, 2 * (size - 1) - q).int()


class SwinIRTwin(StaticTwin):
    """The twin of SwinIR-light."""

    def __init__(self, network: SwinIRLight, size: tuple[int, int]) -> None:
        window = network.config.window
        padded = height, width = padded_size(size[0], window), padded_size(size[1], window)
        super().__init__(network, size, padded, height * width, "portable")
        self.cut, self.shifted_cut = (BlockCut(padded, window, shift) for shift in (0, window // 2))
        self.conv_first = copy.deepcopy(network.conv_first)
        self.patch_embed = copy.deepcopy(network.patch_embed)
        self.layers = nn.ModuleList(StaticSwinBlock(block, padded) for block in network.layers)
        self.norm = copy.deepcopy(network.norm)
        self.conv_after_body = copy.deepcopy(network.conv_after_body)
        self.upsample = nn.Sequential(
            add_mean(network.upsample[0], network.mean, self.scale), nn.PixelShuffle(self.scale)
        )
        self.register_buffer("mean", network.mean.detach().clone())
        for name, value in zip(("high", "low"), count_up(self.tokens), strict=True):
            self.register_buffer(name, value)
        for name, sides in (("rows", (size[0], height)), ("columns", (size[1], width))):
            self.register_buffer(name, reflect_index(*sides))

    def pad(self, lr: Tensor) -> Tensor:
        """Reflect (1, 3, h, w) up to multiples of 8, by two constant gathers."""
        if self.size[0] != self.padded[0]:
            lr = lr.index_select(2, self.rows)
        return lr if self.size[1] == self.padded[1] else lr.index_select(3, self.columns)

    def forward(self, lr, mask=None, slots=None, categories=None, trace=None):
        """As `StaticTwin.forward`."""
        padded = self.pad(lr)
        tokens = (self.high + self.low).view(-1)
        cuts = {cut.shift: cut for cut in (self.cut(tokens), self.shifted_cut(tokens))}
        first = self.conv_first(padded - self.mean)
        x = self.patch_embed(first).squeeze(0)
        for block in self.layers:
            x = block(x, cuts)
        deep = self.conv_after_body(image_of(self.norm(x), self.padded)) + first
        sr = self.upsample(deep)[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale]
        return sr, torch.zeros(1, dtype=torch.int32)
