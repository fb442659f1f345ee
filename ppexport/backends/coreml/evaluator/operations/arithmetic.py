"""Arithmetic, comparisons and logic, element by element, with broadcasting.

Whole numbers are computed with 64 bits, so that a result that its type does not hold is an error and no other number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


def wide(x: Tensor) -> Tensor:
    """Whole numbers with 64 bits; others as they are."""
    return x if x.is_floating_point() or x.dtype == torch.bool else x.long()


@operation
def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y."""
    return wide(x) + wide(y)


@operation
def sub(x: Tensor, y: Tensor) -> Tensor:
    """x - y."""
    return wide(x) - wide(y)


@operation
def mul(x: Tensor, y: Tensor) -> Tensor:
    """x * y."""
    return wide(x) * wide(y)


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
def mod(x: Tensor, y: Tensor) -> Tensor:
    """x - y * floor_div(x, y)."""
    return torch.remainder(x, y)


@operation
def pow_(x: Tensor, y: Tensor) -> Tensor:
    """x to the power y."""
    if not x.is_floating_point() and bool((x.double().pow(y.double()).abs() >= 2.0**62).any()):
        raise ArtifactError("a power of whole numbers is beyond 64 bits")
    return torch.pow(wide(x), wide(y))


@operation
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger one."""
    return torch.maximum(x, y)


@operation
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller one."""
    return torch.minimum(x, y)


@operation
def equal(x: Tensor, y: Tensor) -> Tensor:
    """x == y."""
    return x == y


@operation
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """x != y."""
    return x != y


@operation
def less(x: Tensor, y: Tensor) -> Tensor:
    """x < y."""
    return x < y


@operation
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """x <= y."""
    return x <= y


@operation
def greater(x: Tensor, y: Tensor) -> Tensor:
    """x > y."""
    return x > y


@operation
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """x >= y."""
    return x >= y


@operation
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Both."""
    return torch.logical_and(x, y)


@operation
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """At least one."""
    return torch.logical_or(x, y)


@operation
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Exactly one."""
    return torch.logical_xor(x, y)


@operation
def logical_not(x: Tensor) -> Tensor:
    """The opposite."""
    return torch.logical_not(x)


@operation
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """*a* where *cond*, else *b*."""
    return torch.where(cond, a, b)


@operation
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """*x* limited to [alpha, beta]."""
    return x.clamp(alpha, beta)


@operation
def cast(x: Tensor, dtype: str) -> Tensor:
    """*x* as *dtype*: floats lose their fraction on the way to integers, a bool is whether a number is not 0."""
    if dtype == "bool":
        return x != 0
    if dtype in ("fp16", "fp32"):
        return x.float()
    return x.trunc().to(torch.int64) if x.is_floating_point() else x.to(torch.int64)


@operation
def identity(x: Tensor) -> Tensor:
    """*x*."""
    return x


@operation
def abs_(x: Tensor) -> Tensor:
    """|x|."""
    return x.abs()


@operation
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return x.sign()


@operation
def floor(x: Tensor) -> Tensor:
    """The largest whole number not above x."""
    return x.floor()


@operation
def ceil(x: Tensor) -> Tensor:
    """The smallest whole number not below x."""
    return x.ceil()


@operation
def round_(x: Tensor) -> Tensor:
    """The nearest whole number, halves to even."""
    return x.round()


@operation
def square(x: Tensor) -> Tensor:
    """x * x."""
    return wide(x) * wide(x)


@operation
def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return x.sqrt()


@operation
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return 1 / torch.sqrt(x + epsilon)


@operation
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (x + epsilon)


@operation
def exp(x: Tensor) -> Tensor:
    """e to the power x."""
    return x.exp()


@operation
def exp2(x: Tensor) -> Tensor:
    """2 to the power x."""
    return torch.exp2(x)


@operation
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """The natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@operation
def sin(x: Tensor) -> Tensor:
    """The sine."""
    return x.sin()


@operation
def cos(x: Tensor) -> Tensor:
    """The cosine."""
    return x.cos()


@operation
def erf(x: Tensor) -> Tensor:
    """The error function."""
    return torch.erf(x)
