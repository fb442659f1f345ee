"""ATD-light v2 (arXiv 2603.02581), which the authors' repository serves since March 2026 under the names of v1.

What differs from v1 (`atd_light`), in every layer and block:

    dictionary   the same in all layers of a block; logits times 1 + clamp(scale, 0, 3) * ln t, one scale for all tokens
    category     logits times (dim / heads)^-0.5, as in window attention
    ffn          tokens take four more channels, Linear(td) at their category, between fc1 and fc2
    block        ends with LayerNorm(conv(layers(x)) + x)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.atd.atd_light import ATDLight, AtdConfig, Block, ConvFFN, DepthwiseConv, Routing, TransformerLayer
from ppexport.networks.atd.attention import CategoryAttention, DictionaryAttention


class DictionaryAttentionV2(DictionaryAttention):
    def __init__(self, dim, dictionary_tokens, reduced_dim):
        super().__init__(dim, dictionary_tokens, reduced_dim)
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    @property
    def temperature(self):
        return 1 + self.scale.clamp(0, 3) * math.log(self.dictionary_tokens)

    def forward(self, z, dictionary):
        q = F.normalize(self.wq(z), dim=-1)
        k = F.normalize(self.wk(dictionary), dim=-1)
        similarity = (q @ k.transpose(-1, -2) * self.temperature).softmax(dim=-1)
        return similarity @ self.wv(dictionary), similarity


class CategoryAttentionV2(CategoryAttention):
    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        del self.logit_scale
        self.logit_scale = torch.tensor(math.log((dim // heads) ** -0.5))


class ConvFFNV2(nn.Module):
    def __init__(self, dim, kernel, extra):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.dwconv = DepthwiseConv(dim + extra, kernel)
        self.fc2 = nn.Linear(dim + extra, dim)

    def forward(self, x, extra, size):
        x = torch.cat((F.gelu(self.fc1(x)), extra), dim=-1)
        return self.fc2(x + self.dwconv(x, size))


class TransformerLayerV2(TransformerLayer):
    def __init__(self, config, shift, refines):
        super().__init__(config, shift, False)
        dim = config.dim
        self.attn_atd = DictionaryAttentionV2(dim, config.dictionary_tokens, config.reduced_dim)
        self.attn_aca = CategoryAttentionV2(dim, config.heads)
        self.fc_td = nn.Linear(dim, 4)
        self.convffn = ConvFFNV2(dim, config.kernel, 4)

    def forward(self, x, dictionary, size, index, routing):
        z = self.norm1(x)
        qkv = self.wqkv(z)
        from_dictionary, similarity = self.attn_atd(z, dictionary)
        categories = routing.categories(similarity)
        rest = None if routing.pure is None else self.compensation(z, qkv)
        from_category = self.attn_aca(qkv, categories, routing.pure, rest)
        x = x + self.attn_win(qkv, size, self.shift, index) + from_dictionary + from_category
        extra = self.fc_td(dictionary).gather(1, categories.unsqueeze(-1).expand(-1, -1, 4))
        x = x + self.convffn(self.norm2(x), extra, size)
        if routing.trace is not None:
            routing.trace.tokens.append(x)
        return x, dictionary


class BlockV2(Block):
    def __init__(self, config, depth, layer):
        super().__init__(config, depth, layer)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x, size, index, routing):
        return self.norm(super().forward(x, size, index, routing))
