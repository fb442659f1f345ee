"""Modules of a twin that XNNPACK computes better when they are written another way.

Category attention. Before (twin/layers.py): one rank-5 permutation of the slots, whose parts are then selected. With a
symbolic number of slots XNNPACK permutes and does not select, so every layer has a subgraph with nothing but that
permutation. After: the slots are cut into queries, keys and values at once, and each is permuted in the subgraph that
uses it.

Depthwise convolutions. Before: 7x7, which is 49 products for each output. XNNPACK's kernels for them have 25 at most;
with more it computes every channel as a convolution of its own. After: a sum of convolutions of 2x7, 2x7 and 3x7. For
48 channels that takes 0.8 ms in place of 7.5 ms at 64x64, 0.18 ms in place of 0.73 ms at 32x32 (ExecuTorch 1.5.1, one
thread of an x86 CPU with AVX-512).
"""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.backends.executorch.float_sort import FloatSort
from ppexport.twin.counting_sort import CountingSort
from ppexport.twin.layers import StaticCategoryAttention
from ppexport.twin.twin import StaticTwin

TAPS = 25
"""Products of XNNPACK's largest depthwise kernel."""


class SplitHeads(StaticCategoryAttention):
    """As `StaticCategoryAttention`."""

    def __init__(self, source: StaticCategoryAttention) -> None:
        nn.Module.__init__(self)
        self.heads, self.group, self.channels, self.scale = source.heads, source.group, source.channels, source.scale
        self.dense, self.router, self.proj = source.dense, source.router, source.proj

    def attend(self, slots: Tensor) -> Tensor:
        """As `StaticCategoryAttention.attend`."""
        c, shape = self.channels, (-1, self.group, self.heads, self.channels // self.heads)
        q, k, v = (slots[:, i * c : (i + 1) * c].reshape(*shape).permute(0, 2, 1, 3) for i in range(3))
        weights = (q * self.scale @ k.transpose(2, 3)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(-1, c))
        return out


def is_large_depthwise(module: nn.Module) -> bool:
    """Whether *module* is a depthwise convolution with more products than XNNPACK has a kernel for."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels
        and module.kernel_size[0] * module.kernel_size[1] > TAPS
        and module.kernel_size[1] <= TAPS
        and (module.stride, module.dilation, module.padding_mode) == ((1, 1), (1, 1), "zeros")
        and not isinstance(module.padding, str)
    )


class SplitDepthwise(nn.Module):
    """A large depthwise convolution, as the sum of those with some of its rows."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """*conv* is one of which `is_large_depthwise` says so."""
        super().__init__()
        rows, columns = conv.kernel_size
        count = -(-rows // (TAPS // columns))
        self.firsts = [rows * i // count for i in range(count)]
        self.parts = nn.ParameterList(conv.weight.detach().tensor_split(self.firsts[1:], dim=2))
        self.bias, self.channels, self.rows = conv.bias, conv.in_channels, rows
        sides = (0, 0) if isinstance(conv.padding, str) else conv.padding
        self.pads = [pad for side in reversed(sides) for pad in (side, side)]

    def forward(self, x: Tensor) -> Tensor:
        """(1, c, h, w) -> what the convolution gives."""
        padded = F.pad(x, self.pads)
        height, sums = padded.shape[2] - self.rows + 1, []
        for first, weight in zip(self.firsts, self.parts, strict=True):
            seen = padded[:, :, first : first + height + weight.shape[2] - 1]
            sums.append(F.conv2d(seen, weight, None if first else self.bias, groups=self.channels))
        return functools.reduce(torch.add, sums)


def with_own_modules(twin: StaticTwin) -> StaticTwin:
    """A copy of *twin* with the modules of this folder in place of those that they replace."""
    # The network that it was made from is not copied.
    copied = copy.deepcopy(twin, {id(twin.source): twin.source})
    for name, module in list(copied.named_modules()):
        if isinstance(module, StaticCategoryAttention):
            copied.set_submodule(name, SplitHeads(module))
        elif isinstance(module, nn.Conv2d) and is_large_depthwise(module):
            copied.set_submodule(name, SplitDepthwise(module))
    # Some of them are in modules that were replaced.
    for name, module in list(copied.named_modules()):
        if isinstance(module, CountingSort):
            copied.set_submodule(name, FloatSort(module, twin.tokens))
    return copied
