"""What moves, repeats, chooses and makes elements without computing with them, and what enlarges images.

An index outside its axis is an error here; on a device its result is undefined.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator import operation, operations
from ppexport.errors import ArtifactError

EXACT = torch.float64
"""Holds every int32; the evaluator rounds it to the type that the file declares."""
NO_NEGATIVES = 7
"""From CoreML7 (iOS 17) on, negative indices are outside."""

operations(
    {
        "transpose": lambda x, perm: x.permute(perm),
        "squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)),
        "tile": lambda x, reps: x.repeat(reps),
        "stack": lambda values, axis: torch.stack(values, dim=axis),
        "reverse": lambda x, axes=None: x.flip(list(range(x.dim())) if axes is None else axes),
        "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
        "fill": lambda shape, value=0.0: torch.full(shape, value, dtype=EXACT),
        "fill_like": lambda ref_tensor, value=0.0: torch.full(ref_tensor.shape, value, dtype=EXACT),
        "range_1d": lambda end, start, step: torch.arange(start, end, step, dtype=EXACT),
        # Equal elements keep their order.
        "argsort": lambda x, axis=-1, ascending=False: torch.argsort(
            x, dim=axis, descending=not ascending, stable=True
        ),
        "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, upscale_factor),
        "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, downscale_factor),
        "upsample_nearest_neighbor": lambda x, scale_factor_height=1, scale_factor_width=1: F.interpolate(
            x, scale_factor=(scale_factor_height, scale_factor_width), mode="nearest"
        ),
        # Weights as another type of floats, which the evaluator rounds to.
        "constexpr_cast": lambda source_val, output_dtype: source_val,
    }
)


@operation
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """The elements of *x* in *shape*; one length may be -1, 0 is the length of *x*."""
    return x.reshape([x.shape[i] if n == 0 and i < x.dim() else n for i, n in enumerate(shape)])


@operation
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """New axes of length 1, at *axes* of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operation
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """*values* one after the other along *axis*; *interleave* takes their elements in turns."""
    if not interleave:
        return torch.cat(values, dim=axis)
    axis %= values[0].dim()
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@operation
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    """Pieces of *x* along *axis*: of *split_sizes*, or *num_splits* equal ones."""
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ArtifactError(f"axis {axis} of {tuple(x.shape)} does not split into {num_splits} equal pieces")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, split_sizes, dim=axis)


@operation
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """*x* with pad[2 i] elements before and pad[2 i + 1] after; pairs count from the first of the last axes."""
    # MIL counts the pairs from the first padded axis on, PyTorch from the last one back.
    pairs = [n for i in range(len(pad) - 2, -1, -2) for n in (pad[i], pad[i + 1])]
    if mode == "constant":
        return F.pad(x, pairs, value=constant_val if x.is_floating_point() else int(constant_val))
    if mode not in ("reflect", "replicate"):
        raise ArtifactError(f"pad has no mode {mode!r}")
    while len(pairs) > 2 and pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    axes = len(pairs) // 2
    # PyTorch pads the last 1 to 3 axes behind two others.
    lead = x.reshape(1, -1, *x.shape[x.dim() - axes :])
    padded = F.pad(lead, pairs, mode=mode)
    return padded.reshape(*x.shape[: x.dim() - axes], *padded.shape[2:])


@operation
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """x (n, c, h, w) interpolated; the corners' centres stay, or the corners."""
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ArtifactError("upsample_bilinear without half_pixel_centers and without align_corners is not known here")
    size = [int(n * f) for n, f in zip(x.shape[2:], (scale_factor_height, scale_factor_width), strict=True)]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


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
    chosen = _places(indices, data.shape[axis], opset)
    match mode:
        case "update":
            return data.scatter(axis, chosen, updates)
        case "add" | "sub":
            return data.scatter_add(axis, chosen, updates if mode == "add" else -updates)
        case _:
            raise ArtifactError(f"scatter mode {mode!r} is not known here")


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
    rank, no = x.dim(), [False] * x.dim()
    axes = zip(begin, end, stride or [1] * rank, begin_mask or no, end_mask or no, squeeze_mask or no, strict=True)
    dropped = []
    for axis, (first, last, step, from_start, to_end, one) in enumerate(axes):
        length = x.shape[axis]
        if one:
            x = x.narrow(axis, int(_places(torch.tensor(first), length, 0)), 1)
            dropped.append(axis)
            continue
        chosen = range(*slice(None if from_start else first, None if to_end else last, step).indices(length))
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
