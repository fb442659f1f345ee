"""What adds up, or chooses among, many elements: reductions, norms, products, convolutions, pools.

Sums, means and variances are fp32, and a result is rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator import Kernel, operation
from ppexport.errors import ArtifactError

REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "sum": lambda x, axes, keep: x.sum(dim=axes, keepdim=keep),
    "mean": lambda x, axes, keep: x.mean(dim=axes, keepdim=keep),
    "max": lambda x, axes, keep: x.amax(dim=axes, keepdim=keep),
    "min": lambda x, axes, keep: x.amin(dim=axes, keepdim=keep),
    "sum_square": lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep),
    "l1_norm": lambda x, axes, keep: x.abs().sum(dim=axes, keepdim=keep),
    "l2_norm": lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep).sqrt(),
    "log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep),
}


def _reduction(function: Kernel) -> Kernel:
    def reduce(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        found: Tensor = function(x, list(range(x.dim())) if axes is None else axes, keep_dims)
        return found

    return reduce


for _name, _function in REDUCTIONS.items():
    operation(_reduction(_function), f"reduce_{_name}")


@operation
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The place of the largest; of several the first."""
    return x.argmax(dim=axis, keepdim=keep_dims)


@operation
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The place of the smallest; of several the first."""
    return x.argmin(dim=axis, keepdim=keep_dims)


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


def _along_channels(x: Tensor, per_channel: Tensor) -> Tensor:
    """*per_channel* (c,) so that it broadcasts over x (n, c, ...)."""
    return per_channel.reshape(1, -1, *[1] * (x.dim() - 2))


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
    out = _standardise(x, chosen, epsilon)
    shape = [n if i in chosen else 1 for i, n in enumerate(x.shape)]
    if gamma is not None:
        out = out * gamma.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


@operation
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x (n, c, ...) standardised over all but its first two axes, then times *gamma* plus *beta* (c,)."""
    out = _standardise(x, list(range(2, x.dim())), epsilon)
    if gamma is not None:
        out = out * _along_channels(x, gamma)
    return out if beta is None else out + _along_channels(x, beta)


@operation
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., d) times the transposed *weight* (e, d), plus *bias* (e,)."""
    return F.linear(x, weight, bias)


@operation
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """The product of the last two axes, each transposed first if asked."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


@operation
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key^T / sqrt(d) + mask) @ value; a bool mask says which pairs count."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _window_pads(
    lengths: list[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pad_type: str,
    pad: list[int] | None,
) -> list[int]:
    """Elements before and after every spatial axis, as MIL counts them: from the first axis on."""
    if pad_type == "valid":
        return [0] * (2 * len(lengths))
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * len(lengths):
            raise ArtifactError(f"custom padding of {len(lengths)} axes takes {2 * len(lengths)} numbers, not {pad}")
        return pad
    if pad_type not in ("same", "same_lower"):
        raise ArtifactError(f"pad_type {pad_type!r} is not known")
    pads = []
    for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        pads += [small, large] if pad_type == "same" else [large, small]
    return pads


def _pad_windows(
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pad_type: str,
    pad: list[int] | None,
    value: float,
) -> Tensor:
    """*x* (n, c, ...) with *value* around it, so that windows need no padding of their own."""
    pads = _window_pads(list(x.shape[2:]), kernel, strides, dilations, pad_type, pad)
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
    padded = _pad_windows(x, list(weight.shape[2:]), steps, spread, pad_type, pad, 0.0)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return function(padded, weight, bias, stride=steps, dilation=spread, groups=groups)


def _refuse_ceil(ceil_mode: bool) -> None:
    """Raise ArtifactError for incomplete windows at the end."""
    if ceil_mode:
        raise ArtifactError("pooling with ceil_mode is not known here")


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
    _refuse_ceil(ceil_mode)
    axes = x.dim() - 2
    steps = strides or [1] * axes
    padded = _pad_windows(x, kernel_sizes, steps, [1] * axes, pad_type, pad, -math.inf)
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1](padded, kernel_sizes, steps)


@operation
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of every window of x (n, c, ...), its padding counted as zeros or not at all."""
    _refuse_ceil(ceil_mode)
    axes = x.dim() - 2
    steps = strides or [1] * axes
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    means = pool(_pad_windows(x, kernel_sizes, steps, [1] * axes, pad_type, pad, 0.0), kernel_sizes, steps)
    if not exclude_padding_from_average:
        return means
    inside = _pad_windows(torch.ones_like(x), kernel_sizes, steps, [1] * axes, pad_type, pad, 0.0)
    return means / pool(inside, kernel_sizes, steps)
