"""The layer of the flavour `ort`: attention in the order of the blocks, heads outermost.

Before (layers.py): q, k, v of all heads from one projection, cut into windows, permuted to (blocks, heads, area, 12)
and back: permutations of runs of 12 numbers are half of what a CPU does between the products.

After: the normed tokens are put in the order of the blocks once, by a gather of whole rows, and projected by one
batch of products, each of one head:

    (1, n, 48) x (heads, 48, 12) -> (heads, n, 12)       for q, k and v: no permutation, every head's rows in order
    window:    view (heads, blocks, area, 12)            no partition: blocks are consecutive rows
    category:  gather rows -> (heads, C, 12), view (heads, groups, 128, 12)

The bias of k adds the same to all logits of a row, which softmax ignores; that of v adds itself to every output, so it
goes into the biases after the projections, and for pure tokens into the one sum that every token passes. Rows of pure
tokens come from the compensation: both lie in one table, so the choice is in the index and no select over all channels
is needed. What is left of attention is the pattern that `backends/onnx/fuse_attention.py` turns into one operator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppexport.networks.atd import TransformerLayer
from ppexport.networks.attention import CategoryAttention, WindowAttention
from ppexport.networks.routing import GROUP_SIZE
from ppexport.twin.counting_sort import CountingSort
from ppexport.twin.folded import add_bias, by_head, category_scale, position_table, scale_queries
from ppexport.twin.layers import StaticLayer
from ppexport.twin.routing import Router
from ppexport.twin.shared import Cut, Shared

Heads = tuple[Tensor, Tensor, Tensor]
"""q, k, v (heads, n, d), tokens in the order of the blocks."""


def join_heads(x: Tensor, channels: int) -> Tensor:
    """(heads, n, d) -> (n, channels)."""
    return x.transpose(0, 1).reshape(-1, channels)


class HeadWindowAttention(nn.Module):
    """SW-MSA with heads outermost, without the output projection."""

    relative_position_bias_table: Tensor

    def __init__(self, source: WindowAttention) -> None:
        super().__init__()
        self.heads, self.channels = source.heads, source.proj.in_features
        self.register_buffer("relative_position_bias_table", position_table(source))

    def forward(self, heads: Heads, cut: Cut) -> Tensor:
        """q, k, v (heads, n, d) -> (n, c)."""
        sizes = [kind.tokens for kind in cut.kinds]
        parts = zip(*(torch.split(x, sizes, dim=1) if len(sizes) > 1 else (x,) for x in heads), strict=True)
        mixed = []
        for kind, index, part in zip(cut.kinds, cut.indices, parts, strict=True):
            q, k, v = (x.reshape(self.heads, -1, kind.area, self.channels // self.heads) for x in part)
            bias = self.relative_position_bias_table.index_select(1, index).view(self.heads, 1, kind.area, kind.area)
            weights = (q @ k.transpose(2, 3) + bias).softmax(dim=-1)
            mixed.append((weights @ v).reshape(self.heads, -1, self.channels // self.heads))
        return join_heads(torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0], self.channels)


class HeadCategoryAttention(nn.Module):
    """AC-MSA with heads outermost; its output rows are in the order of the blocks."""

    def __init__(
        self, source: CategoryAttention, tokens: int, categories: int, dense: bool, folded: float, bias: Tensor
    ) -> None:
        """*bias* (c,) is added to the output of the projection."""
        super().__init__()
        self.heads, self.channels = source.heads, source.proj.in_features
        self.scale = category_scale(source, folded)
        self.dense = CountingSort(tokens, categories) if dense else None
        self.router = None if dense else Router(tokens, categories)
        self.proj = add_bias(source.proj, bias)

    def attend(self, heads: Heads, source: Tensor) -> Tensor:
        """q, k, v (heads, n, d) and the row (C,) of every slot -> mixed and projected (C, c)."""
        width = self.channels // self.heads
        q, k, v = (x.index_select(1, source).view(self.heads, -1, GROUP_SIZE, width) for x in heads)
        weights = (q * self.scale @ k.transpose(2, 3)).softmax(dim=-1)
        mixed = (weights @ v).view(self.heads, -1, width)
        out: Tensor = self.proj(join_heads(mixed, self.channels))
        return out

    def forward(self, heads: Heads, categories: Tensor, rest: Tensor, cut: Cut, shared: Shared) -> Tensor:
        """*heads* and *rest* in the order of the blocks, *categories* (n,) int32 by token -> (n, c), as *heads*.

        *rest* (n, c) is what pure tokens take, or (1, c) the one row that all of them take. `shared.rows` holds where.
        """
        if self.router is None or shared.pure is None or shared.slots is None:
            assert self.dense is not None
            rank, source = self.dense(categories, shared.tokens)
            mixed = self.attend(heads, cut.place.index_select(0, source))
            return mixed.index_select(0, rank.index_select(0, cut.order))
        routes = self.router(categories, shared.pure, shared.slots, shared.tokens)
        mixed = self.attend(heads, cut.place.index_select(0, routes.source))
        other = shared.rows[cut.shift] if rest.shape[0] > 1 else shared.slots.last + 1
        row = torch.where(routes.routed, routes.rank, other).index_select(0, cut.order)
        return torch.cat((mixed, rest)).index_select(0, row)


class ByHeadLayer(StaticLayer):
    """A transformer layer for CPUs."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_bias: Tensor
    zeros: Tensor

    def add_attention(self, source: TransformerLayer, size: tuple[int, int], dense: bool) -> None:
        """Make the modules of window and category attention."""
        attention = source.attn_win
        self.shift = source.shift
        wqkv = scale_queries(source.wqkv, attention.scale)
        weights, biases = by_head(wqkv, attention.heads)
        for name, weight in zip("qkv", weights, strict=True):
            self.register_buffer(name, weight)
        q_bias, _, v_bias = biases
        self.register_buffer("q_bias", q_bias)
        value_bias = v_bias.flatten()
        self.attn_win = HeadWindowAttention(attention)
        self.proj = nn.Parameter(attention.proj.weight.detach().t().contiguous())
        category = source.attn_aca
        # What pure tokens take lacks the bias of v: every token gets it later, and mixed tokens lose it here.
        later = torch.zeros_like(value_bias) if dense or self.compensation != "value" else value_bias
        # Similarities sum to 1, so the dictionary's values can carry what is added to every token.
        self.attn_atd.wv = add_bias(self.attn_atd.wv, attention.proj.bias + attention.proj.weight @ value_bias + later)
        self.attn_aca = HeadCategoryAttention(
            category,
            size[0] * size[1],
            source.attn_atd.dictionary_tokens,
            dense,
            folded=attention.scale,
            bias=category.proj.weight @ value_bias - later,
        )
        self.register_buffer("zeros", torch.zeros(1, wqkv.in_features))

    def mix(self, x: Tensor, z: Tensor, categories: Tensor, shared: Shared) -> Tensor:
        """Tokens *x* plus window and category attention of the normed *z*, all (n, c)."""
        cut = shared.cuts[self.shift]
        z = z.index_select(0, cut.order)
        batch = z.unsqueeze(0)
        heads = batch @ self.q + self.q_bias, batch @ self.k, batch @ self.v
        if shared.pure is None or self.compensation == "zero":
            rest = self.zeros
        else:
            rest = z if self.compensation == "normed" else join_heads(heads[2], z.shape[1])
        from_category = self.attn_aca(heads, categories, rest, cut, shared)
        mixed = torch.addmm(from_category, self.attn_win(heads, cut), self.proj)
        return x + mixed.index_select(0, cut.place)
