"""Products: matrices, convolutions, attention. Sums are fp32, rounded once at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator.operations.windows import pad_windows
from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


@operation
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., d) times the transposed *weight* (e, d), plus *bias* (e,)."""
    return F.linear(x, weight, bias)


@operation
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """The product of the last two axes, each transposed first if asked."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


@operation
def einsum(values: list[Tensor], equation: str) -> Tensor:
    """The sum of products that *equation* says."""
    return torch.einsum(equation, *values)


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
    padded = pad_windows(x, list(weight.shape[2:]), steps, spread, pad_type, pad, 0.0)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return function(padded, weight, bias, stride=steps, dilation=spread, groups=groups)


@operation
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The transpose of a convolution: x (n, c, ...), *weight* (c, e / groups, ...); *pad* is cut off the result."""
    axes = x.dim() - 2
    if pad_type not in ("valid", "custom"):
        raise ArtifactError(f"conv_transpose with pad_type {pad_type!r} is not known here")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    out = function(x, weight, None, stride=strides or 1, dilation=dilations or 1, groups=groups)
    for axis in range(axes):
        before = pad[2 * axis] if pad else 0
        after = pad[2 * axis + 1] if pad else 0
        length = out.shape[axis + 2] - before - after if output_shape is None else output_shape[axis + 2]
        out = F.pad(out, [0, 0] * (axes - 1 - axis) + [0, max(0, before + length - out.shape[axis + 2])])
        out = out.narrow(axis + 2, before, length)
    # Last, since it is added also where *output_shape* reaches beyond the last window.
    return out if bias is None else out + bias.reshape(1, -1, *[1] * axes)


@operation
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key^T / sqrt(d) + mask) @ value; a bool mask says which pairs count."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
