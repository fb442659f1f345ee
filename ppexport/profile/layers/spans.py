"""Time of operations -> PyTorch modules -> blocks and branches.

    module   what `backends/onnx/modules.py` reads from a node's name
    by name     the operation, or one of those it was fused from, has such a name
    by place    it has none, as copies between layouts: the module that the named operations before and after it in the
                order of execution have in common
    unknown     neither

Branches of a layer: "window attention", "category attention", "dictionary" (cross-attention and refinement), "FFN",
"routing" (choice of the category, counting sort, gathers and scatters of slots), "projections and norms" (what window
and category attention share), "mask" (Pure-Pass, and the plan of its slots); around the layers "head and tail".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ppexport.backends.onnx.modules import module_of_name

BRANCHES = (
    "window attention", "category attention", "dictionary", "FFN", "routing", "mask", "projections and norms",
    "head and tail", "unknown",
)  # fmt: skip
LAYER = re.compile(r"layers\.(\d+)\.residual_group\.layers\.(\d+)(?:\.(.*))?")
ROUTING_MODULES = re.compile(r"attn_aca\.(router|dense)(\.|$)")
MOVES = frozenset(
    (
        "Gather", "GatherElements", "ScatterElements", "Scatter", "ScatterND", "CumSum", "ArgMax", "TopK", "Where",
        "Select", "Equal", "Less", "Greater", "GreaterOrEqual", "And", "Not", "Max", "Min", "Maximum", "Minimum",
        "Cast", "Convert", "ReduceSum", "Shape", "ShapeOf", "Slice", "StridedSlice", "Range", "OneHot", "Expand",
        "ConstantOfShape", "CumSumLayer", "ScatterElementsUpdate", "ScatterUpdate",
    )
)  # fmt: skip
"""Kinds of operation that move tokens or count them; inside `attn_aca` these are its routing."""


@dataclass(frozen=True)
class Operation:
    """One operation of a profile."""

    name: str
    kind: str
    """What the runtime calls it."""
    ms: float
    """Median of the runs."""
    names: tuple[str, ...] = ()
    """What it was fused from, which tells where it comes from, in place of its own name."""
    module: str | None = None
    """Where it comes from, in a format that says so itself."""


@dataclass(frozen=True)
class Span:
    """An operation and where it belongs."""

    operation: Operation
    module: str | None
    """Dotted path, "" for the network itself, None where it is unknown."""
    found: str
    """"name", "place" or "unknown"."""


def known_paths(blocks: int = 4, layers: int = 6) -> frozenset[str]:
    """Modules whose names end in a number, which is no counter of calls."""
    inside = ("norm1", "norm2", "norm3", "convffn.fc1", "convffn.fc2")
    return frozenset(
        f"layers.{b}.residual_group.layers.{i}.{name}" for b in range(blocks) for i in range(layers) for name in inside
    )


def common(first: str, second: str) -> str:
    """The innermost module that holds both."""
    shared = []
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    path = ".".join(shared)
    # A list is no module: layers.0.residual_group.layers holds layers, and nothing runs in it.
    return re.sub(r"(\.residual_group)?(\.|^)layers$", "", path)


def named_module(operation: Operation, known: Collection[str]) -> str | None:
    """The module that the names of *operation* tell: the innermost that holds all it was fused from."""
    if operation.module is not None:
        return operation.module
    modules = [m for name in operation.names or (operation.name,) if (m := module_of_name(name, known)) is not None]
    return list(accumulate(modules, common))[-1] if modules else None


def _latest(last: str | None, own: str | None) -> str | None:
    return last if own is None else own


def spans_of(operations: Sequence[Operation]) -> list[Span]:
    """Every operation, in the order of execution, with its module."""
    known = known_paths()
    named = [named_module(operation, known) for operation in operations]
    before: list[str | None] = list(accumulate(named, _latest))
    after: list[str | None] = list(accumulate(reversed(named), _latest))[::-1]
    spans = []
    for operation, own, left, right in zip(operations, named, before, after, strict=True):
        if own is not None:
            spans.append(Span(operation, own, "name"))
        elif left is not None and right is not None:
            spans.append(Span(operation, common(left, right), "place"))
        else:
            spans.append(Span(operation, left if right is None else right, "place" if left or right else "unknown"))
    return spans


def block_of(module: str | None) -> str:
    """ "0" to "3", or "head and tail", or "unknown"."""
    if module is None:
        return "unknown"
    match = re.match(r"layers\.(\d+)(\.|$)", module)
    return match[1] if match else "head and tail"


def branch_of(module: str | None, kind: str) -> str:
    """One of `BRANCHES` for an operation of *kind* in *module*."""
    if module is None:
        return "unknown"
    if module.startswith("pure_pass"):
        return "mask"
    match = LAYER.fullmatch(module)
    if match is None:
        # Directly in the network lies the plan of the slots, made once from the mask.
        return "mask" if module == "" else "head and tail"
    inside = match[3] or ""
    if inside.startswith("attn_win"):
        return "window attention"
    if inside.startswith("attn_aca"):
        routing = ROUTING_MODULES.match(inside) or (inside == "attn_aca" and kind in MOVES)
        return "routing" if routing else "category attention"
    if inside.startswith(("attn_atd", "norm3")):
        return "dictionary"
    if inside.startswith(("convffn", "norm2", "output")):
        return "FFN"
    if inside == "" and kind in MOVES:
        return "routing"
    return "projections and norms"


def summed(spans: Iterable[Span]) -> dict[str, Any]:
    """Milliseconds by branch, by block, by block and branch, by module and by kind; and how modules were found."""
    totals: dict[str, dict[str, float]] = {key: {} for key in ("branches", "blocks", "modules", "kinds", "found")}
    cells: dict[str, dict[str, float]] = {}
    for span in spans:
        ms = span.operation.ms
        block, branch = block_of(span.module), branch_of(span.module, span.operation.kind)
        module = "unknown" if span.module is None else span.module or "(network)"
        for key, name in (
            ("branches", branch), ("blocks", block), ("modules", module), ("kinds", span.operation.kind),
            ("found", span.found),
        ):  # fmt: skip
            totals[key][name] = totals[key].get(name, 0.0) + ms
        cells.setdefault(block, {})[branch] = cells.get(block, {}).get(branch, 0.0) + ms
    ordered = {key: dict(sorted(table.items(), key=lambda item: -item[1])) for key, table in totals.items()}
    return {**ordered, "cells": {block: cells[block] for block in sorted(cells)}}
