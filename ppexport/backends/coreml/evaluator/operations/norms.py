"""Normalisations. Means and variances are fp32, the result is rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation


def standardise(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """*x* without its mean and divided by its deviation over *axes*."""
    mean = x.mean(dim=axes, keepdim=True)
    variance = (x - mean).square().mean(dim=axes, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon)


def along_channels(x: Tensor, per_channel: Tensor) -> Tensor:
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
    out = standardise(x, chosen, epsilon)
    shape = [n if i in chosen else 1 for i, n in enumerate(x.shape)]
    if gamma is not None:
        out = out * gamma.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


@operation
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x (n, c, ...) standardised over all but its first two axes, then times *gamma* plus *beta* (c,)."""
    out = standardise(x, list(range(2, x.dim())), epsilon)
    if gamma is not None:
        out = out * along_channels(x, gamma)
    return out if beta is None else out + along_channels(x, beta)


@operation
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """x (n, c, ...) standardised with the given *mean* and *variance*, then times *gamma* plus *beta*, all (c,)."""
    out = (x - along_channels(x, mean)) / torch.sqrt(along_channels(x, variance) + epsilon)
    if gamma is not None:
        out = out * along_channels(x, gamma)
    return out if beta is None else out + along_channels(x, beta)


@operation
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x divided by its length over the last three axes."""
    return x / torch.sqrt(x.square().sum(dim=(-3, -2, -1), keepdim=True) + epsilon)
