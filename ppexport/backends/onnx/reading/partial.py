"""Values of which only some entries are known: the shape of a tensor with a symbolic axis, and arithmetic on it.

    lr (batch, 3, 64, 64) -> Shape -> (?, 3, 64, 64) -> Gather, Mul, Concat -> (?, 12288)

onnx's own data propagation does the same, but writes out every one-dimensional tensor element by element, so that a
file of two hundred bytes can make it fill any memory. Here everything is bounded, as in `folding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from ppexport.backends.onnx.reading.folding import fold

Array = NDArray[Any]

_MOVING = frozenset(("Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"))
"""Operators that only move the entries of their first input; the others say where to."""
_ELEMENTWISE = frozenset(("Abs", "Add", "Ceil", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Sub"))


class Partial(NamedTuple):
    """Entries, and which of them are known."""

    data: Array
    known: NDArray[np.bool_]

    @property
    def complete(self) -> bool:
        """Whether every entry is known."""
        return bool(self.known.all())

    def filled(self, number: int) -> Array:
        """The entries with *number* in place of those that are not known."""
        return np.where(self.known, self.data, np.array(number, self.data.dtype))


def complete(data: Array) -> Partial:
    """*data*, all of it known."""
    return Partial(data, np.ones(data.shape, np.bool_))


def unknown(length: int) -> Partial:
    """A list of *length* unknown int64."""
    return Partial(np.ones(length, np.int64), np.zeros(length, np.bool_))


def of_shape(shape: Sequence[int | str | None]) -> Partial:
    """What the operator Shape makes for a tensor of *shape*."""
    known = np.array([isinstance(dim, int) for dim in shape], np.bool_)
    return Partial(np.array([dim if isinstance(dim, int) else 1 for dim in shape], np.int64), known)


def fold_partial(node: NodeProto, inputs: Sequence[Partial | None]) -> Partial | None:
    """Only output of *node* for *inputs* (None where an optional one is left out), or None if it is not folded."""
    data = fold(node, [None if value is None else value.data for value in inputs])
    if data is None:
        return None
    if all(value is None or value.complete for value in inputs):
        return complete(data)
    known = _known(node, inputs)
    return None if known is None or known.shape != data.shape else Partial(data, known.astype(np.bool_))


def _known(node: NodeProto, inputs: Sequence[Partial | None]) -> Array | None:
    """Which entries of the output are known: the same operator moves the marks as it moves the entries."""
    given = [value for value in inputs if value is not None]
    if node.op_type == "Cast":
        return given[0].known
    if node.op_type in _ELEMENTWISE:
        return np.asarray(np.logical_and.reduce(np.broadcast_arrays(*(value.known for value in given))))
    marks = [value.known.astype(np.int64) for value in given]
    if node.op_type == "Concat":
        return fold(node, marks)
    if node.op_type in _MOVING and all(value.complete for value in given[1:]):
        return fold(node, [marks[0], *(None if value is None else value.data for value in inputs[1:])])
    if node.op_type == "Where" and len(given) == 3 and given[0].complete:
        return fold(node, [given[0].data, *marks[1:]])
    return None
