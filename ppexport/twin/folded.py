"""Constants that depend on weights alone, computed once when the twin is built.

Before (networks/attention.py, networks/atd.py)                      After
    q * 12^-0.5                       (window attention, per token)      in the q rows of wqkv
    q * exp(min(logit_scale, ln 100)) (category attention)               one number, divided by the factor above
    similarity * (1 + clamp(scale, 0, 1) * ln 64)   (n, 64)              on the normalised keys (64, 8)
    s = sigmoid(sigma), 1 - s                                            two stored vectors
    bias_table[index].permute(2, 0, 1)                                   the table stored transposed
    upsample(x) + mean                                                   in the bias of the last convolution
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ppexport.networks.attention import CategoryAttention, DictionaryAttention, WindowAttention


def scale_queries(wqkv: nn.Linear, scale: float) -> nn.Linear:
    """A copy of *wqkv* whose q rows (the first third) are multiplied by *scale*."""
    folded = copy.deepcopy(wqkv)
    rows = folded.out_features // 3
    with torch.no_grad():
        folded.weight[:rows] *= scale
        folded.bias[:rows] *= scale
    return folded


def by_head(wqkv: nn.Linear, heads: int) -> tuple[list[Tensor], list[Tensor]]:
    """*wqkv* as batches of products: for q, k and v weights (heads, c, d) and biases (heads, 1, d)."""
    c = wqkv.in_features
    weights = wqkv.weight.detach().view(3, heads, c // heads, c).transpose(2, 3).contiguous()
    biases = wqkv.bias.detach().view(3, heads, 1, c // heads)
    return [w.clone() for w in weights], [b.clone() for b in biases]


def add_bias(linear: nn.Linear, bias: Tensor) -> nn.Linear:
    """A copy of *linear* whose bias also holds *bias*."""
    folded = copy.deepcopy(linear)
    with torch.no_grad():
        folded.bias.add_(bias)
    return folded


def category_scale(attention: CategoryAttention, folded: float) -> float:
    """What is left to multiply the queries of category attention with after *folded* went into wqkv."""
    return math.exp(min(float(attention.logit_scale.detach()), math.log(100))) / folded


def dictionary_temperature(attention: DictionaryAttention) -> Tensor:
    """(t, 1): 1 + clamp(scale, 0, 1) * ln t."""
    scale = attention.scale.detach().clamp(0, 1)
    return (1 + scale * math.log(attention.dictionary_tokens)).unsqueeze(1)


def position_table(attention: WindowAttention) -> Tensor:
    """(heads, rows): the bias table, transposed so that a gather needs no permutation afterwards."""
    return attention.relative_position_bias_table.detach().t().contiguous()


def add_mean(upsample: nn.Conv2d, mean: Tensor, scale: int) -> nn.Conv2d:
    """A copy of the last convolution whose bias holds the RGB mean, once for each of the scale^2 sub-pixels."""
    folded = copy.deepcopy(upsample)
    assert folded.bias is not None
    with torch.no_grad():
        folded.bias += mean.flatten().repeat_interleave(scale * scale)
    return folded
