"""Numbers that fp16 cannot hold: LiteRT's GPU accelerator computes fp32 in fp16 unless fp32 is asked for.

What every tensor can hold is bounded from the file: inputs called `lr` and `mask` and truth values are in [0, 1],
constants are what they are, what is quantised is what its type and scale can hold, and intervals go through the
operators. Infinities, which fp16 has, are left out of the intervals of constants. Whole numbers (counts, ranks, labels,
keys) must be exact; fp16 holds them up to 2048. Of other numbers only constants can be told to exceed fp16, beyond
65504.

Interval arithmetic forgets what two tensors have to do with each other, so a bound may be larger than any picture makes
it; it is never smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from ppexport.backends.lint_report import Severity
from ppexport.backends.litert.lint.file_view import TYPES, Graph, Operator, Tensor
from ppexport.backends.litert.lint.rules_gpu import Rule, Said

EXACT = 2048.0
"""fp16 holds every whole number up to this."""
LARGEST = 65504.0
"""The largest number of fp16."""
GIVEN = {"lr": 1.0, "mask": 1.0}
"""{input: its largest value}; the smallest is 0."""


class Bound(NamedTuple):
    """What a tensor can hold, but for infinities that come from constants."""

    low: float
    high: float
    whole: bool
    """Whether all of its numbers are whole, and have to be exact."""
    endless: bool = False
    """Whether it can also hold such infinities."""

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


ANY = Bound(-inf, inf, False)
SAME = frozenset((
    "CONCATENATION", "DEPTH_TO_SPACE", "DEQUANTIZE", "EXPAND_DIMS", "GATHER", "GATHER_ND", "MAX_POOL_2D", "MIRROR_PAD",
    "PACK", "PAD", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "REVERSE_V2", "SELECT", "SELECT_V2", "SLICE",
    "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK", "BROADCAST_TO",
    "EMBEDDING_LOOKUP", "ONE_HOT", "TOPK_V2",
))  # fmt: skip
"""Operators that give some of the numbers they take; of a PAD also 0."""
DATA: Mapping[str, tuple[int, ...]] = {
    "SELECT": (1, 2),
    "SELECT_V2": (1, 2),
    "EMBEDDING_LOOKUP": (1,),
    "SPLIT": (1,),
    "ONE_HOT": (2, 3),
    "CONCATENATION": tuple(range(1 << 10)),
    "PACK": tuple(range(1 << 10)),
}
"""{operator: the inputs that hold these numbers}, else the first."""


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _times(a: Bound, b: Bound) -> tuple[float, float]:
    ends = [_product(x, y) for x in a[:2] for y in b[:2]]
    return min(ends), max(ends)


BINARY: Mapping[str, Callable[[Bound, Bound], tuple[float, float]]] = {
    "ADD": lambda a, b: (a.low + b.low, a.high + b.high),
    "SUB": lambda a, b: (a.low - b.high, a.high - b.low),
    "MUL": _times,
    # Beside an infinity the other operand is given.
    "MAXIMUM": lambda a, b: (
        min(a.low, b.low) if a.endless or b.endless else max(a.low, b.low), max(a.high, b.high)
    ),
    "MINIMUM": lambda a, b: (
        min(a.low, b.low), max(a.high, b.high) if a.endless or b.endless else min(a.high, b.high)
    ),
}  # fmt: skip


def constant_bound(tensor: Tensor) -> Bound:
    """What a constant holds."""
    numbers = tensor.numbers
    finite = None if numbers is None else numbers[np.isfinite(numbers)]
    if numbers is None or finite is None or not finite.size:
        return ANY
    whole = bool((finite == np.floor(finite)).all())
    return Bound(float(finite.min()), float(finite.max()), whole, finite.size < numbers.size)


def _computed_bound(tensor: Tensor) -> Bound:
    """What its type lets a computed *tensor* hold."""
    if tensor.kind == "BOOL":
        return Bound(0.0, 1.0, True)
    kind = TYPES.get(tensor.kind)
    if tensor.scales is None or kind is None or not issubclass(kind, np.integer):
        return ANY
    scale, zero = tensor.scales.scale, tensor.scales.zero
    ends = np.stack([scale * (float(end) - zero) for end in (np.iinfo(kind).min, np.iinfo(kind).max)])
    whole = bool((scale == np.floor(scale)).all())
    return _plain(ends.min(), ends.max(), whole=whole)


def bounds_of(graph: Graph) -> dict[Tensor, Bound]:
    """What every computed tensor of *graph* can hold."""
    found = {
        tensor: Bound(0.0, GIVEN[name], False) if name in GIVEN and tensor.kind != "BOOL" else _computed_bound(tensor)
        for name, tensor in graph.inputs.items()
    }
    widened: dict[Tensor, Tensor] = {}

    def bound(tensor: Tensor) -> Bound:
        return constant_bound(tensor) if tensor.constant else found.get(tensor, ANY)

    for op in graph.operators:
        given = _given(op, [bound(tensor) for tensor in op.inputs], widened)
        if op.kind == "DEQUANTIZE" and op.inputs[0].constant:
            widened[op.outputs[0]] = op.inputs[0]
        for place, out in enumerate(op.outputs):
            if op.kind == "TOPK_V2" and place == 1:
                found[out] = Bound(0.0, float(op.inputs[0].shape[-1] - 1), True)
            elif out.kind == "BOOL" or out.scales is not None:
                found[out] = _computed_bound(out)
            else:
                found[out] = given
    return found


def _given(op: Operator, inputs: list[Bound], widened: Mapping[Tensor, Tensor]) -> Bound:
    """What *op* gives of *inputs*; of constants that are *widened* to fp32 the numbers are known, too."""
    bound = _finite(op, inputs, widened)
    return bound._replace(endless=any(given.endless for given in inputs))


def _finite(op: Operator, inputs: list[Bound], widened: Mapping[Tensor, Tensor]) -> Bound:
    """As `_given`, but for infinities."""
    kind, (first, *_) = op.kind, inputs or [ANY]
    if kind in SAME:
        data = [inputs[place] for place in DATA.get(kind, (0,)) if place < len(inputs)] or [ANY]
        low, high = min(b.low for b in data), max(b.high for b in data)
        if "PAD" in kind:
            low, high = min(low, 0.0), max(high, 0.0)
        return Bound(low, high, all(b.whole for b in data))
    if kind in BINARY and len(inputs) == 2:
        return _plain(*BINARY[kind](*inputs), whole=all(b.whole for b in inputs))
    if kind == "CAST":
        whole = first.whole or op.outputs[0].whole
        # What an infinity is as a whole number is not laid down.
        return ANY._replace(whole=whole) if first.endless and op.outputs[0].whole else first._replace(whole=whole)
    if kind in ("FLOOR", "CEIL", "ROUND"):
        return _plain(np.floor(first.low), np.ceil(first.high), whole=True)
    if kind == "DIV" and len(inputs) == 2 and inputs[1].low >= 1:
        least = 0.0 if inputs[1].endless else 1 / inputs[1].high
        return _plain(*_times(first, Bound(least, 1.0, False)), whole=False)
    if kind in ("SUM", "CUMSUM", "FULLY_CONNECTED", "BATCH_MATMUL"):
        return _summed(op, inputs, widened)
    if kind == "NEG":
        return Bound(-first.high, -first.low, first.whole)
    if kind == "ABS":
        return Bound(0.0, first.largest, first.whole)
    if kind.startswith("RELU"):
        top = {"RELU6": 6.0, "RELU_0_TO_1": 1.0, "RELU_N1_TO_1": 1.0}.get(kind, inf)
        high = inf if first.endless and isfinite(top) else max(first.high, 0.0)
        return Bound(0.0 if kind != "RELU_N1_TO_1" else -1.0, min(high, top), first.whole)
    if kind == "ARG_MAX" and len(op.inputs) == 2 and op.inputs[1].values is not None:
        axis = int(op.inputs[1].values.flat[0])
        return Bound(0.0, float(op.inputs[0].shape[axis] - 1), True)
    if kind in ("SOFTMAX", "LOGISTIC"):
        return Bound(0.0, 1.0, False)
    return ANY


def _summed(op: Operator, inputs: list[Bound], widened: Mapping[Tensor, Tensor]) -> Bound:
    """What a sum over an axis, of what comes first on it, or of products, gives."""
    x = op.inputs[0]
    if op.kind == "SUM":
        count = x.size / max(op.outputs[0].size, 1)
        return _plain(_product(inputs[0].low, count), _product(inputs[0].high, count), whole=inputs[0].whole)
    if op.kind == "CUMSUM":
        axis = op.inputs[1].values
        count = x.size if axis is None else x.shape[int(axis.flat[0])]
        low, high = _product(inputs[0].low, count), _product(inputs[0].high, count)
        # Of the first number on, or of none where it is exclusive.
        return _plain(min(low, 0.0), max(high, 0.0), whole=inputs[0].whole)
    whole = inputs[0].whole and inputs[1].whole
    bias = inputs[2].largest if op.kind == "FULLY_CONNECTED" and len(inputs) > 2 else 0.0
    whole = whole and (len(inputs) < 3 or inputs[2].whole)
    weights = widened.get(op.inputs[1], op.inputs[1]).numbers
    if op.kind == "FULLY_CONNECTED" and weights is not None and weights.ndim == 2:
        # Row by row: a triangle of ones sums up to its longest row.
        rows = np.abs(weights).sum(axis=1)
        largest = _product(float(rows.max(initial=0)), inputs[0].largest)
        low = 0.0 if inputs[0].low >= 0 and weights.min() >= 0 else -largest
        return _plain(low - bias, largest + bias, whole=whole)
    low, high = _times(*inputs[:2])
    depth = x.shape[-2 if getattr(op.options, "adjX", False) else -1] if len(x.shape) > 1 else 1
    return _plain(_product(low, depth) - bias, _product(high, depth) + bias, whole=whole)


def _plain(low: float, high: float, *, whole: bool) -> Bound:
    """A bound, or `ANY` where arithmetic with infinities gave no number."""
    return ANY._replace(whole=whole) if low != low or high != high else Bound(float(low), float(high), whole)


def beyond_half(graph: Graph) -> Iterator[Said]:
    """A warning where fp32 whole numbers come to exceed 2048, and of fp32 constants beyond 65504."""
    found = bounds_of(graph)
    for op in graph.operators:
        message = _made(op, found) or _taken(op)
        if message is not None:
            yield Said(Severity.WARNING, message, op)


def _made(op: Operator, found: Mapping[Tensor, Bound]) -> str | None:
    """What whole numbers *op* makes, if fp16 does not hold them; what only moves them is not to blame."""
    out = op.outputs[0] if op.outputs else None
    if out is None or out.kind != "FLOAT32" or op.kind in SAME or op.kind in ("NEG", "ABS"):
        return None
    bound, counts = found[out], op.inputs[0].whole if op.inputs else False
    if not bound.whole or bound.largest <= EXACT or (op.kind == "CAST" and not counts):
        return None
    if isfinite(bound.largest):
        return f"{op.kind} gives whole numbers up to {bound.largest:,.0f}; fp16 holds them up to {EXACT:,.0f}"
    # Of other operators nothing finite means that nothing is known.
    return f"CAST gives whole numbers of any size; fp16 holds them up to {EXACT:,.0f}" if op.kind == "CAST" else None


def _taken(op: Operator) -> str | None:
    """Which constant of *op* is beyond fp16, if one is."""
    for tensor in op.inputs:
        read = tensor.kind == "FLOAT32" or tensor.scales is not None
        largest = constant_bound(tensor).largest if tensor.constant and read else 0.0
        if LARGEST < largest < inf:
            return f"{op.kind} takes a constant of {largest:,.0f}; fp16 ends at {LARGEST:,.0f}"
    return None


BEYOND_HALF = Rule(
    "gpu-half-range",
    "have the GPU compute in fp32, as ppexport does by GpuOptions(enforce_f32=True)",
    beyond_half,
)
