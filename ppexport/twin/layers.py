"""The layers of a twin: one image, tokens (n, c), the module names of the network so that node names tell the layer.

Before (networks/atd/atd_light.py): batched tokens, boolean masks, lists whose length depends on the data.
After: the same sums with `routing`, `blocks` and `folded` in place of the dynamic parts. How window and
category attention lay out their heads is the flavour's: here within every window, as accelerators like it; in
`ort_layers` inside the rows of the tokens, as a CPU kernel does.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.atd.atd_light import TransformerLayer
from ppexport.networks.atd.attention import CategoryAttention, DictionaryAttention, WindowAttention
from ppexport.networks.atd.convolutions import ConvFFN
from ppexport.networks.network import Trace
from ppexport.twin.blocks import Cut, from_blocks, to_blocks
from ppexport.twin.counting_sort import CountingSort
from ppexport.twin.folded import category_scale, dictionary_temperature, position_table, scale_queries
from ppexport.twin.ort_routing import RowPlan
from ppexport.twin.routing import Router, Slots, plan_slots
from ppexport.twin.windows import WindowSlots


def heads_of(qkv: Tensor, size: int, heads: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(groups * size, 3 * channels) -> q, k, v of (groups, heads, size, channels / heads), by one rank-5 permutation.

    All lengths but the number of groups are plain numbers, so that a symbolic number of slots leaves no shape
    arithmetic in the graph.
    """
    q, k, v = qkv.view(-1, size, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def image_of(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (n, c) -> image (1, c, h, w)."""
    return tokens.t().reshape(1, tokens.shape[1], *size)


def tokens_of(image: Tensor) -> Tensor:
    """Image (1, c, h, w) -> tokens (n, c)."""
    return image.reshape(image.shape[1], -1).t()


@dataclass
class Shared:
    """What all layers of one run share."""

    tokens: Tensor
    """(n,) int32: 0 ... n - 1."""
    cuts: dict[int, Cut]
    """By shift, 0 and half a window."""
    pure: Tensor | None
    """(n,) bool, None for a network without Pure-Pass."""
    slots: Slots | None = None
    """The slots of category attention in the portable flavour, None for a network without Pure-Pass."""
    condition: Tensor | None = None
    """What content-aware mixers know of every pixel (1, 4, h, w); None in networks without them."""
    windows: dict[tuple[int, int], WindowSlots] = field(default_factory=dict)
    """By shift and area: the slots of windows of which only hard ones attend."""
    rows: RowPlan | None = None
    """What the layers of the flavour `ort` share beside this."""
    forced: Iterator[Tensor] | None = None
    """For every layer (n,) int32: categories to use in place of the tokens' own choice."""
    trace: Trace | None = None
    """Filled with what every layer chose and computed."""


class StaticDictionaryAttention(nn.Module):
    """ATD-CA for one image; adds its output to the tokens, which is one operation with the product before it."""

    temperature: Tensor

    def __init__(self, source: DictionaryAttention) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (copy.deepcopy(m) for m in (source.wq, source.wk, source.wv))
        self.register_buffer("temperature", dictionary_temperature(source))

    def forward(self, x: Tensor, z: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens *x* and normed *z* (n, c), dictionary (t, c) -> x plus the output (n, c), similarity (n, t)."""
        q = unit_rows(self.wq(z))
        k = unit_rows(self.wk(dictionary)) * self.temperature
        similarity = (q @ k.t()).softmax(dim=1)
        return torch.addmm(x, similarity, self.wv(dictionary)), similarity


def unit_rows(x: Tensor) -> Tensor:
    """Rows of *x* divided by their length, as `F.normalize` does, whose clamp exports as a float64 constant."""
    length = x.pow(2).sum(dim=1, keepdim=True).sqrt()
    return x / torch.maximum(length, torch.tensor(1e-12))


class StaticConvFFN(nn.Module):
    """Linear, GELU, plus GELU(depthwise convolution), Linear, on tokens of rank 2."""

    def __init__(self, source: ConvFFN, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.fc1, self.fc2 = copy.deepcopy(source.fc1), copy.deepcopy(source.fc2)
        self.dwconv = copy.deepcopy(source.dwconv.depthwise_conv)

    def forward(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """Tokens (n, c), and *extra* (n, e) of version 2 -> tokens (n, c)."""
        x = F.gelu(self.fc1(x))
        if extra is not None:
            x = torch.cat((x, extra), dim=1)
        out: Tensor = self.fc2(x + tokens_of(self.dwconv(image_of(x, self.size))))
        return out


class StaticCategoryAttention(nn.Module):
    """AC-MSA on a fixed number of slots: gather, attend in groups, project, gather back."""

    def __init__(self, source: CategoryAttention, tokens: int, categories: int, dense: bool, folded: float) -> None:
        super().__init__()
        self.heads, self.group, self.channels = source.heads, source.group, source.proj.in_features
        self.scale = category_scale(source, folded)
        self.dense = CountingSort(tokens, categories) if dense else None
        self.router = None if dense else Router(tokens, categories)
        self.proj = copy.deepcopy(source.proj)

    def attend(self, slots: Tensor) -> Tensor:
        """qkv of the slots (C, 3c) -> mixed and projected (C, c)."""
        q, k, v = heads_of(slots, self.group, self.heads, self.channels)
        weights = (q * self.scale @ k.transpose(2, 3)).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(-1, self.channels)
        out: Tensor = self.proj(mixed)
        return out

    def forward(self, qkv: Tensor, categories: Tensor, rest: Tensor | None, shared: Shared) -> Tensor:
        """*qkv* (n, 3c), *categories* (n,) int32, *rest* (n, c) or None for zeros -> branch output (n, c)."""
        if self.router is None or shared.slots is None:
            assert self.dense is not None
            slot, source = self.dense(categories, shared.tokens)
            return self.attend(qkv.index_select(0, source)).index_select(0, slot)
        source, rank, routed = self.router(categories, shared.slots, shared.tokens)
        slot = torch.minimum(rank, shared.slots.last)
        mixed = self.attend(qkv.index_select(0, source)).index_select(0, slot)
        return torch.where(routed.unsqueeze(1), mixed, torch.zeros(()) if rest is None else rest)


class StaticWindowAttention(nn.Module):
    """SW-MSA for one image; the query scale is folded into wqkv."""

    relative_position_bias_table: Tensor

    def __init__(self, source: WindowAttention, size: tuple[int, int], shift: int) -> None:
        super().__init__()
        self.heads, self.channels, self.size, self.shift = source.heads, source.proj.in_features, size, shift
        self.proj = copy.deepcopy(source.proj)
        self.register_buffer("relative_position_bias_table", position_table(source))

    def attend_blocks(self, blocks: Tensor, area: int, index: Tensor) -> Tensor:
        """qkv of *blocks* (count, area, 3c), *index* (area * area,) of their position bias -> (count, area, c)."""
        q, k, v = heads_of(blocks, area, self.heads, self.channels)
        bias = self.relative_position_bias_table.index_select(1, index).view(1, self.heads, area, area)
        weights = (q @ k.transpose(2, 3) + bias).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).reshape(-1, area, self.channels)

    def forward(self, qkv: Tensor, shared: Shared) -> Tensor:
        """*qkv* (n, 3c) -> branch output (n, c)."""
        image, cut = qkv.view(*self.size, 3 * self.channels), shared.cuts[self.shift]
        indices = zip(cut.kinds, cut.indices, strict=True)
        mixed = [self.attend_blocks(to_blocks(image, kind), kind.area, index) for kind, index in indices]
        out: Tensor = self.proj(from_blocks(mixed, cut.kinds).reshape(-1, self.channels))
        return out


class Output(nn.Module):
    """The sum that is a layer's output, in a module of its own so that its name is the same in every graph."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""
        return x + y


class StaticLayer(nn.Module, ABC):
    """One transformer layer; `dictionary` is refined unless the layer is the last of its block."""

    s: Tensor
    rest: Tensor
    of_category: Tensor | None

    def __init__(self, source: TransformerLayer, dictionary: Tensor, size: tuple[int, int], dense: bool) -> None:
        super().__init__()
        self.norm1: nn.Module = copy.deepcopy(source.norm1)
        self.norm2: nn.Module = copy.deepcopy(source.norm2)
        self.attn_atd = StaticDictionaryAttention(source.attn_atd)
        self.convffn = StaticConvFFN(source.convffn, size)
        # Version 2 does not refine its dictionary: what the FFN reads of it is the same for every image.
        read = None if source.fc_td is None else source.fc_td(dictionary.detach()).detach()
        self.register_buffer("of_category", read)
        self.output = Output()
        self.compensation = source.compensation
        self.refines = source.refines
        if source.refines:
            self.norm3 = copy.deepcopy(source.norm3)
            s = source.sigma.detach().sigmoid()
            self.register_buffer("s", s)
            self.register_buffer("rest", 1 - s)
        self._add_attention(source, size, dense)

    @abstractmethod
    def _add_attention(self, source: TransformerLayer, size: tuple[int, int], dense: bool) -> None:
        """Make the modules of window and category attention."""

    @classmethod
    @abstractmethod
    def prepare(cls, shared: Shared, capacity: Tensor | int, impure: Tensor, categories: int) -> None:
        """Put into *shared* what all layers of a run share, for *capacity* slots and *impure* (1,) int32 tokens."""

    @abstractmethod
    def _normalise(self, norm: nn.Module, x: Tensor, shared: Shared) -> Tensor:
        """*norm* of the tokens *x* (n, c)."""

    @abstractmethod
    def _mix(self, x: Tensor, z: Tensor, categories: Tensor, shared: Shared) -> Tensor:
        """Tokens *x* plus window and category attention of the normed *z*, all (n, c)."""

    def similarity(self, tokens: Tensor, dictionary: Tensor) -> Tensor:
        """What the layer chooses from (n, t), of its input *tokens* (n, c) and the *dictionary* (t, c)."""
        similarity: Tensor = self.attn_atd(tokens, self.norm1(tokens), dictionary)[1]
        return similarity

    def forward(self, x: Tensor, dictionary: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
        """Tokens (n, c), dictionary (t, c) -> both, for the next layer."""
        if shared.trace is not None:
            # Detached, because a block starts with its own parameter.
            shared.trace.inputs.append((x.detach(), dictionary.detach()))
        z = self._normalise(self.norm1, x, shared)
        x, similarity = self.attn_atd(x, z, dictionary)
        categories = own = similarity.argmax(dim=1).to(torch.int32)
        if shared.forced is not None:
            categories = next(shared.forced)
        x = self._mix(x, z, categories, shared)
        extra = None if self.of_category is None else self.of_category.index_select(0, categories)
        x = self.output(x, self.convffn(self._normalise(self.norm2, x, shared), extra))
        if self.refines:
            weights = self.norm3(similarity.t().unsqueeze(0)).squeeze(0).softmax(dim=1)
            dictionary = self.s * dictionary + self.rest * (weights @ x)
        if shared.trace is not None:
            shared.trace.choose(similarity, own)
            shared.trace.tokens.append(x)
        return x, dictionary


class PortableLayer(StaticLayer):
    """All heads at once, tokens in the order of the image."""

    def _add_attention(self, source: TransformerLayer, size: tuple[int, int], dense: bool) -> None:
        attention = source.attn_win
        self.wqkv = scale_queries(source.wqkv, attention.scale)
        self._add_windows(source, size)
        tokens, categories = size[0] * size[1], source.attn_atd.dictionary_tokens
        self.attn_aca = StaticCategoryAttention(source.attn_aca, tokens, categories, dense, folded=attention.scale)

    def _add_windows(self, source: TransformerLayer, size: tuple[int, int]) -> None:
        self.attn_win = StaticWindowAttention(source.attn_win, size, source.shift)

    @classmethod
    def prepare(cls, shared: Shared, capacity: Tensor | int, impure: Tensor, categories: int) -> None:
        """Put the slots into *shared*."""
        if shared.pure is not None:
            shared.slots = plan_slots(shared.tokens, capacity, shared.pure, impure, categories)

    def _normalise(self, norm: nn.Module, x: Tensor, shared: Shared) -> Tensor:
        out: Tensor = norm(x)
        return out

    def _mix(self, x: Tensor, z: Tensor, categories: Tensor, shared: Shared) -> Tensor:
        qkv = self.wqkv(z)
        # What pure tokens take instead of category attention.
        rest = {"value": self._values(qkv, z.shape[1]), "normed": z, "zero": None}[self.compensation]
        out: Tensor = x + self.attn_win(qkv, shared) + self.attn_aca(qkv, categories, rest, shared)
        return out

    def _values(self, qkv: Tensor, channels: int) -> Tensor:
        """v of all heads (n, c)."""
        return qkv[:, 2 * channels :]
