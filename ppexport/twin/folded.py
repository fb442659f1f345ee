"""Constants that depend on weights alone, computed once when the twin is built.

Before (networks/atd/attention.py, networks/atd/atd_light.py)                      After
    q * width^-0.5                    (window attention, per token)      in the q rows of wqkv
    q * exp(min(logit_scale, ln 100)) (category attention)               one number, divided by the factor above
    similarity * (1 + clamp(scale, 0, 1) * ln 64)   (n, 64)              on the normalised keys (64, 8)
    s = sigmoid(sigma), 1 - s                                            two stored vectors
    bias_table[index].permute(2, 0, 1)                                   the table stored transposed
    linear(x * weight + bias)         (after a LayerNorm, flavour ort)   in the weight and the bias of linear
    upsample(x) + mean                                                   in the bias of the last convolution
    conv(nearest x2)                  (upsampler nearest+conv)           a convolution of 4 outputs each, pixel shuffle
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppexport.networks.atd.attention import CategoryAttention, DictionaryAttention, WindowAttention

M = TypeVar("M", nn.Linear, nn.Conv2d)


def scale_queries(wqkv: nn.Linear, scale: float) -> nn.Linear:
    """A copy of *wqkv* whose q rows (the first third) are multiplied by *scale*."""
    folded = copy.deepcopy(wqkv)
    rows = folded.out_features // 3
    with torch.no_grad():
        folded.weight[:rows] *= scale
        folded.bias[:rows] *= scale
    return folded


def split_values(qkv: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """The layers of *qkv* for queries and keys, and for values."""
    parts = []
    for rows in (slice(0, 2 * qkv.in_features), slice(2 * qkv.in_features, None)):
        part = nn.Linear(qkv.in_features, len(qkv.bias[rows]))
        with torch.no_grad():
            part.weight.copy_(qkv.weight[rows])
            part.bias.copy_(qkv.bias[rows])
        parts.append(part)
    return parts[0], parts[1]


def fold_norm(linear: nn.Linear, norm: nn.LayerNorm) -> nn.Linear:
    """A copy of *linear* that takes what *norm* computes before its weight and bias."""
    folded = copy.deepcopy(linear)
    with torch.no_grad():
        folded.bias.add_(linear.weight @ norm.bias)
        folded.weight.mul_(norm.weight)
    return folded


def add_bias(module: M, bias: Tensor) -> M:
    """A copy of *module* whose bias also holds *bias*."""
    folded = copy.deepcopy(module)
    assert folded.bias is not None
    with torch.no_grad():
        folded.bias.add_(bias)
    return folded


def category_scale(attention: CategoryAttention, folded: float) -> float:
    """What is left to multiply the queries of category attention with after *folded* went into wqkv."""
    return math.exp(min(float(attention.logit_scale.detach()), math.log(100))) / folded


def dictionary_temperature(attention: DictionaryAttention) -> Tensor:
    """(t, 1), or (1, 1) in version 2: 1 + clamp(scale) * ln t."""
    return attention.temperature().detach().unsqueeze(1)


def position_table(attention: WindowAttention) -> Tensor:
    """(heads, rows): the bias table, transposed so that a gather needs no permutation afterwards."""
    return attention.relative_position_bias_table.detach().t().contiguous()


def add_mean(upsample: nn.Conv2d, mean: Tensor, scale: int) -> nn.Conv2d:
    """A copy of the last convolution whose bias holds the RGB mean, once for each of the scale^2 sub-pixels."""
    return add_bias(upsample, mean.flatten().repeat_interleave(scale * scale))


def spread(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution with the outputs of *conv* (3x3) on an image enlarged by 2 from its nearest pixels.

    Four for each output of *conv*, as `PixelShuffle(2)` takes them: one for each pixel (a, b) of a square of 2x2. Along
    one axis such a pixel reads 2i + a + u, u = -1, 0, 1, of the enlarged image, which is i + (a + u) // 2 of the image.
    """
    places = torch.zeros(2, 3, 3)
    for a in range(2):
        for u in range(-1, 2):
            places[a, (a + u) // 2 + 1, u + 1] = 1
    spread = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 3, padding=1)
    assert conv.bias is not None
    with torch.no_grad():
        weight = torch.einsum("apu,bqv,oiuv->oabipq", places, places, conv.weight)
        spread.weight.copy_(weight.reshape(spread.weight.shape))
        spread.bias = nn.Parameter(conv.bias.repeat_interleave(4))
    return spread
