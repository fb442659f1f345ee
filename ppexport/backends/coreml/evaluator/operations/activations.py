"""Activations and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


@operation
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


@operation
def relu6(x: Tensor) -> Tensor:
    """*x* limited to [0, 6]."""
    return F.relu6(x)


@operation
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """*x*, times *alpha* below 0."""
    return F.leaky_relu(x, alpha)


@operation
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """*x* (n, c, ...), times its channel's *alpha* (c,) below 0."""
    return F.prelu(x, alpha)


@operation
def elu(x: Tensor, alpha: float) -> Tensor:
    """*x*, or alpha * (e^x - 1) below 0."""
    return F.elu(x, alpha)


@operation
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """*x* where it is at least *alpha*, else 0."""
    return torch.where(x >= alpha, x, torch.zeros(()))


@operation
def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha)."""
    return x.clamp(min=alpha)


@operation
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta."""
    return alpha * x + beta


@operation
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


@operation
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta limited to [0, 1]."""
    return (alpha * x + beta).clamp(0, 1)


@operation
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return F.silu(x)


@operation
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(x)


@operation
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return F.softplus(x)


@operation
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x times the normal distribution of x, exactly (erf) or in one of two approximations."""
    match mode:
        case "EXACT":
            return F.gelu(x)
        case "TANH_APPROXIMATION":
            return F.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return x * torch.sigmoid(1.702 * x)
    raise ArtifactError(f"gelu has no mode {mode!r}")


@operation
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """e^x divided by its sum along *axis*."""
    return F.softmax(x, axis)
