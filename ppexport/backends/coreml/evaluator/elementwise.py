"""What is computed element by element: arithmetic, comparisons, logic, activations, and levels of 8 bits.

Whole numbers are computed with 64 bits, so that a result that its type does not hold is an error and no other number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator import Kernel, operation, operations
from ppexport.errors import ArtifactError

UNARY = (
    torch.abs, torch.sign, torch.floor, torch.ceil, torch.round, torch.sqrt, torch.exp, torch.exp2, torch.sin,
    torch.cos, torch.tanh, torch.erf, torch.relu, torch.sigmoid, torch.logical_not, F.relu6, F.silu, F.softplus,
)  # fmt: skip
"""Functions of PyTorch that are MIL's as well; `round` rounds halves to even in both."""
BINARY = (torch.maximum, torch.minimum, torch.logical_and, torch.logical_or, torch.logical_xor)


def _wide(x: Tensor) -> Tensor:
    """Whole numbers with 64 bits; others as they are."""
    return x if x.is_floating_point() or x.dtype == torch.bool else x.long()


def _of_x(function: Kernel) -> Kernel:
    return lambda x: function(x)


def _of_x_and_y(function: Kernel) -> Kernel:
    return lambda x, y: function(x, y)


operations({function.__name__: _of_x(function) for function in UNARY})
operations({function.__name__: _of_x_and_y(function) for function in BINARY})
operations(
    {
        "identity": lambda x: x,
        "add": lambda x, y: _wide(x) + _wide(y),
        "sub": lambda x, y: _wide(x) - _wide(y),
        "mul": lambda x, y: _wide(x) * _wide(y),
        "mod": lambda x, y: torch.remainder(x, y),  # x - y * floor_div(x, y)
        "square": lambda x: _wide(x) * _wide(x),
        "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
        "threshold": lambda x, alpha: x.clamp(min=alpha),
        "equal": lambda x, y: x == y,
        "not_equal": lambda x, y: x != y,
        "less": lambda x, y: x < y,
        "less_equal": lambda x, y: x <= y,
        "greater": lambda x, y: x > y,
        "greater_equal": lambda x, y: x >= y,
        "select": lambda cond, a, b: torch.where(cond, a, b),
        "rsqrt": lambda x, epsilon=1e-12: 1 / torch.sqrt(x + epsilon),
        "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
        "log": lambda x, epsilon=1e-45: torch.log(x + epsilon),
        "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
        "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros(())),
        "elu": lambda x, alpha: F.elu(x, alpha),
        "linear_activation": lambda x, alpha, beta: alpha * x + beta,
        "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
        "softmax": lambda x, axis=-1: F.softmax(x, axis),
    }
)


@operation
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y of floats."""
    if not x.is_floating_point() or not y.is_floating_point():
        raise ArtifactError("real_div of whole numbers is not known here")
    return x / y


@operation
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """The largest whole number not above x / y."""
    if not x.is_floating_point() and bool((y == 0).any()):
        raise ArtifactError("an integer is divided by zero")
    return torch.div(x, y, rounding_mode="floor")


@operation
def pow_(x: Tensor, y: Tensor) -> Tensor:
    """x to the power y."""
    if not x.is_floating_point() and bool((x.double().pow(y.double()).abs() >= 2.0**62).any()):
        raise ArtifactError("a power of whole numbers is beyond 64 bits")
    return torch.pow(_wide(x), _wide(y))


@operation
def cast(x: Tensor, dtype: str) -> Tensor:
    """*x* as *dtype*: floats lose their fraction on the way to integers, a bool is whether a number is not 0."""
    if dtype == "bool":
        return x != 0
    return x.float() if dtype in ("fp16", "fp32") else x.long()


@operation
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """*x* (n, c, ...), times its channel's *alpha* (c,) below 0."""
    return F.prelu(x, alpha)


@operation
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x times the normal distribution of x, exactly (erf) or approximated."""
    modes = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
    if mode not in modes:
        raise ArtifactError(f"gelu has no mode {mode!r}")
    return F.gelu(x, approximate=modes[mode])


def _along(value: Tensor, input: Tensor, axis: int | None) -> Tensor:
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
    levels = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        levels = levels + _along(zero_point, input, axis)
    return levels.clamp(limits.min, limits.max).to(torch.int32)


@operation
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point)."""
    levels = input if zero_point is None else input - _along(zero_point, input, axis)
    return _along(scale, input, axis) * levels.float()


@operation
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (quantized_data - zero_point): weights of iOS 16, the last two scalars or vectors along *axis*."""
    return dequantize(quantized_data, scale, zero_point, axis)


@operation
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset): weights from iOS 18 on. A scale holds for a block, the quotient of the shapes."""
    for axis, (length, blocks) in enumerate(zip(data.shape, scale.shape, strict=True)):
        if length % blocks:
            raise ArtifactError(f"{blocks} scales do not divide {length} weights")
        if blocks not in (1, length):
            scale = scale.repeat_interleave(length // blocks, dim=axis)
            offset = None if offset is None else offset.repeat_interleave(length // blocks, dim=axis)
    return scale * (data.float() if offset is None else (data - offset).float())
