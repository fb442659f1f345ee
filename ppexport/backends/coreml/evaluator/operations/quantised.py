"""Activations in 8 bits: numbers as levels of a scale, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


def along(value: Tensor, input: Tensor, axis: int | None) -> Tensor:
    """A scale or zero point, one or one for every entry of *axis*, as it broadcasts over *input*."""
    if value.numel() == 1:
        return value.reshape(())
    if axis is None:
        raise ArtifactError(f"{value.numel()} scales or zero points need an axis")
    return value.reshape([-1 if i == axis % input.dim() else 1 for i in range(input.dim())])


@operation
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """input / scale + zero_point, the quotient rounded to nearest even, within the type."""
    limits = torch.iinfo({"int8": torch.int8, "uint8": torch.uint8}[output_dtype])
    levels = torch.round(input / along(scale, input, axis))
    if zero_point is not None:
        levels = levels + along(zero_point, input, axis)
    return levels.clamp(limits.min, limits.max).to(torch.int32)


@operation
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point)."""
    levels = input if zero_point is None else input - along(zero_point, input, axis)
    return along(scale, input, axis) * levels.float()
