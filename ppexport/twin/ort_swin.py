"""The layers of SwinIR-light in the flavour `ort`: tokens are rows, in the order of the windows from layer to layer.

Before (swinir_twin.py): every layer takes tokens in the order of the image, cuts q, k and v of all heads into windows,
permutes them, and puts the windows together again.

After: all of a layer but attention is the same for every token, and attention looks into its own window alone. So the
tokens stay in the order of the layer's blocks, and one gather of whole rows brings them into that of the next layer:

    image -> blocks of layer 1 -> blocks of layer 2 -> ... -> image

Norms, attention, and what becomes of the biases of k and v are as in `ort_layers`. Of the processor time that the
portable flavour takes, this one takes 0.70 at 64x64 and 0.72 at 256x256 (ONNX Runtime 1.32, one thread).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ppexport.networks.swinir.swinir_light import SwinBlock, SwinLayer
from ppexport.twin.blocks import Cut
from ppexport.twin.folded import add_bias, fold_norm, scale_queries
from ppexport.twin.layers import Shared
from ppexport.twin.ort_layers import RowWindowAttention, Standardise, attend, split_qkv


class RowSwinAttention(nn.Module):
    """Window attention with its projections, of which the first hold the weight and the bias of the norm."""

    k: Tensor
    v: Tensor

    def __init__(self, source: SwinLayer) -> None:
        super().__init__()
        attention = source.attn
        self.q, k, v, self.value_bias = split_qkv(
            fold_norm(scale_queries(attention.qkv, attention.scale), source.norm1)
        )
        self.register_buffer("k", k)
        self.register_buffer("v", v)
        self.mix = RowWindowAttention(attention)
        self.proj = add_bias(attention.proj, attention.proj.weight @ self.value_bias)

    def forward(self, z: Tensor, cut: Cut, shared: Shared) -> Tensor:
        """Standardised rows (n, c) -> rows (n, c)."""
        out: Tensor = self.proj(self.mix((self.q(z), z @ self.k, z @ self.v), cut))
        return out


class RowHardSwinAttention(RowSwinAttention):
    """As `RowSwinAttention`, of hard windows; the others take a compensation. Those that the shift cuts all attend."""

    def __init__(self, source: SwinLayer) -> None:
        super().__init__(source)
        self.compensation, norm = source.compensation, source.norm1
        # The bias of v is in the projection, for every token: what is no value goes without it.
        self.affine = nn.ParameterList((norm.weight.detach().clone(), norm.bias.detach() - self.value_bias))
        self.register_buffer("nothing", -self.value_bias)

    def rest(self, z: Tensor, v: Tensor) -> Tensor:
        """What easy windows take (k, area, c), of their rows *z* and *v* (k, area, c)."""
        rest: Tensor = {"value": v, "normed": z * self.affine[0] + self.affine[1], "zero": self.nothing}[
            self.compensation
        ]
        return rest

    def forward(self, z: Tensor, cut: Cut, shared: Shared) -> Tensor:
        """Standardised rows (n, c) -> rows (n, c)."""
        sizes, heads, width = [kind.tokens for kind in cut.kinds], self.mix.heads, self.mix.width
        parts = zip(*(torch.split(x, sizes) if len(sizes) > 1 else (x,) for x in (z, z @ self.v)), strict=True)
        mixed = []
        for kind, index, rows in zip(cut.kinds, cut.indices, parts, strict=True):
            area, channels = kind.area, heads * width
            bias = self.mix.relative_position_bias_table.index_select(1, index).view(1, heads, area, area)
            blocks = [x.view(-1, area, channels) for x in rows]
            slots = shared.windows.get((cut.shift, area))
            tokens, values = (x if slots is None else slots.read(x) for x in blocks)
            flat = tokens.reshape(-1, channels)
            qkv = self.q(flat), flat @ self.k, values.reshape(-1, channels)
            out = attend(qkv, area, heads, width, bias=bias)
            if slots is not None:
                out = slots.write(out.view(-1, area, channels), self.rest(*blocks)).view(-1, channels)
            mixed.append(out)
        projected: Tensor = self.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])
        return projected


class RowSwinLayer(nn.Module):
    """One layer."""

    def __init__(self, source: SwinLayer, attention: RowSwinAttention) -> None:
        super().__init__()
        self.norm1, self.norm2 = Standardise(source.norm1), Standardise(source.norm2)
        self.attn, self.mlp = attention, copy.deepcopy(source.mlp)
        self.mlp.fc1 = fold_norm(source.mlp.fc1, source.norm2)

    def forward(self, x: Tensor, cut: Cut, shared: Shared, ones: Tensor, zeros: Tensor) -> Tensor:
        """Rows (n, c) in the order of the blocks -> rows (n, c); *ones* and *zeros* (n,)."""
        x = x + self.attn(self.norm1(x, ones, zeros), cut, shared)
        out: Tensor = x + self.mlp(self.norm2(x, ones, zeros))
        return out


class RowSwinGroup(nn.Module):
    """The layers of one block."""

    attention = RowSwinAttention

    def __init__(self, source: SwinBlock, size: tuple[int, int]) -> None:
        super().__init__()
        layers = [layer for layer in source.residual_group.blocks if isinstance(layer, SwinLayer)]
        self.shifts = [layer.shift for layer in layers]
        self.blocks = nn.ModuleList(RowSwinLayer(layer, self.attention(layer)) for layer in layers)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c), in the order of the image."""
        count = shared.tokens.shape[0]
        ones, zeros = torch.ones(1).expand(count), torch.zeros(1).expand(count)
        place = shared.tokens
        for layer, shift in zip(self.blocks, self.shifts, strict=True):
            cut = shared.cuts[shift]
            x = layer(x.index_select(0, place.index_select(0, cut.order)), cut, shared, ones, zeros)
            place = cut.place
        return x.index_select(0, place)


class RowHardSwinGroup(RowSwinGroup):
    """The layers of one block, in which only hard windows attend."""

    attention = RowHardSwinAttention
