"""What moves, repeats and makes elements without computing with them, and what enlarges images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator import operation
from ppexport.errors import ArtifactError

EXACT = torch.float64
"""Holds every int32; the evaluator rounds it to the type that the file declares."""


@operation
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """The elements of *x* in *shape*; one length may be -1, 0 is the length of *x*."""
    return x.reshape([x.shape[i] if n == 0 and i < x.dim() else n for i, n in enumerate(shape)])


@operation
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    """Axis i of the result is axis perm[i] of *x*."""
    return x.permute(perm)


@operation
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """New axes of length 1, at *axes* of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operation
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """*x* without *axes*, which have length 1; None for all such axes."""
    if axes is None:
        return x.squeeze()
    if any(x.shape[a] != 1 for a in axes):
        raise ArtifactError(f"axes {axes} of {tuple(x.shape)} are not all of length 1")
    return x.squeeze(tuple(axes))


@operation
def tile(x: Tensor, reps: list[int]) -> Tensor:
    """*x* repeated *reps* times along every axis."""
    return x.repeat(reps)


@operation
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """*values* one after the other along *axis*; *interleave* takes their elements in turns."""
    if not interleave:
        return torch.cat(values, dim=axis)
    axis %= values[0].dim()
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@operation
def stack(values: list[Tensor], axis: int) -> Tensor:
    """*values* along a new *axis*."""
    return torch.stack(values, dim=axis)


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
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """*x* from its end along *axes*, or all."""
    return x.flip(list(range(x.dim())) if axes is None else axes)


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
def shape(x: Tensor) -> Tensor:
    """The lengths of *x*."""
    return torch.tensor(x.shape, dtype=torch.int32)


@operation
def fill(shape: list[int], value: float = 0.0) -> Tensor:
    """*value* everywhere."""
    return torch.full(shape, value, dtype=EXACT)


@operation
def fill_like(ref_tensor: Tensor, value: float = 0.0) -> Tensor:
    """*value* everywhere, in the shape of *ref_tensor*."""
    return torch.full(ref_tensor.shape, value, dtype=EXACT)


@operation
def range_1d(end: float, start: float, step: float) -> Tensor:
    """start, start + step, ... below *end*."""
    return torch.arange(start, end, step, dtype=EXACT)


@operation
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """x (n, c r r, h, w) -> (n, c, h r, w r)."""
    return F.pixel_shuffle(x, upscale_factor)


@operation
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """x (n, c, h r, w r) -> (n, c r r, h, w)."""
    return F.pixel_unshuffle(x, downscale_factor)


@operation
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """x (n, c, h, w) with pixels repeated."""
    return F.interpolate(x, scale_factor=(scale_factor_height, scale_factor_width), mode="nearest")


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
