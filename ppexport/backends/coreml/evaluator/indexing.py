"""Slices, gathers, scatters and orders, and compressed weights, which a device unpacks when it loads the model.

An index outside its axis is an error here; on a device its result is undefined.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.coreml.evaluator import operation
from ppexport.errors import ArtifactError

NO_NEGATIVES = 7
"""From CoreML7 (iOS 17) on, negative indices are outside."""


def _places(indices: Tensor, length: int, opset: int) -> Tensor:
    """*indices* into an axis of *length*, as int64 from 0 on. Raises ArtifactError where one is outside."""
    indices = indices.long()
    if indices.numel():
        low = 0 if opset >= NO_NEGATIVES else -length
        smallest, largest = int(indices.min()), int(indices.max())
        if smallest < low or largest >= length:
            raise ArtifactError(f"indices from {smallest} to {largest} reach outside an axis of {length}")
    return torch.where(indices < 0, indices + length, indices)


@operation
def gather(
    x: Tensor, indices: Tensor, opset: int, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """*x* at *indices* along *axis*; the first *batch_dims* axes of both go together."""
    axis %= x.dim()
    chosen = _places(indices, x.shape[axis], opset)
    if not batch_dims:
        taken = x.index_select(axis, chosen.reshape(-1))
        return taken.reshape(*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :])
    parts = [gather(a, b, opset, axis - 1, batch_dims - 1) for a, b in zip(x.unbind(0), chosen.unbind(0), strict=True)]
    return torch.stack(parts)


@operation
def gather_along_axis(x: Tensor, indices: Tensor, opset: int, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """result[i, j] = x[indices[i, j], j] for *axis* 0, and likewise for the others."""
    return x.gather(axis, _places(indices, x.shape[axis], opset))


def _combine(data: Tensor, where: tuple[Tensor, ...], updates: Tensor, mode: str) -> Tensor:
    """*data* with *updates* put at *where*, or combined with what is there."""
    result = data.clone()
    match mode:
        case "update":
            result[where] = updates
        case "add":
            result.index_put_(where, updates, accumulate=True)
        case "sub":
            result.index_put_(where, -updates, accumulate=True)
        case _:
            raise ArtifactError(f"scatter mode {mode!r} is not known here")
    return result


@operation
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    opset: int,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """*data* with updates[i, j] at [indices[i, j], j] for *axis* 0, and likewise for the others."""
    axis %= data.dim()
    where = [
        torch.arange(n).view([-1 if i == j else 1 for j in range(data.dim())]) for i, n in enumerate(indices.shape)
    ]
    where[axis] = _places(indices, data.shape[axis], opset)
    return _combine(data, tuple(w.expand(indices.shape) for w in where), updates, mode)


@operation
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] of every axis; a mask ignores begin or end, or takes the one element at begin."""
    dropped = []
    for axis, length in enumerate(x.shape):
        if squeeze_mask is not None and squeeze_mask[axis]:
            x = x.narrow(axis, int(_places(torch.tensor(begin[axis]), length, 0)), 1)
            dropped.append(axis)
            continue
        first = None if begin_mask is not None and begin_mask[axis] else begin[axis]
        last = None if end_mask is not None and end_mask[axis] else end[axis]
        step = 1 if stride is None else stride[axis]
        chosen = range(*slice(first, last, step).indices(length))
        if chosen != range(length):
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x.squeeze(dropped) if dropped else x


@operation
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """*size* elements from *begin* on of every axis; -1 is all that follow."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@operation
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The *k* largest (smallest if *ascending*) along *axis* and their places; equal ones in their order."""
    values, places = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    found = (values.narrow(axis, 0, k), places.narrow(axis, 0, k))
    return found if return_indices else found[:1]


@operation
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The places of the elements in order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


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
