"""Evaluate the small integer arithmetic from which exporters compute shapes.

onnx's shape inference follows part of it; a traced `roll`, `expand` or `view` uses more. Only operators that occur in
such arithmetic are known here, and only tensors of a few thousand elements: nothing that a file claims can make this
slow or large, and whatever is not understood is simply not folded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from ppexport.backends.onnx.reading.constants import SMALL

Array = NDArray[Any]
Inputs = Sequence["Array | None"]


class _NotFolded(Exception):
    """The result would be too large, or the node is none that shapes are made of."""


def fold(node: NodeProto, inputs: Inputs) -> Array | None:
    """Only output of *node* for known *inputs* (None where an optional one is left out), or None if not folded."""
    rule = _RULES.get(node.op_type)
    if rule is None or len(node.output) != 1:
        return None
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(rule(_attributes(node), inputs))
    except (_NotFolded, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return result if result.size <= SMALL else None


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _bounded(count: float) -> int:
    if not 0 <= count <= SMALL:
        raise _NotFolded
    return int(count)


def _elementwise(function: Callable[..., Any]) -> Callable[[dict[str, Any], Inputs], Any]:
    def evaluate(_attributes: dict[str, Any], inputs: Inputs) -> Any:
        arrays = [array for array in inputs if array is not None]
        _bounded(math.prod(np.broadcast_shapes(*(array.shape for array in arrays))))
        return function(*arrays)

    return evaluate


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        raise _NotFolded
    # ONNX divides integers towards zero, NumPy towards minus infinity.
    return np.asarray(np.where((a < 0) != (b < 0), -(np.abs(a) // np.abs(b)), np.abs(a) // np.abs(b))).astype(a.dtype)


def _modulo(attributes: dict[str, Any], inputs: Inputs) -> Any:
    a, b = _given(inputs, 0), _given(inputs, 1)
    _bounded(math.prod(np.broadcast_shapes(a.shape, b.shape)))
    if not np.all(b):
        raise _NotFolded
    return np.fmod(a, b) if attributes.get("fmod") else np.mod(a, b)


def _given(inputs: Inputs, index: int) -> Array:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise _NotFolded
    return value


def _optional(inputs: Inputs, index: int, default: Any) -> Any:
    value = inputs[index] if index < len(inputs) else None
    return default if value is None else value


def _axes(attributes: dict[str, Any], inputs: Inputs) -> list[int] | None:
    axes = _optional(inputs, 1, attributes.get("axes"))
    return None if axes is None else [int(axis) for axis in np.atleast_1d(axes)]


def _cast(attributes: dict[str, Any], inputs: Inputs) -> Any:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if dtype.kind not in "biuf":
        raise _NotFolded
    return _given(inputs, 0).astype(dtype)


def _concat(attributes: dict[str, Any], inputs: Inputs) -> Any:
    arrays = [_given(inputs, index) for index in range(len(inputs))]
    _bounded(sum(array.size for array in arrays))
    return np.concatenate(arrays, axis=attributes["axis"])


def _gather(attributes: dict[str, Any], inputs: Inputs) -> Any:
    data, indices, axis = _given(inputs, 0), _given(inputs, 1), attributes.get("axis", 0)
    _bounded(indices.size * data.size)
    return np.take(data, indices, axis=axis)


def _squeeze(attributes: dict[str, Any], inputs: Inputs) -> Any:
    axes = _axes(attributes, inputs)
    return np.squeeze(_given(inputs, 0), axis=None if axes is None else tuple(axes))


def _unsqueeze(attributes: dict[str, Any], inputs: Inputs) -> Any:
    axes = _axes(attributes, inputs) or []
    return np.expand_dims(_given(inputs, 0), tuple(axes))


def _slice(attributes: dict[str, Any], inputs: Inputs) -> Any:
    data = _given(inputs, 0)
    starts, ends = _optional(inputs, 1, attributes.get("starts")), _optional(inputs, 2, attributes.get("ends"))
    axes = _optional(inputs, 3, attributes.get("axes", range(len(np.atleast_1d(starts)))))
    steps = _optional(inputs, 4, [1] * len(np.atleast_1d(starts)))
    index: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size, step = data.shape[axis], int(step)
        # As ONNX clamps them; a Python slice would read an end of -1 after clamping as "the last".
        low, high = (0, size) if step > 0 else (0, size - 1)
        first = min(max(int(start) + (size if start < 0 else 0), low), high)
        last = min(max(int(end) + (size if end < 0 else 0), low if step > 0 else -1), size)
        index[axis] = slice(first, None if last < 0 else last, step)
    return data[tuple(index)]


def _reshape(attributes: dict[str, Any], inputs: Inputs) -> Any:
    data, shape = _given(inputs, 0), [int(dim) for dim in _given(inputs, 1)]
    if not attributes.get("allowzero"):
        shape = [data.shape[axis] if dim == 0 else dim for axis, dim in enumerate(shape)]
    return data.reshape(shape)


def _reduce(function: Callable[..., Any]) -> Callable[[dict[str, Any], Inputs], Any]:
    def evaluate(attributes: dict[str, Any], inputs: Inputs) -> Any:
        data, axes = _given(inputs, 0), _axes(attributes, inputs)
        if not axes and attributes.get("noop_with_empty_axes"):
            return data
        reduced = function(data, axis=tuple(axes) if axes else None, keepdims=bool(attributes.get("keepdims", 1)))
        return np.asarray(reduced).astype(data.dtype)

    return evaluate


def _range(_: dict[str, Any], inputs: Inputs) -> Any:
    start, limit, delta = (_given(inputs, index).item() for index in range(3))
    count = _bounded(max(math.ceil((limit - start) / delta), 0))
    return (start + delta * np.arange(count)).astype(_given(inputs, 0).dtype)


def _constant_of_shape(attributes: dict[str, Any], inputs: Inputs) -> Any:
    shape = [int(dim) for dim in _given(inputs, 0)]
    _bounded(math.prod(shape))
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(shape, value.reshape(()))


def _expand(_: dict[str, Any], inputs: Inputs) -> Any:
    data, shape = _given(inputs, 0), tuple(int(dim) for dim in _given(inputs, 1))
    target = np.broadcast_shapes(data.shape, shape)
    _bounded(math.prod(target))
    return np.broadcast_to(data, target)


def _tile(_: dict[str, Any], inputs: Inputs) -> Any:
    data, repeats = _given(inputs, 0), [int(count) for count in _given(inputs, 1)]
    _bounded(data.size * math.prod(repeats))
    return np.tile(data, repeats)


_RULES: dict[str, Callable[[dict[str, Any], Inputs], Any]] = {
    "Identity": lambda _, inputs: _given(inputs, 0),
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "And": _elementwise(np.logical_and),
    "Cast": _cast,
    "Ceil": _elementwise(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_divide),
    "Equal": _elementwise(np.equal),
    "Expand": _expand,
    "Floor": _elementwise(np.floor),
    "Gather": _gather,
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Max": _elementwise(lambda *arrays: np.max(np.broadcast_arrays(*arrays), axis=0)),
    "Min": _elementwise(lambda *arrays: np.min(np.broadcast_arrays(*arrays), axis=0)),
    "Mod": _modulo,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Not": _elementwise(np.logical_not),
    "Or": _elementwise(np.logical_or),
    "Range": _range,
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Tile": _tile,
    "Transpose": lambda attributes, inputs: np.transpose(_given(inputs, 0), attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(np.where),
}
