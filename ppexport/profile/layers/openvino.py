"""The counters of OpenVINO, and the names its operations were fused from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ppexport.profile.layers.spans import Operation

ORIGINAL = "originalLayersNames"


def original_names(compiled: Any) -> dict[str, tuple[str, ...]]:
    """Names in the ONNX file of everything that each operation of a compiled model was made from."""
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        text = str(info[ORIGINAL].value) if ORIGINAL in info else ""
        found[node.get_friendly_name()] = tuple(name.strip() for name in text.split(",") if name.strip())
    return found


def counters(request: Any) -> dict[str, tuple[str, float]]:
    """{operation: (kind, milliseconds)} of the last run, those that ran, in the order of execution."""
    return {
        entry.node_name: (entry.node_type, entry.real_time.total_seconds() * 1e3)
        for entry in request.profiling_info
        if str(entry.status).endswith("EXECUTED")
    }


def operations_of(runs: Sequence[dict[str, tuple[str, float]]], names: dict[str, tuple[str, ...]]) -> list[Operation]:
    """The median time of every operation over *runs*, as `counters` gives them."""
    kinds = {name: kind for run in runs for name, (kind, _) in run.items()}
    return [
        Operation(name, kind, median(run[name][1] for run in runs if name in run), names.get(name, ()))
        for name, kind in kinds.items()
    ]
