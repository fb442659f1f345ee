"""A network of the toolkit made faster for training on a GPU. All of it runs on a CPU as well, slowly, for tests.

`use_gpu_modules` swaps the classes of modules for subclasses, as `training.fast` does for a CPU: weights and their
names stay, and the network's code knows nothing of it. Attention becomes `scaled_dot_product_attention`, which stores
no attention matrix, and category attention is the same few launches for a batch of any size, without waiting for the
GPU. On request autocast computes in bf16, from weights that stay fp32, what the project's half-precision files compute
in fp16: convolutions and products inside the layers, and attention. Everything else is full precision: the sum that
runs through all layers, every norm, the similarity and with it the category, the dictionary, sorting and gathering,
the first convolution and the upsampler.

Convolutions see tokens (b, n, c) as pictures in channels-last order, without a copy: that is how the network views
them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.errors import UnavailableError
from ppexport.networks.atd.atd_light import ATDLight
from ppexport.networks.atd.attention import (
    CategoryAttention,
    DictionaryAttention,
    WindowAttention,
    merge_heads,
    mirror_slots,
    shift_mask,
    window_merge,
    window_partition,
)

ALIGNMENT = 8
"""Fused attention on a GPU takes heads of a multiple of so many channels."""


def open_device(name: str) -> torch.device:
    """The device *name*, "cpu" or "cuda", ready for training. Raises UnavailableError where there is no such GPU."""
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UnavailableError(
                f"--device cuda needs an NVIDIA GPU, and PyTorch {torch.__version__} finds none here: leave --device "
                "out to train on the CPU"
            )
        # fp32 means fp32: convolutions would otherwise round to TF32.
        torch.backends.cudnn.allow_tf32 = False
        # Few sizes occur, each in many steps.
        torch.backends.cudnn.benchmark = True
        # It has no gradient of a bias.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(name)


def padded_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """*qkv* (g, s, 3c) -> q, k and v (g, heads, s, d), d the channels of a head with zeros up to the alignment."""
    g, s, width = qkv.shape
    channels = width // 3 // heads
    split = qkv.view(g, s, 3, heads, channels).permute(2, 0, 3, 1, 4)
    return F.pad(split, (0, -channels % ALIGNMENT)).unbind(0)


@lru_cache(maxsize=16)
def wrap_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """`shift_mask`, kept: its dozen launches would be repeated in every second layer."""
    return shift_mask(height, width, window, shift, device)


class SdpaWindowAttention(WindowAttention):
    """WindowAttention by `scaled_dot_product_attention`, in the precision of its input."""

    def forward(self, qkv: Tensor, size: tuple[int, int], shift: int, index: Tensor) -> Tensor:
        """As the base class."""
        b, n, width = qkv.shape
        image = qkv.view(b, *size, width)
        if shift:
            image = image.roll((-shift, -shift), dims=(1, 2))
        q, k, v = padded_heads(window_partition(image, self.window), self.heads)
        area, channels = self.window**2, width // 3 // self.heads
        # index_select has a quicker gradient on a GPU than an index in brackets.
        table = self.relative_position_bias_table.t().contiguous()
        bias = table.index_select(1, index.flatten()).view(1, self.heads, area, area)
        if shift:
            # What differs from window to window is a dimension of heads, so that the bias is stored for one image.
            bias = bias + wrap_mask(*size, self.window, shift, qkv.device).unsqueeze(1)
            bias = bias.view(1, -1, area, area)
            q, k, v = (x.reshape(b, bias.shape[1], area, -1) for x in (q, k, v))
        bias = bias.to(q.dtype).expand(q.shape[0], -1, -1, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, bias, scale=self.scale)
        mixed = mixed.reshape(-1, self.heads, area, mixed.shape[-1])[..., :channels]
        out = window_merge(self.proj(merge_heads(mixed)), self.window, *size)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        return out.reshape(b, n, width // 3)


class SdpaCategoryAttention(CategoryAttention):
    """CategoryAttention by `scaled_dot_product_attention`, sorted and gathered in full precision.

    Every image has as many slots as tokens, however many of these are pure: shapes depend on no data, so that nothing
    waits for a GPU to count. Groups behind the last impure token hold mirrored copies, and nobody reads their results.
    """

    def forward(
        self, qkv: Tensor, categories: Tensor, pure: Tensor | None = None, compensation: Tensor | None = None
    ) -> Tensor:
        """As the base class."""
        b, n, width = qkv.shape
        # Small whole numbers sort several times as fast in 16 bits as in 64.
        key = categories.to(torch.int16)
        if pure is not None:
            key = key.masked_fill(pure, torch.iinfo(torch.int16).max)
        tokens = key.argsort(dim=1, stable=True) + torch.arange(0, b * n, n, device=qkv.device).unsqueeze(1)
        source = tokens
        if pure is not None:
            # Without any impure token a pure one stands in for it.
            m = (n - pure.sum(dim=1, keepdim=True)).clamp(min=1)
            source = tokens.gather(1, mirror_slots(torch.arange(n, device=qkv.device), cast(Any, m)))
        groups = qkv.reshape(b * n, width).float().index_select(0, source.flatten()).view(-1, self.group, width)
        q, k, v = padded_heads(groups, self.heads)
        q = q * self.logit_scale.clamp(max=math.log(100)).exp()
        q, k, v = (x.to(qkv.dtype) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        mixed = self.proj(merge_heads(mixed[..., : width // 3 // self.heads]).view(b * n, width // 3))
        # The first n slots of an image hold each of its tokens once.
        out = torch.empty_like(mixed).index_copy(0, tokens.flatten(), mixed).view(b, n, width // 3)
        if pure is None:
            return out
        rest = out.new_zeros(()) if compensation is None else compensation
        return torch.where(pure.unsqueeze(-1), rest, out)


class HalfLinear(nn.Linear):
    """A linear layer that trains in bf16 and is evaluated in full precision."""

    def forward(self, input: Tensor) -> Tensor:
        """As the base class."""
        with torch.autocast(input.device.type, torch.bfloat16, enabled=self.training):
            return super().forward(input)


class HalfConv(nn.Conv2d):
    """A convolution that trains in bf16 and is evaluated in full precision."""

    def forward(self, input: Tensor) -> Tensor:
        """As the base class."""
        with torch.autocast(input.device.type, torch.bfloat16, enabled=self.training):
            return super().forward(input)


def _full(network: ATDLight) -> set[nn.Module]:
    """The modules that compute in full precision whatever happens."""
    kept: list[nn.Module] = [m for m in network.modules() if isinstance(m, DictionaryAttention)]
    kept += [network.conv_first, *(network.get_submodule(name) for name in network.tail)]
    return {inner for module in kept for inner in module.modules()}


def use_gpu_modules(network: ATDLight, half: bool) -> int:
    """Swap attention in *network*, and if *half* what computes in bf16, in place; returns how many modules."""
    classes: dict[type[nn.Module], type[nn.Module]] = {
        WindowAttention: SdpaWindowAttention,
        CategoryAttention: SdpaCategoryAttention,
    }
    full: set[nn.Module] = set()
    if half:
        classes |= {nn.Linear: HalfLinear, nn.Conv2d: HalfConv}
        full = _full(network)
    swapped = [module for module in network.modules() if type(module) in classes and module not in full]
    for module in swapped:
        module.__class__ = classes[type(module)]
    return len(swapped)
