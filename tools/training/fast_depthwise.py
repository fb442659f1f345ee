"""The depthwise convolution of ConvFFN through depthwise.c, whose backward pass takes a tenth of PyTorch's time."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.networks.atd.network import DepthwiseConv
from training.compiled import address, library


def depthwise_library(channels: int, kernel: int) -> ctypes.CDLL:
    """depthwise.c for tokens of *channels* channels and a *kernel* x *kernel* kernel."""
    return library("depthwise.c", CHANNELS=channels, KERNEL=kernel)


class _Depthwise(torch.autograd.Function):
    """Tokens (b, h, w, c), weight (kernel, kernel, c) and bias (c) -> tokens (b, h, w, c)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        functions = depthwise_library(x.shape[3], weight.shape[0])
        sizes = [ctypes.c_int64(side) for side in x.shape[:3]]
        if not functions.depthwise_forward(*sizes, *(address(t) for t in (x, weight, bias, out))):
            raise MemoryError
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dout = grads[0].contiguous()
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        functions = depthwise_library(x.shape[3], weight.shape[0])
        sizes = [ctypes.c_int64(side) for side in x.shape[:3]]
        if not functions.depthwise_backward(*sizes, *(address(t) for t in (x, weight, dout, dx, dweight))):
            raise MemoryError
        return dx, dweight, dout.sum(dim=(0, 1, 2))


class FastDepthwiseConv(DepthwiseConv):
    """DepthwiseConv on tokens as they lie; sides are multiples of 16."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """As the base class."""
        b, n, c = x.shape
        conv = self.depthwise_conv[0]
        out = _Depthwise.apply(x.view(b, *size, c), conv.weight[:, 0].permute(1, 2, 0), conv.bias)  # type: ignore
        return F.gelu(out).view(b, n, c)
