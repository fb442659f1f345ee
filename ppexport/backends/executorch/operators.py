"""Operators in the form that XNNPACK takes, so that fewer of them cut the graph or run in slow kernels.

XNNPACK has matrix products, convolutions, softmax, and sums and products of elements. It has no layer norm, no sum over
a row, no product of two matrices of rank 2 that are both computed, and no choice by a mask. ExecuTorch computes those
one element at a time, and every one of them ends a subgraph. The same sums:

    before                                        after
    layer_norm(x), instance_norm(x)               y = x - linear(x, 1/c); y * rsqrt(linear(y * y, 1/c) + eps) * w + b
    x.sum(dim=last, keepdim)   of rank 2          linear(x, 1)
    a @ b, addmm(x, a, b)                         bmm(a, b) with all batches in one dimension, plus x
    where(mask, a, b)          of fp32            m * a + (1 - m) * b, m = 1 where the mask is true, else 0
    x.unbind(), x.squeeze(d), x.unsqueeze(d)      slices and views
    x.reshape(shape)                              a copy in order, viewed
    x.index_select(1, index)  of rank 2           x.t().index_select(0, index).t()

They are replaced while a twin runs, so a graph of any architecture is exported with them, and eager PyTorch can compare
both. Where a length is symbolic, a view says -1, which is what XNNPACK takes. What is not in the table stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def view(x: Tensor, shape: list[Any]) -> Tensor:
    """*x* in another *shape*, of whose lengths one may be symbolic."""
    # A copy first: what reshape copies itself, it views with a symbol.
    return x.contiguous().view([d if isinstance(d, int) else -1 for d in shape])


def one_symbol(shape: list[Any]) -> bool:
    """Whether a view may say this *shape*."""
    return sum(not isinstance(d, int) for d in shape) <= 1


def fixed(x: Tensor) -> list[Any]:
    """The shape of *x*, of which only the first length may be symbolic.

    torch.export derives the others from it as well, such as 128 from C // (C // 128), and finds them to be fixed.
    """
    return [x.shape[0], *(int(d) for d in x.shape[1:])]


class XnnpackForm(TorchFunctionMode):
    """While it is entered, the operators of the table above are computed in the form of the right-hand side."""

    def __init__(self, rows: nn.Module) -> None:
        """*rows* has a buffer `ones_N`, (1, N) of ones, for every length N that is summed over, so that it is a
        constant of the graph; `needed` tells which they are.
        """
        super().__init__()
        self.rows, self.needed = rows, set[int]()

    def row(self, length: int) -> Tensor:
        """(1, *length*) of ones."""
        self.needed.add(length)
        found: Tensor | None = getattr(self.rows, f"ones_{length}", None)
        return torch.ones(1, length) if found is None else found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The result of *func*, in the form of the table where it is in there."""
        given = kwargs or {}
        form = FORMS.get(func)
        if form is not None:
            # Where a form does not apply it returns None. What it calls has no form itself: the mode is left meanwhile.
            result = form(self, *args, **given)
            if result is not None:
                return result
        return func(*args, **given)

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        """*x* with mean 0 and variance 1 along the last dimension."""
        ones, length = self.row(x.shape[-1]), x.shape[-1]
        centred = x - F.linear(x, ones) * (1 / length)
        return centred * torch.rsqrt(F.linear(centred * centred, ones) * (1 / length) + eps)

    def layer_norm(
        self, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor | None:
        """`F.layer_norm` over the last dimension."""
        if len(shape) != 1 or not isinstance(x.shape[-1], int):
            return None
        out = self.normalise(x, eps)
        out = out if weight is None else out * weight
        return out if bias is None else out + bias

    def instance_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """`F.instance_norm` of (1, c, l), without running statistics."""
        if x.dim() != 3 or not use_input_stats or not isinstance(x.shape[-1], int):
            return None
        out = self.normalise(x, eps)
        out = out if weight is None else out * weight.view(-1, 1)
        return out if bias is None else out + bias.view(-1, 1)

    def sum(self, x: Tensor, dim: Any = None, keepdim: bool = False, **other: Any) -> Tensor | None:
        """The sum of every row of an fp32 matrix, kept as a column."""
        if x.dim() != 2 or dim not in (1, -1) or not keepdim or other or x.dtype != torch.float32:
            return None
        return F.linear(x, self.row(x.shape[1])) if isinstance(x.shape[1], int) else None

    def matmul(self, a: Tensor, b: Tensor) -> Tensor | None:
        """The product of matrices, or of batches of the same shape."""
        if a.dim() < 2 or list(b.shape[:-2]) != list(a.shape[:-2]):
            return None
        if a.dim() == 3:
            return torch.bmm(a, b)
        (*batch, rows, _), (*_, length, columns) = (fixed(x) if x.dim() > 2 else list(x.shape) for x in (a, b))
        count, shape = 1, [*batch, rows, columns]
        for number in batch:
            count = count * number
        if not one_symbol(shape) or not one_symbol([length, columns]):
            return None
        product = torch.bmm(view(a, [count, rows, length]), view(b, [count, length, columns]))
        return view(product, shape)

    def addmm(self, x: Tensor, a: Tensor, b: Tensor, **other: Any) -> Tensor | None:
        """*x* plus the product."""
        product = None if other else self.matmul(a, b)
        return None if product is None else x + product

    def where(self, mask: Tensor, a: Any = None, b: Any = None) -> Tensor | None:
        """*a* where the *mask* is true, else *b*, of finite numbers."""
        numbers = all(isinstance(x, Tensor) and x.dtype == torch.float32 for x in (a, b))
        if not numbers or mask.numel() == a.numel() or not a.dim():
            return None
        m = mask.float()
        out: Tensor = m * a + (1.0 - m) * b
        return out

    def index_select(self, x: Tensor, dim: int, index: Tensor) -> Tensor | None:
        """Rows of the transposed matrix in place of columns, which would be copied number by number."""
        return x.t().index_select(0, index).t() if x.dim() == 2 and dim == 1 else None

    def unbind(self, x: Tensor, dim: int = 0) -> list[Tensor] | None:
        """The parts of *x* along its first dimension."""
        if dim or not all(isinstance(d, int) for d in x.shape):
            return None
        return [view(x[i : i + 1], list(x.shape[1:])) for i in range(x.shape[0])]

    def reshape(self, x: Tensor, *shape: Any) -> Tensor:
        """*x* in another *shape*, in which -1 stays."""
        return x.contiguous().view(*shape)

    def squeeze(self, x: Tensor, dim: Any = None) -> Tensor | None:
        """*x* without dimension *dim*, of length 1."""
        if not isinstance(dim, int) or x.shape[dim] != 1:
            return None
        shape = list(x.shape)
        del shape[dim]
        return view(x, shape) if one_symbol(shape) else None

    def unsqueeze(self, x: Tensor, dim: int) -> Tensor | None:
        """*x* with a dimension of length 1 more."""
        shape = list(x.shape)
        shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, 1)
        return view(x, shape) if one_symbol(shape) else None


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: XnnpackForm.layer_norm,
    F.instance_norm: XnnpackForm.instance_norm,
    torch.sum: XnnpackForm.sum,
    Tensor.sum: XnnpackForm.sum,
    torch.matmul: XnnpackForm.matmul,
    Tensor.matmul: XnnpackForm.matmul,
    Tensor.__matmul__: XnnpackForm.matmul,
    torch.addmm: XnnpackForm.addmm,
    torch.where: XnnpackForm.where,
    Tensor.index_select: XnnpackForm.index_select,
    torch.unbind: XnnpackForm.unbind,
    Tensor.unbind: XnnpackForm.unbind,
    torch.reshape: XnnpackForm.reshape,
    Tensor.reshape: XnnpackForm.reshape,
    torch.squeeze: XnnpackForm.squeeze,
    Tensor.squeeze: XnnpackForm.squeeze,
    torch.unsqueeze: XnnpackForm.unsqueeze,
    Tensor.unsqueeze: XnnpackForm.unsqueeze,
}
