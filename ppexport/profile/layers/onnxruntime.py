"""The trace of ONNX Runtime: a JSON list of events, one for every node of every run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from ppexport.errors import InputError
from ppexport.profile.layers.spans import Operation

KERNEL = "_kernel_time"
MAX_BYTES = 1 << 29
CONTROL = ("If", "Loop", "Scan")
"""Operators whose time is that of the nodes inside them."""


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace. Raises InputError for anything that is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes: trace fewer runs")
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} is not a readable trace") from None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise InputError(f"{path} is not a trace of ONNX Runtime")
    return events


def operations_of(events: Iterable[dict[str, Any]], skip: int = 1) -> list[Operation]:
    """The median time of every node over all runs but the first *skip*, in the order of execution.

    A node that ran in several places of one run, as loops do, counts with all of them; one of a branch that some runs
    took, with its share of all runs; the If itself with nothing, since its time is that of its branch. Raises
    InputError for a trace without nodes or times.
    """
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    runs = 0
    try:
        for event in events:
            name = str(event.get("name", ""))
            if event.get("cat") == "Node" and name.endswith(KERNEL):
                if str(event.get("args", {}).get("op_name", "")) in CONTROL:
                    continue
                node = name[: -len(KERNEL)]
                times.setdefault(node, []).append(float(event["dur"]) / 1e3)
                kinds.setdefault(node, str(event.get("args", {}).get("op_name", "")))
            runs += event.get("cat") == "Session" and name == "model_run"
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("the trace has a node without a time") from None
    if not times or not runs:
        raise InputError("the trace holds no run")
    found = []
    for node, all_times in times.items():
        if len(all_times) < runs:
            found.append(Operation(node, kinds[node], sum(all_times) / runs))
            continue
        per_run = max(1, len(all_times) // runs)
        kept = all_times[skip * per_run :] or all_times
        sums = [sum(kept[i : i + per_run]) for i in range(0, len(kept) - per_run + 1, per_run)]
        found.append(Operation(node, kinds[node], median(sums)))
    return found
