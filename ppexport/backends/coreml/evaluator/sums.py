"""What adds up, or chooses among, many elements: reductions, norms, products, convolutions, pools.

Sums, means and variances are fp32, and a result is rounded once at the end.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator import Kernel, operation, operations
from ppexport.errors import ArtifactError


def _reduction(function: Kernel) -> Kernel:
    """MIL's parameters in place of PyTorch's; all axes unless some are named."""

    def reduce(x: Tensor, axes: Any = None, keep_dims: bool = False) -> Any:
        return function(x, dim=list(range(x.dim())) if axes is None else axes, keepdim=keep_dims)

    return reduce


operations(
    {
        "reduce_sum": _reduction(torch.sum),
        "reduce_mean": _reduction(torch.mean),
        "reduce_max": _reduction(torch.amax),
        "reduce_min": _reduction(torch.amin),
        "reduce_sum_square": _reduction(lambda x, **how: x.square().sum(**how)),
        "reduce_l1_norm": _reduction(lambda x, **how: x.abs().sum(**how)),
        "reduce_l2_norm": _reduction(lambda x, **how: x.square().sum(**how).sqrt()),
        "reduce_log_sum_exp": _reduction(torch.logsumexp),
        # Of equal elements the first.
        "reduce_argmax": lambda x, axis=-1, keep_dims=False, output_dtype="": x.argmax(axis, keep_dims),
        "reduce_argmin": lambda x, axis=-1, keep_dims=False, output_dtype="": x.argmin(axis, keep_dims),
        "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
        "matmul": lambda x, y, transpose_x=False, transpose_y=False: (
            (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)
        ),
    }
)


@operation
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """The running sum along *axis*; *exclusive* of the element itself, *reverse* from the end."""
    flipped = x.flip(axis) if reverse else x
    summed = flipped.cumsum(axis)
    if exclusive:
        # Not the sum without its last summand: a large one would take the small ones before it along.
        ahead = torch.zeros_like(summed.narrow(axis, 0, 1))
        summed = torch.cat([ahead, summed.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    return summed.flip(axis) if reverse else summed


def _standardise(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """*x* without its mean and divided by its deviation over *axes*."""
    mean = x.mean(dim=axes, keepdim=True)
    variance = (x - mean).square().mean(dim=axes, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon)


@operation
def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Standardised over *axes*, then times *gamma* plus *beta*, whose shape is that of *axes*."""
    chosen = sorted(a % x.dim() for a in (range(x.dim()) if axes is None else axes))
    return _scaled(_standardise(x, chosen, epsilon), chosen, gamma, beta)


@operation
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x (n, c, ...) standardised over all but its first two axes, then times *gamma* plus *beta* (c,)."""
    return _scaled(_standardise(x, list(range(2, x.dim())), epsilon), [1], gamma, beta)


def _scaled(x: Tensor, axes: list[int], gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """*x* times *gamma* plus *beta*, which run along *axes*."""
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


@operation
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key^T / sqrt(d) + mask) @ value; a bool mask says which pairs count."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _pad_windows(
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pad_type: str,
    pad: list[int] | None,
    value: float = 0.0,
) -> Tensor:
    """*x* (n, c, ...) with *value* around it, so that windows need no padding of their own.

    *pad* are elements before and after every spatial axis, as MIL counts them: from the first axis on.
    """
    lengths = x.shape[2:]
    if pad_type == "valid":
        return x
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * len(lengths):
            raise ArtifactError(f"custom padding of {len(lengths)} axes takes {2 * len(lengths)} numbers, not {pad}")
        pads = pad
    elif pad_type in ("same", "same_lower"):
        pads = []
        for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            pads += [small, large] if pad_type == "same" else [large, small]
    else:
        raise ArtifactError(f"pad_type {pad_type!r} is not known")
    backwards = [n for i in range(len(pads) - 2, -1, -2) for n in (pads[i], pads[i + 1])]
    return F.pad(x, backwards, value=value) if any(backwards) else x


@operation
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution in 1 to 3 dimensions of x (n, c, ...) with *weight* (e, c / groups, ...)."""
    axes = x.dim() - 2
    steps, spread = strides or [1] * axes, dilations or [1] * axes
    padded = _pad_windows(x, list(weight.shape[2:]), steps, spread, pad_type, pad)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return function(padded, weight, bias, stride=steps, dilation=spread, groups=groups)


@operation
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest of every window of x (n, c, ...)."""
    if ceil_mode:
        raise ArtifactError("pooling with ceil_mode, whose last windows are incomplete, is not known here")
    axes = x.dim() - 2
    steps = strides or [1] * axes
    padded = _pad_windows(x, kernel_sizes, steps, [1] * axes, pad_type, pad, -math.inf)
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1](padded, kernel_sizes, steps)
