"""Pooling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator.operations.windows import pad_windows
from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


def refuse_ceil(ceil_mode: bool) -> None:
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
    refuse_ceil(ceil_mode)
    axes = x.dim() - 2
    steps = strides or [1] * axes
    padded = pad_windows(x, kernel_sizes, steps, [1] * axes, pad_type, pad, -math.inf)
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
    refuse_ceil(ceil_mode)
    axes = x.dim() - 2
    steps = strides or [1] * axes
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    means = pool(pad_windows(x, kernel_sizes, steps, [1] * axes, pad_type, pad, 0.0), kernel_sizes, steps)
    if not exclude_padding_from_average:
        return means
    inside = pad_windows(torch.ones_like(x), kernel_sizes, steps, [1] * axes, pad_type, pad, 0.0)
    return means / pool(inside, kernel_sizes, steps)
