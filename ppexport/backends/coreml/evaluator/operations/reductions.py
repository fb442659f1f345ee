"""Sums, extremes and their places, and running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation


def every(x: Tensor, axes: list[int] | None) -> list[int]:
    """*axes*, or all of them."""
    return list(range(x.dim())) if axes is None else axes


@operation
def reduce_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The sum."""
    return x.sum(dim=every(x, axes), keepdim=keep_dims)


@operation
def reduce_mean(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The mean."""
    return x.mean(dim=every(x, axes), keepdim=keep_dims)


@operation
def reduce_max(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The largest."""
    return x.amax(dim=every(x, axes), keepdim=keep_dims)


@operation
def reduce_min(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The smallest."""
    return x.amin(dim=every(x, axes), keepdim=keep_dims)


@operation
def reduce_prod(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The product."""
    for axis in sorted((a % x.dim() for a in every(x, axes)), reverse=True):
        x = x.prod(dim=axis, keepdim=keep_dims)
    return x


@operation
def reduce_sum_square(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The sum of the squares."""
    return x.square().sum(dim=every(x, axes), keepdim=keep_dims)


@operation
def reduce_l1_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The sum of the magnitudes."""
    return x.abs().sum(dim=every(x, axes), keepdim=keep_dims)


@operation
def reduce_l2_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The length."""
    return x.square().sum(dim=every(x, axes), keepdim=keep_dims).sqrt()


@operation
def reduce_log_sum_exp(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The logarithm of the sum of e^x."""
    return torch.logsumexp(x, dim=every(x, axes), keepdim=keep_dims)


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
