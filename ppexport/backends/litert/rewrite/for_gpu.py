"""Operators that LiteRT's GPU accelerator refuses, by others that it takes. Measured: docs/litert-gpu.md.

    before                                        after                                          refused was
    x.clamp(low, high)                            where(x > high, high, maximum(x, low))         RELU_0_TO_1
    x.pow(2)                                      |x|.pow(2)                                     L2_NORMALIZATION
    x.expand(..., k, ...)                         cat of k times x                               BROADCAST_TO
    where(condition, x, 0), x smaller than it     condition.float() * x                          SELECT_V2
    where(condition, x, y), one smaller than it   where(condition, x repeated, y repeated)       SELECT_V2
    constant @ x                                  (x^T @ constant^T)^T                           BATCH_MATMUL
    F.pad(x, ...), x of rank 2                    F.pad(x[None], ...)[0]                         PAD

None of them is an expand: near a convolution litert-torch 0.10 turns images to the layout NHWC, but not the shape of an
expand, so that another axis is repeated and the file is refused, or computes another picture.

The second is for the converter, which makes an L2_NORMALIZATION of a row divided by its length unless anything stands
between the row and its square.

A quotient of whole numbers that are not negative:

    div(a, b, rounding_mode="trunc")              a // b

which becomes a DIV of int32 and a few operators for signs. Of the first the converter makes a DIV of fp32 and a
correction; but on a GPU a quotient in fp32 may be off by 2.5 units in the last place, so that 12 / 6 becomes 1, and in
fp16 by more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ppexport.backends.litert.rewrite.rewritten import Rewrite, Run

aten = torch.ops.aten
MOST_REPEATS = 64
"""A tensor is repeated so often along one axis at most; beyond that it stays with the operator that is refused."""


def clamp(run: Run, x: Tensor, low: float | None = None, high: float | None = None) -> Any:
    """What `x.clamp(low, high)` gives, for a float *x*."""
    if low is None or high is None or not x.is_floating_point():
        return NotImplemented
    return torch.where(x > high, torch.tensor(float(high)), torch.maximum(x, torch.tensor(float(low))))


def square(run: Run, x: Tensor, exponent: float) -> Any:
    """What `x.pow(2)` gives."""
    return x.abs().pow(2) if exponent == 2 else NotImplemented


def repeat(x: Tensor, size: list[int]) -> Tensor:
    """*x* expanded to *size*, -1 for a length that stays, by concatenation or, of too many parts, `Tensor.repeat`."""
    shape = (1,) * (len(size) - x.dim()) + tuple(x.shape)
    times = [1 if wanted == -1 else wanted // length for wanted, length in zip(size, shape, strict=True)]
    if max(times, default=1) > MOST_REPEATS:
        return x.repeat(times)
    x = x.reshape(shape)
    for dim, count in enumerate(times):
        x = torch.cat([x] * count, dim=dim) if count > 1 else x
    return x


def expand(run: Run, x: Tensor, size: list[int], *, implicit: bool = False) -> Tensor:
    """What `x.expand(size)` gives."""
    return repeat(x, list(size))


def where(run: Run, condition: Tensor, x: Tensor, y: Tensor) -> Any:
    """What `where(condition, x, y)` gives, for finite numbers; a zero may lose its sign."""
    shape = torch.broadcast_shapes(condition.shape, x.shape, y.shape)  # type: ignore[no-untyped-call]
    if all(value.shape in (shape, ()) for value in (x, y)):
        return NotImplemented
    other = run.node.args[2]
    if isinstance(other, fx.Node) and other.target is aten.zeros.default and not other.args[0]:
        return condition.float() * x
    x, y = (value if value.shape in (shape, ()) else repeat(value, list(shape)) for value in (x, y))
    return torch.where(condition, x, y)


def matmul(run: Run, a: Tensor, b: Tensor) -> Any:
    """What `a @ b` gives, where *a* is a constant matrix; exact for sums of whole numbers below 2^24."""
    left, right = (run.is_constant(node) for node in run.node.args)
    if not left or right or a.dim() != 2 or b.dim() < 2:
        return NotImplemented
    return F.linear(b.transpose(-1, -2), a).transpose(-1, -2).contiguous()


def pad(run: Run, x: Tensor, sides: list[int], mode: str = "constant", value: float | None = None) -> Any:
    """What `F.pad(x, sides, mode, value)` gives, for *x* of rank 2."""
    if x.dim() != 2 or mode != "constant":
        return NotImplemented
    return F.pad(x.unsqueeze(0), sides, mode, value).squeeze(0)


def divide(run: Run, a: Tensor, b: Tensor | int, *, rounding_mode: str | None = None) -> Any:
    """What `torch.div(a, b, rounding_mode="trunc")` gives, for whole numbers *a* >= 0 and *b* >= 1, as tokens are."""
    constant = [run.is_constant(node) for node in run.node.all_input_nodes]
    if rounding_mode != "trunc" or a.is_floating_point() or all(constant):
        return NotImplemented
    if constant[0]:
        # The converter leaves the sign of a constant to the GPU, which takes no constant for that.
        a = a + run.opaque_zero()
    if not isinstance(b, Tensor):
        b = torch.full((1,) * a.dim(), b, dtype=a.dtype)
    return a // b


FOR_GPU: Mapping[object, Rewrite] = {
    aten.clamp.default: clamp,
    aten.pow.Tensor_Scalar: square,
    aten.expand.default: expand,
    aten.where.self: where,
    aten.matmul.default: matmul,
    aten.pad.default: pad,
    aten.div.Tensor_mode: divide,
}
"""{operator: what is computed in its place}."""
