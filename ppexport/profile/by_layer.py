"""`layers.json`: time by operation, module, branch and block, measured apart from latency, which a profiler disturbs.

format, version   "ppexport-layers", 1
created, subject  when, and what was profiled, as in `profile.json`
machine           as in `profile.json`
method            where the times come from
total_ms          sum of all operations
branches, blocks, modules, kinds
                  {name: ms}, the largest first
found             {"name", "place", "unknown": ms}: how operations were mapped to PyTorch modules
cells             {block: {branch: ms}}
operations        [[name, kind, ms, module or null, "name" | "place" | "unknown"]], in the order of execution

An operation is mapped "by name" where it, or one of those it was fused from, has a name that tells its module. Others,
such as copies between layouts, are mapped "by place": to the innermost module that holds the named operations before
and after them in the order of execution.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.backends.backend import Operation
from ppexport.backends.onnx.modules import module_of_name
from ppexport.device.artifact import read_artifact
from ppexport.device.job import Job
from ppexport.device.launch import ask
from ppexport.device.target import Target, runtimes
from ppexport.errors import InputError, UnavailableError
from ppexport.networks.architecture import Architecture, architectures, find_architecture
from ppexport.profile.result import Profile, follow_up, read_result

COUNTER = re.compile(r"_\d+$")
MOVES = frozenset(
    (
        "Gather", "GatherElements", "ScatterElements", "Scatter", "ScatterND", "CumSum", "ArgMax", "TopK", "Where",
        "Select", "Equal", "Less", "Greater", "GreaterOrEqual", "And", "Not", "Max", "Min", "Maximum", "Minimum",
        "Cast", "Convert", "ReduceSum", "Shape", "ShapeOf", "Slice", "StridedSlice", "Range", "OneHot", "Expand",
        "ConstantOfShape", "CumSumLayer", "ScatterElementsUpdate", "ScatterUpdate",
    )
)  # fmt: skip
"""Kinds of operation that move tokens or count them."""
LONGER = (
    "recording the time of every operation takes time itself, and operations that ran side by side count in full, so "
    "compare shares and not milliseconds"
)
SHORTER = (
    "the profiler runs on its own and times operations alone, not checks, mask and copies around them, nor what slowed "
    "the measured queries down"
)


@dataclass(frozen=True)
class Span:
    """An operation and where it belongs."""

    operation: Operation
    module: str | None
    """Dotted path, "" for the network itself, None where it is unknown."""
    found: str
    """"name", "place" or "unknown"."""
    block: str
    branch: str


def source_of(target: Target) -> Any:
    """The module that reads the times of the target's runtime: it has `layer_times` and METHOD.

    Raises UnavailableError for a runtime that reports no times.
    """
    name = runtimes()[target.runtime].times
    if not name:
        raise UnavailableError(f"{target.runtime} does not report the time of its layers: leave --layers out")
    return import_module(name)


def branches() -> list[str]:
    """The branches of all networks, in the order in which figures list them, and "unknown"."""
    names = [name for architecture in architectures().values() for name in architecture.branches]
    return list(dict.fromkeys([*names, "unknown"]))


def measure_layers(job: Job) -> list[dict[str, Any]]:
    """The operations of the only target as JSON, for the measuring process. Raises PpexportError as the runner does."""
    (target,) = job.targets
    images = np.load(job.images, allow_pickle=False)
    artifact = read_artifact(Path(target.artifact))
    return [vars(operation) for operation in source_of(target).layer_times(target, artifact, images)]


def profile_layers(job: Job, result: Profile, exported: Path | None = None) -> list[dict[str, Any]]:
    """Write time by layer of every target, or of the only one from the file that trtexec *exported*.

    Returns what is in the files. Raises PpexportError.
    """
    if exported is not None and (len(job.targets) > 1 or job.targets[0].runtime != "tensorrt"):
        raise InputError("--layer-times is a file of trtexec, for one TensorRT engine")

    def measure(only: Job, subject: dict[str, Any]) -> dict[str, Any]:
        source = source_of(only.targets[0])
        if exported is None:
            answer = ask("ppexport.profile.by_layer:measure_layers", only)
            operations = [Operation(**{**entry, "names": tuple(entry["names"])}) for entry in answer]
        else:
            operations = source.read_profile(exported)
        if getattr(source, "ESTIMATES", False):
            operations = [replace(op, ms=op.ms * subject["summary"]["p50_ms"]) for op in operations]
        return layers_result(operations, source.METHOD, find_architecture(subject["arch"]))

    return follow_up("layers", job, result, measure)


def layers_result(operations: Sequence[Operation], method: str, architecture: Architecture) -> dict[str, Any]:
    """What is found of *operations*: all of `layers.json` but what every file begins with."""
    spans = spans_of(operations, architecture)
    return {
        "method": method,
        "total_ms": sum(operation.ms for operation in operations),
        **summed(spans),
        "operations": [[s.operation.name, s.operation.kind, s.operation.ms, s.module, s.found] for s in spans],
    }


def spans_of(operations: Sequence[Operation], architecture: Architecture) -> list[Span]:
    """Every operation, in the order of execution, with its module."""
    called = {module for operation in operations for module in _calls(operation)}
    # A module that is called again gets a counter, `norm_1`: the calls that have none tell which numbers are counters.
    known = {module for module in called if not COUNTER.search(module)}
    named = [_named_module(operation, called, known) for operation in operations]
    before: list[str | None] = list(accumulate(named, _latest))
    after: list[str | None] = list(accumulate(reversed(named), _latest))[::-1]
    spans = []
    module: str | None
    for operation, own, left, right in zip(operations, named, before, after, strict=True):
        if own is not None:
            module, found = own, "name"
        elif left is None or right is None:
            module = right if left is None else left
            found = "place" if module else "unknown"
        else:
            module, found = _common(left, right, called), "place"
        role = ("unknown", "unknown") if module is None else architecture.branch_of(module, operation.kind in MOVES)
        spans.append(Span(operation, module, found, *role))
    return spans


def _latest(last: str | None, own: str | None) -> str | None:
    return last if own is None else own


def _calls(operation: Operation) -> Iterator[str]:
    """The modules whose calls the names of *operation* tell. A list, such as `layers`, is never called."""
    if operation.module is not None:
        yield operation.module
    for name in operation.names or (operation.name,):
        scopes = name.split("/")
        for end in range(2, len(scopes)):
            yield module_of_name("/".join([*scopes[:end], ""])) or ""


def _named_module(operation: Operation, called: Collection[str], known: Collection[str]) -> str | None:
    """The module that the names of *operation* tell: the innermost that holds all it was fused from."""
    if operation.module is not None:
        return operation.module
    modules = [m for name in operation.names or (operation.name,) if (m := module_of_name(name, known)) is not None]
    return reduce(lambda first, second: _common(first, second, called), modules) if modules else None


def _common(first: str, second: str, called: Collection[str]) -> str:
    """The innermost of the modules *called* that holds both, "" for the network."""
    path = first
    while path and not (path in called and f"{second}.".startswith(f"{path}.")):
        path = path.rpartition(".")[0]
    return path


def summed(spans: Iterable[Span]) -> dict[str, Any]:
    """Milliseconds by branch, by block, by block and branch, by module and by kind; and how modules were found."""
    totals: dict[str, dict[str, float]] = {key: {} for key in ("branches", "blocks", "modules", "kinds", "found")}
    cells: dict[str, dict[str, float]] = {}
    for span in spans:
        ms, kind = span.operation.ms, span.operation.kind
        module = "unknown" if span.module is None else span.module or "(network)"
        for key, name in zip(totals, (span.branch, span.block, module, kind, span.found), strict=True):
            totals[key][name] = totals[key].get(name, 0.0) + ms
        row = cells.setdefault(span.block, {})
        row[span.branch] = row.get(span.branch, 0.0) + ms
    ordered = {key: dict(sorted(table.items(), key=lambda item: -item[1])) for key, table in totals.items()}
    return {**ordered, "cells": {block: cells[block] for block in sorted(cells)}}


def why_sum_differs(data: dict[str, Any]) -> str | None:
    """A sentence where the sum of the layers and the measured p50 differ by more than a third of the p50, else None."""
    summary, total = data["subject"].get("summary"), data["total_ms"]
    p50 = summary.get("p50_ms") if isinstance(summary, dict) else None
    if not isinstance(p50, (int, float)) or p50 <= 0 or abs(total - p50) <= p50 / 3:
        return None
    why = LONGER if total > p50 else SHORTER
    return f"All operations take {total:.1f} ms, the measured p50 is {p50:.1f} ms: {why}."


def read_layers(path: Path) -> dict[str, Any]:
    """A checked `layers.json`. Raises InputError."""
    data = read_result(path, "ppexport-layers", 1)
    cells, subject = data.get("cells"), data.get("subject")
    tables = [data.get(name) for name in ("branches", "blocks", "modules", "kinds", "found")]
    tables += [{"total": data.get("total_ms")}, *(cells.values() if isinstance(cells, dict) else [None])]
    valid = all(isinstance(table, dict) and all(map(_is_time, table.values())) for table in tables)
    valid = valid and isinstance(subject, dict) and isinstance(subject.get("name"), str)
    if not valid or not set(data["branches"]) <= set(branches()):
        raise InputError(f"{path} does not hold what a profile by layer holds")
    return data


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
