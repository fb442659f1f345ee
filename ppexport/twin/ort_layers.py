"""The layer of the flavour `ort`: tokens are rows from end to end, in the order of the blocks while they attend.

Before (layers.py): q, k, v of all heads from one projection, cut into windows, permuted to (blocks, heads, area, 12)
and back: permutations of runs of 12 numbers are half of what a CPU does between the products.

After: the normed tokens are put in the order of the blocks once, by a gather of whole rows, and projected to q, k and
v (n, 48), three tensors of rows, shown for ATD-light:

    window:    view (blocks, area, 48): blocks are consecutive rows
    category:  gather rows -> view (groups, 128, 48)

What is left of attention, heads included, is the pattern that `backends/onnx/fuse_attention.py` turns into one
operator, whose kernel finds its heads inside the rows.

    LayerNorm          = mean and deviation of every row by InstanceNormalization, which ONNX Runtime computes in half
                         the time; weight and bias go into the linear layer that follows
    bias of k          adds the same to all logits of a row, which softmax ignores
    bias of v          adds itself to every output, so it goes into the biases after the projections, and for pure
                         tokens into the one sum that every token passes
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.atd.atd_light import TransformerLayer
from ppexport.networks.atd.attention import CategoryAttention, WindowAttention
from ppexport.twin.blocks import Cut
from ppexport.twin.folded import add_bias, category_scale, fold_norm, position_table, scale_queries
from ppexport.twin.layers import Shared, StaticLayer
from ppexport.twin.ort_routing import RowPlan, plan_rows, sorted_places

Rows = tuple[Tensor, Tensor, Tensor]
"""q, k, v (n, c), tokens in the order of the blocks."""


def attend(rows: Rows, size: int, heads: int, width: int, scale: float = 1.0, bias: Tensor | None = None) -> Tensor:
    """Attention among every *size* consecutive rows, with *heads* of *width*.

    q, k, v (groups * size, heads * width), bias (1, heads, size, size). All lengths but the number of groups are plain
    numbers, so that a symbolic number of slots leaves no shape arithmetic in the graph.
    """
    q, k, v = (x.view(-1, size, heads, width) for x in rows)
    logits = (q.transpose(1, 2) * scale) @ k.permute(0, 2, 3, 1)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    return (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(-1, heads * width)


def split_qkv(wqkv: nn.Linear) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """The projection to q, what rows are multiplied with for k and v (c, c) each, and the bias of v (c,)."""
    c = wqkv.in_features
    weights, biases = torch.split(wqkv.weight.detach(), c), torch.split(wqkv.bias.detach(), c)
    q = nn.Linear(c, c)
    q.weight, q.bias = (nn.Parameter(p[0].clone()) for p in (weights, biases))
    return q, weights[1].t().contiguous(), weights[2].t().contiguous(), biases[2]


class Standardise(nn.Module):
    """LayerNorm without weight and bias, by InstanceNormalization with the tokens as its channels."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps

    def forward(self, x: Tensor, ones: Tensor, zeros: Tensor) -> Tensor:
        """(n, c) -> (n, c); *ones* and *zeros* (n,)."""
        return F.instance_norm(x.unsqueeze(0), weight=ones, bias=zeros, use_input_stats=True, eps=self.eps).squeeze(0)


class RowWindowAttention(nn.Module):
    """SW-MSA on rows, without the output projection."""

    relative_position_bias_table: Tensor

    def __init__(self, source: WindowAttention) -> None:
        super().__init__()
        self.heads, self.width = source.heads, source.proj.in_features // source.heads
        self.register_buffer("relative_position_bias_table", position_table(source))

    def forward(self, rows: Rows, cut: Cut) -> Tensor:
        """q, k, v (n, c) -> (n, c)."""
        sizes = [kind.tokens for kind in cut.kinds]
        parts = zip(*(torch.split(x, sizes) if len(sizes) > 1 else (x,) for x in rows), strict=True)
        mixed = []
        for kind, index, part in zip(cut.kinds, cut.indices, parts, strict=True):
            bias = self.relative_position_bias_table.index_select(1, index).view(1, self.heads, kind.area, kind.area)
            mixed.append(attend(part, kind.area, self.heads, self.width, bias=bias))
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


class RowCategoryAttention(nn.Module):
    """AC-MSA on rows."""

    def __init__(self, source: CategoryAttention, folded: float, bias: Tensor) -> None:
        """*bias* (c,) is added to the output of the projection."""
        super().__init__()
        self.heads, self.group, self.width = source.heads, source.group, source.proj.in_features // source.heads
        self.scale = category_scale(source, folded)
        self.proj = add_bias(source.proj, bias)

    def forward(self, rows: Rows, categories: Tensor, rest: Tensor | None, cut: Cut, plan: RowPlan) -> Tensor:
        """*rows* and *rest* in the order of the blocks, *categories* (n,) int32 by token -> (n, c), as *rows*.

        *rest* (n, c) is what pure tokens take; None where no token is.
        """
        if rest is None or plan.slots is None:
            return self._mix_every(rows, categories, cut, plan)
        mixed = self._mix_impure(rows, categories, rest, cut, plan)
        if plan.slots_for_all is None:
            return mixed
        # In the graph a branch (backends/onnx/branch_where.py): a picture without pure tokens pays nothing for slots.
        return torch.where(plan.slots_for_all, self._mix_every(rows, categories, cut, plan), mixed)

    def _attend(self, rows: Rows, source: Tensor) -> Tensor:
        """q, k, v (n, c) and the row (C,) of every slot -> mixed and projected (C, c)."""
        q, k, v = rows
        slots = q.index_select(0, source), k.index_select(0, source), v.index_select(0, source)
        out: Tensor = self.proj(attend(slots, self.group, self.heads, self.width, scale=self.scale))
        return out

    def _mix_every(self, rows: Rows, categories: Tensor, cut: Cut, plan: RowPlan) -> Tensor:
        place = sorted_places(categories, plan.grid)
        mixed = self._attend(rows, cut.place.scatter(0, place, cut.place))
        return mixed.index_select(0, place.index_select(0, cut.order))

    def _mix_impure(self, rows: Rows, categories: Tensor, rest: Tensor, cut: Cut, plan: RowPlan) -> Tensor:
        slots, grid, listed = plan.slots, plan.slot_grid, plan.places[cut.shift]
        assert slots is not None
        assert grid is not None
        place = sorted_places(torch.maximum(categories.index_select(0, slots.tokens), slots.past), grid)
        mixed = self._attend(rows, listed.place.scatter(0, place, listed.place).index_select(0, slots.reads))
        row = slots.rest.scatter(0, listed.target, torch.maximum(place.to(torch.int32), listed.least))
        return torch.cat((mixed, rest)).index_select(0, row)


class RowLayer(StaticLayer):
    """A transformer layer for ONNX Runtime on CPUs."""

    k: Tensor
    v: Tensor

    def _add_attention(self, source: TransformerLayer, size: tuple[int, int], dense: bool) -> None:
        """Make the modules of window and category attention, and move weights and biases of the norms."""
        attention, category = source.attn_win, source.attn_aca
        self.shift, self.dense = source.shift, dense
        self.affine = nn.ParameterList(p.detach().clone() for p in (source.norm1.weight, source.norm1.bias))
        self.attn_atd.wq = fold_norm(self.attn_atd.wq, source.norm1)
        self.convffn.fc1 = fold_norm(self.convffn.fc1, source.norm2)
        self.norm1, self.norm2 = Standardise(source.norm1), Standardise(source.norm2)
        wqkv = fold_norm(scale_queries(source.wqkv, attention.scale), source.norm1)
        self.q, k, v, value_bias = split_qkv(wqkv)
        self.register_buffer("k", k)
        self.register_buffer("v", v)
        self.attn_win = RowWindowAttention(attention)
        self.proj = nn.Parameter(attention.proj.weight.detach().t().contiguous())
        # What pure tokens take lacks the bias of v: every token gets it later, and mixed tokens lose it here.
        later = torch.zeros_like(value_bias) if dense or self.compensation != "value" else value_bias
        # Similarities sum to 1, so the dictionary's values can carry what is added to every token.
        self.attn_atd.wv = add_bias(self.attn_atd.wv, attention.proj.bias + attention.proj.weight @ value_bias + later)
        bias = category.proj.weight @ value_bias - later
        self.attn_aca = RowCategoryAttention(category, folded=attention.scale, bias=bias)

    @classmethod
    def prepare(cls, shared: Shared, capacity: Tensor | int, impure: Tensor, categories: int) -> None:
        """Put the plan of the rows into *shared*."""
        shared.rows = plan_rows(shared.tokens, shared.cuts, shared.pure, capacity, impure, categories)

    def _normalise(self, norm: nn.Module, x: Tensor, shared: Shared) -> Tensor:
        """*x* (n, c) with mean 0 and deviation 1 in every row."""
        assert shared.rows is not None
        out: Tensor = norm(x, shared.rows.ones, shared.rows.zeros)
        return out

    def _for_pure(self, z: Tensor, v: Tensor) -> Tensor | None:
        """What pure tokens take (n, c), of the standardised *z* and *v* (n, c)."""
        if self.dense:
            return None
        if self.compensation == "value":
            return v
        if self.compensation == "normed":
            normed: Tensor = z * self.affine[0] + self.affine[1]
            return normed
        # Not zeros_like, which the trace would store number by number.
        return torch.zeros(1, 1).expand(v.shape[0], v.shape[1])

    def _mix(self, x: Tensor, z: Tensor, categories: Tensor, shared: Shared) -> Tensor:
        assert shared.rows is not None
        cut = shared.cuts[self.shift]
        z = z.index_select(0, cut.order)
        rows = self.q(z), z @ self.k, z @ self.v
        from_category = self.attn_aca(rows, categories, self._for_pure(z, rows[2]), cut, shared.rows)
        mixed = torch.addmm(from_category, self.attn_win(rows, cut), self.proj)
        return x + mixed.index_select(0, cut.place)
