"""Rules on how large numbers become, as far as that is known before running.

Followed are intervals of tensors whose values do not depend on weights: counts, labels, indices, levels of pixels. What
a network computes by its weights has no known range, and no rule here speaks of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from ppexport.backends.lint_report import Finding
from ppexport.backends.onnx.graph_view import GraphView, Node, element_name
from ppexport.backends.onnx.lint.linting import Rule, Runtime, found, rule
from ppexport.backends.onnx.pattern import attribute

EXACT, LARGEST = 2048, 65504
"""Whole numbers that fp16 holds one by one, and the largest number that it has."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class Range(NamedTuple):
    """The values of a tensor lie between two numbers."""

    low: float
    high: float
    whole: bool
    """Whether they are whole numbers."""

    @property
    def most(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


Known = list[Range | None]
"""Of the inputs of a node, None where nothing is known."""
UNIT = Range(0, 1, False)
MOVES = (
    *("Identity", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Expand", "Tile", "Flatten", "Gather"),
    *("GatherElements", "Split", "ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth"),
)
"""What they give are values of their first input."""
JOINS = {"Concat": 0, "Max": 0, "Min": 0, "Where": 1}
"""What they give are values of their inputs from this one on."""
TRUTHS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor")
ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
}
LIMITED = {"Sigmoid": UNIT, "HardSigmoid": UNIT, "Softmax": UNIT, "Tanh": Range(-1, 1, False)}


def _hull(known: Known) -> Range | None:
    ranges = [found for found in known if found is not None]
    if not ranges or len(ranges) < len(known):
        return None
    return Range(min(r.low for r in ranges), max(r.high for r in ranges), all(r.whole for r in ranges))


def _corners(a: Range, b: Range, of: Callable[[float, float], float], times: int = 1) -> Range:
    """Of `of` of a number of *a* and one of *b*, summed so many *times*."""
    values = [of(x, y) * times for x in a[:2] for y in b[:2]]
    return Range(min(values), max(values), a.whole and b.whole)


def _lengths(graph: GraphView, name: str) -> list[int] | None:
    kind = graph.type_of(name)
    return [dim for dim in kind.shape or () if isinstance(dim, int)] if kind.static else None


def _summed(graph: GraphView, node: Node) -> int | None:
    """How many numbers are summed to one that *node* makes, at most."""
    proto = node.proto
    shape, made = _lengths(graph, proto.input[0]), _lengths(graph, proto.output[0])
    if shape is None or made is None:
        return None
    if node.op == "MatMul":
        return shape[-1] if shape else 1
    if node.op == "CumSum":
        axis = graph.values.get(proto.input[1])
        return math.prod(shape) if axis is None or not shape else shape[int(axis.ravel()[0])]
    return math.prod(shape) // max(math.prod(made), 1)


def _cast(graph: GraphView, node: Node, first: Range | None) -> Range | None:
    """A truth value is 0 or 1, and a float becomes whole."""
    if graph.type_of(node.proto.input[0]).element == TensorProto.BOOL:
        return Range(0, 1, True)
    if first is None or attribute(node.proto, "to") in (*FLOATS, TensorProto.DOUBLE):
        return first
    return Range(math.trunc(first.low), math.trunc(first.high), True)


def _clipped(known: Known) -> Range | None:
    """Of Clip, with an upper and a lower limit."""
    first, low, high = [*known, None, None][:3]
    if low is None or high is None:
        return None
    whole = first is not None and first.whole and low.whole and high.whole
    inside = Range(low.low, high.high, whole)
    return inside if first is None else Range(max(first.low, inside.low), min(first.high, inside.high), whole)


def _made(graph: GraphView, node: Node, known: Known) -> Range | None:
    """The range of what *node* makes of inputs whose ranges are *known*; None where it cannot be told."""
    op, first = node.op, known[0] if known else None
    if op in TRUTHS:
        return Range(0, 1, True)
    if op in LIMITED:
        return LIMITED[op]
    if op in ("ArgMax", "ArgMin"):
        shape, axis = _lengths(graph, node.proto.input[0]), attribute(node.proto, "axis")
        return None if shape is None else Range(0, shape[axis if isinstance(axis, int) else 0] - 1, True)
    if op == "Cast":
        return _cast(graph, node, first)
    if op == "Clip":
        return _clipped(known)
    if op in JOINS:
        return _hull(known[JOINS[op] :])
    if op == "Pad":
        return _hull([first, known[2] if len(known) > 2 else Range(0, 0, True)])
    if op == "ScatterElements" and attribute(node.proto, "reduction") in (None, b"none"):
        return _hull([first, known[2]])
    if first is None:
        return None
    if op in MOVES:
        return first
    if op in ("Floor", "Ceil", "Round"):
        return Range(math.floor(first.low), math.ceil(first.high), True)
    if op == "Neg":
        return Range(-first.high, -first.low, first.whole)
    if op == "Abs":
        return Range(0, first.most, first.whole)
    if op == "Relu":
        return Range(max(first.low, 0), max(first.high, 0), first.whole)
    second = known[1] if len(known) > 1 else None
    if op in ARITHMETIC and second is not None:
        return _corners(first, second, ARITHMETIC[op])
    if op in ("ReduceSum", "CumSum", "MatMul") and (times := _summed(graph, node)) is not None:
        if op != "MatMul":
            return _corners(first, Range(1, 1, True), ARITHMETIC["Mul"], times)
        return None if second is None else _corners(first, second, ARITHMETIC["Mul"], times)
    return None


def known_ranges(graph: GraphView) -> dict[str, Range]:
    """{tensor: its range} of every tensor that has a known one."""
    ranges: dict[str, Range] = {}
    for name, value in graph.values.items():
        if value.size and np.isfinite(value).all():
            whole = bool((value == np.floor(value)).all())
            ranges[name] = Range(float(value.min()), float(value.max()), whole)
    for node in graph.nodes:
        proto = node.proto
        if node.domain or node.depth or not proto.output or proto.output[0] in ranges:
            continue
        try:
            result = _made(graph, node, [ranges.get(name) for name in proto.input])
        except (IndexError, ValueError, OverflowError):
            # Too few inputs or impossible axes, which other rules report, or numbers beyond a double.
            continue
        if result is not None and math.isfinite(result.most):
            ranges.update(dict.fromkeys(proto.output, result))
    return ranges


@rule(
    "count-in-half",
    "sum at most 2048 as floats, cast to int32, and go on in int32; a key that ranks choices is int32 from the start",
)
def count_in_half(graph: GraphView) -> Iterator[Finding]:
    """No count, label or index above 2048, and no number above 65504, where it is computed in fp16.

    fp16 holds whole numbers one by one to 2048: 2049 becomes 2048, without a word. A Snapdragon NPU computes every fp32
    in fp16, so that this concerns all floats there; elsewhere those that the file says are fp16. Only the first such
    tensor of a chain is reported.
    """
    ranges = known_ranges(graph)

    def wrong(name: str) -> bool:
        known = ranges.get(name)
        too_large = known is not None and known.most > (EXACT if known.whole else LARGEST)
        return too_large and graph.type_of(name).element in FLOATS

    for name in graph.constants:
        if wrong(name):
            yield _finding(graph, f"constant {name} holds", name, ranges[name], None)
    for node in graph.nodes:
        bad = next((name for name in node.proto.output if name and wrong(name)), None)
        if bad is not None and node.op != "Constant" and not any(wrong(name) for name in node.proto.input):
            yield _finding(graph, f"{node.op} makes", bad, ranges[bad], node)


def _finding(graph: GraphView, what: str, name: str, known: Range, node: Node | None) -> Finding:
    element = graph.type_of(name).element
    limit = f"fp16 counts to {EXACT}" if known.whole else f"fp16 ends at {LARGEST}"
    numbers = "whole numbers" if known.whole else "numbers"
    return found(
        f"{what} {numbers} up to {known.most:.0f} in {element_name(element)}; {limit}",
        node,
        tensor=name,
        runtimes=(Runtime.QNN,) if element == TensorProto.FLOAT else (),
    )


RULES: tuple[Rule, ...] = (count_in_half,)
"""Rules on ranges."""
