"""Compressed weights: what a device unpacks when it loads the model."""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


@operation
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (quantized_data - zero_point), the last two scalars or vectors along *axis*."""
    shape = [-1 if i == axis % quantized_data.dim() else 1 for i in range(quantized_data.dim())]
    return scale.reshape(shape) * (quantized_data - zero_point.reshape(shape)).float()


@operation
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset); a scale holds for a block, as large as the quotient of the shapes."""
    for axis, (length, blocks) in enumerate(zip(data.shape, scale.shape, strict=True)):
        if length % blocks:
            raise ArtifactError(f"{blocks} scales do not divide {length} weights")
        if blocks not in (1, length):
            scale = scale.repeat_interleave(length // blocks, dim=axis)
            offset = None if offset is None else offset.repeat_interleave(length // blocks, dim=axis)
    return scale * (data.float() if offset is None else (data - offset).float())


@operation
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """The weights as another type of floats."""
    return source_val


@operation
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: list[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """Weights out of a table: packed indices and a *shape* (iOS 16), or indices of the weights' shape (iOS 18)."""
    if shape is not None:
        count, bits = int(torch.tensor(shape).prod()), lut.numel().bit_length() - 1
        # Indices are packed lowest bits first.
        single = (indices.reshape(-1, 1) >> torch.arange(8)) & 1
        packed = single.reshape(-1)[: count * bits].reshape(count, bits)
        return lut.reshape(-1)[(packed << torch.arange(bits)).sum(dim=1)].reshape(shape)
    if lut.shape[-1] != 1:
        raise ArtifactError("tables of vectors are not known here")
    table = lut.squeeze(-1)
    for axis, (length, groups) in enumerate(zip(indices.shape, table.shape, strict=False)):
        table = table.repeat_interleave(length // groups, dim=axis)
    return table.gather(-1, indices.long().unsqueeze(-1)).squeeze(-1)
