"""The layers of a twin: one image, tokens (n, c), the module names of the network so that node names tell the layer.

Before (networks/atd.py): batched tokens, boolean masks, lists whose length depends on the data.
After: the same sums with `routing`, `windows`, `window_bias` and `folded` in place of the dynamic parts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppexport.networks.atd import Block, ConvFFN, Trace, TransformerLayer
from ppexport.networks.attention import CategoryAttention, DictionaryAttention, WindowAttention
from ppexport.networks.pp_atd import PPTransformerLayer
from ppexport.networks.routing import GROUP_SIZE
from ppexport.twin.counting_sort import CountingSort
from ppexport.twin.folded import category_scale, dictionary_temperature, position_table, scale_queries
from ppexport.twin.routing import Router, Slots
from ppexport.twin.windows import merge, partition, roll


@dataclass
class Shared:
    """Tensors that all layers of one run share."""

    tokens: Tensor
    """(n,) int32: 0 ... n - 1."""
    index: Tensor
    """(256, 256) int32: rows of the position bias tables."""
    mask: Tensor
    """(windows, 1, 256, 256) fp32: mask of shifted windows."""
    pure: Tensor | None
    """(n,) bool, None for a network without Pure-Pass."""
    slots: Slots | None
    """The slots of category attention, None for a network without Pure-Pass."""
    forced: Tensor | None = None
    """(layers, n) int32: categories to use in place of the token's own choice."""
    trace: Trace | None = None
    """Filled with what every layer chose and computed."""


def heads_of(qkv: Tensor, size: int, heads: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(groups * size, 3 * channels) -> q, k, v of (groups, heads, size, channels / heads), by one rank-5 permutation.

    All lengths but the number of groups are plain numbers, so that a symbolic number of slots leaves no shape
    arithmetic in the graph.
    """
    q, k, v = qkv.view(-1, size, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


class StaticDictionaryAttention(nn.Module):
    """ATD-CA for one image."""

    temperature: Tensor

    def __init__(self, source: DictionaryAttention) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (copy.deepcopy(m) for m in (source.wq, source.wk, source.wv))
        self.register_buffer("temperature", dictionary_temperature(source))

    def forward(self, z: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, c), dictionary (t, c) -> output (n, c), similarity (n, t)."""
        q = self.wq(z)
        q = q / q.pow(2).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        k = self.wk(dictionary)
        k = k / k.pow(2).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12) * self.temperature
        similarity = (q @ k.t()).softmax(dim=1)
        return similarity @ self.wv(dictionary), similarity


class StaticCategoryAttention(nn.Module):
    """AC-MSA on a fixed number of slots: gather, attend in groups of 128, project, gather back."""

    def __init__(self, source: CategoryAttention, tokens: int, categories: int, dense: bool, folded: float) -> None:
        super().__init__()
        self.heads, self.channels = source.heads, source.proj.in_features
        self.scale = category_scale(source, folded)
        self.dense = CountingSort(tokens, categories) if dense else None
        self.router = None if dense else Router(tokens, categories)
        self.proj = copy.deepcopy(source.proj)

    def attend(self, slots: Tensor) -> Tensor:
        """qkv of the slots (C, 3c) -> mixed and projected (C, c)."""
        q, k, v = heads_of(slots, GROUP_SIZE, self.heads, self.channels)
        weights = (q * self.scale @ k.transpose(2, 3)).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(-1, self.channels)
        out: Tensor = self.proj(mixed)
        return out

    def forward(self, qkv: Tensor, categories: Tensor, rest: Tensor | None, shared: Shared) -> Tensor:
        """*qkv* (n, 3c), *categories* (n,) int32, *rest* (n, c) or None for zeros -> branch output (n, c)."""
        if self.router is None or shared.pure is None or shared.slots is None:
            assert self.dense is not None
            slot, source = self.dense(categories, shared.tokens)
            return self.attend(qkv.index_select(0, source)).index_select(0, slot)
        routes = self.router(categories, shared.pure, shared.slots, shared.tokens)
        mixed = self.attend(qkv.index_select(0, routes.source)).index_select(0, routes.slot)
        return torch.where(routes.routed, mixed, torch.zeros(()) if rest is None else rest)


class StaticWindowAttention(nn.Module):
    """SW-MSA for one image; the query scale is folded into wqkv."""

    relative_position_bias_table: Tensor

    def __init__(self, source: WindowAttention, size: tuple[int, int], shift: int) -> None:
        super().__init__()
        self.window, self.heads, self.size, self.shift = source.window, source.heads, size, shift
        self.proj = copy.deepcopy(source.proj)
        self.register_buffer("relative_position_bias_table", position_table(source))

    def forward(self, qkv: Tensor, shared: Shared) -> Tensor:
        """*qkv* (n, 3c) -> branch output (n, c)."""
        h, w = self.size
        image = qkv.view(h, w, -1)
        if self.shift:
            image = roll(image, -self.shift)
        area = self.window * self.window
        q, k, v = heads_of(partition(image, self.window), area, self.heads, self.proj.in_features)
        bias = self.relative_position_bias_table.index_select(1, shared.index.view(-1)).view(1, self.heads, area, area)
        logits = q @ k.transpose(2, 3) + bias
        if self.shift:
            logits = logits + shared.mask
        mixed = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, area, qkv.shape[1] // 3)
        out = merge(self.proj(mixed), self.window, h, w)
        if self.shift:
            out = roll(out, self.shift)
        return out.reshape(h * w, -1)


class StaticLayer(nn.Module):
    """One transformer layer; `dictionary` is refined unless the layer is the last of its block."""

    s: Tensor
    rest: Tensor

    def __init__(self, source: TransformerLayer, size: tuple[int, int], dense: bool) -> None:
        super().__init__()
        attention = source.attn_win
        self.size = size
        self.norm1, self.norm2 = copy.deepcopy(source.norm1), copy.deepcopy(source.norm2)
        self.wqkv = scale_queries(source.wqkv, attention.scale)
        self.attn_win = StaticWindowAttention(attention, size, source.shift)
        self.attn_atd = StaticDictionaryAttention(source.attn_atd)
        self.attn_aca = StaticCategoryAttention(
            source.attn_aca, size[0] * size[1], source.attn_atd.dictionary_tokens, dense, attention.scale
        )
        self.convffn: ConvFFN = copy.deepcopy(source.convffn)
        self.compensation = source.kind if isinstance(source, PPTransformerLayer) else "zero"
        self.refines = source.refines
        if source.refines:
            self.norm3 = copy.deepcopy(source.norm3)
            s = source.sigma.detach().sigmoid()
            self.register_buffer("s", s)
            self.register_buffer("rest", 1 - s)

    def compensate(self, z: Tensor, qkv: Tensor) -> Tensor | None:
        """What pure tokens take instead of category attention: (n, c), or None for zeros."""
        if self.compensation == "value":
            return qkv[:, 2 * z.shape[1] :]
        return z if self.compensation == "normed" else None

    def forward(self, x: Tensor, dictionary: Tensor, shared: Shared, layer: int) -> tuple[Tensor, Tensor]:
        """Tokens (n, c), dictionary (t, c) -> both, for the next layer."""
        z = self.norm1(x)
        qkv = self.wqkv(z)
        from_dictionary, similarity = self.attn_atd(z, dictionary)
        categories = own = similarity.argmax(dim=1).to(torch.int32)
        if shared.forced is not None:
            categories = shared.forced[layer]
        from_category = self.attn_aca(qkv, categories, self.compensate(z, qkv), shared)
        x = x + self.attn_win(qkv, shared) + from_dictionary + from_category
        x = x + self.convffn(self.norm2(x).unsqueeze(0), self.size).squeeze(0)
        if self.refines:
            weights = self.norm3(similarity.t().unsqueeze(0)).squeeze(0).softmax(dim=1)
            dictionary = self.s * dictionary + self.rest * (weights @ x)
        if shared.trace is not None:
            shared.trace.choose(similarity, own)
            shared.trace.tokens.append(x)
        return x, dictionary


class StaticGroup(nn.Module):
    """The layers of one block and their dictionary."""

    def __init__(self, source: Block, size: tuple[int, int], dense: bool) -> None:
        super().__init__()
        group = source.residual_group
        self.td = nn.Parameter(group.td.detach().clone())
        self.layers = nn.ModuleList(
            StaticLayer(layer, size, dense) for layer in group.layers if isinstance(layer, TransformerLayer)
        )

    def forward(self, x: Tensor, shared: Shared, first: int) -> Tensor:
        """Tokens (n, c) -> tokens (n, c); *first* is the network-wide number of the first layer."""
        dictionary: Tensor = self.td
        for i, layer in enumerate(self.layers):
            x, dictionary = layer(x, dictionary, shared, first + i)
        return x


class StaticBlock(nn.Module):
    """Six layers, a 3x3 convolution and a residual connection."""

    def __init__(self, source: Block, size: tuple[int, int], dense: bool) -> None:
        super().__init__()
        self.size = size
        self.residual_group = StaticGroup(source, size, dense)
        self.conv = copy.deepcopy(source.conv)

    def forward(self, x: Tensor, shared: Shared, first: int) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        y = self.residual_group(x, shared, first)
        return tokens_of(self.conv(image_of(y, self.size))) + x


def image_of(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (n, c) -> image (1, c, h, w)."""
    return tokens.t().reshape(1, tokens.shape[1], *size)


def tokens_of(image: Tensor) -> Tensor:
    """Image (1, c, h, w) -> tokens (n, c)."""
    return image.reshape(image.shape[1], -1).t()
