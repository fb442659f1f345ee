"""`layers.json`: time by operation, module, branch and block. Version 1:

format, version   "ppexport-layers", 1
created, subject  when, and what was profiled, as in `profile.json`
machine           as in `profile.json`
method            where the times come from
total_ms          sum of all operations
branches, blocks, modules, kinds
                  {name: ms}, the largest first
found             {"name", "place", "unknown": ms}: how operations were mapped to modules
cells             {block: {branch: ms}}
operations        [[name, kind, ms, module or null, "name" | "place" | "unknown"]], in the order of execution
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ppexport.errors import InputError
from ppexport.files import finite, write_text
from ppexport.profile.layers.spans import BRANCHES, Operation, spans_of, summed
from ppexport.profile.result import read_json

FORMAT = "ppexport-layers"
VERSION = 1
METHODS = {
    "onnxruntime": "ONNX Runtime's trace: median of every node over 12 runs; tracing adds to the time",
    "openvino": "OpenVINO's counters: median of every operation over 12 runs; counting adds to the time",
    "tensorrt": "trtexec's exported profile: median of every layer (parsed as documented, untested on hardware)",
    "coreml": "Core ML's plan: estimated weights times the measured p50 (read as documented, untested on hardware)",
}


def layers_result(
    operations: Sequence[Operation], subject: dict[str, Any], machine: dict[str, Any], method: str
) -> dict[str, Any]:
    """Everything of `layers.json`."""
    spans = spans_of(operations)
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "subject": subject,
        "machine": machine,
        "method": method,
        "total_ms": sum(operation.ms for operation in operations),
        **summed(spans),
        "operations": [[s.operation.name, s.operation.kind, s.operation.ms, s.module, s.found] for s in spans],
    }


def why_sum_differs(data: dict[str, Any]) -> str | None:
    """A sentence where the sum of the layers and the measured p50 differ by more than a third of the p50, else None."""
    summary = data["subject"].get("summary")
    p50 = summary.get("p50_ms") if isinstance(summary, dict) else None
    total = data["total_ms"]
    if not isinstance(p50, (int, float)) or p50 <= 0 or abs(total - p50) <= p50 / 3:
        return None
    if total > p50:
        why = (
            "recording the time of every operation takes time itself, and operations that ran side by side count in "
            "full, so compare shares and not milliseconds"
        )
    else:
        why = (
            "the profiler runs on its own and times operations alone, not checks, mask and copies around them, nor "
            "what slowed the measured queries down"
        )
    return f"All operations take {total:.1f} ms, the measured p50 is {p50:.1f} ms: {why}."


def write_layers(path: Path, data: dict[str, Any]) -> None:
    """Write `layers.json`, atomically."""
    write_text(path, json.dumps(finite(data), allow_nan=False) + "\n")


def read_layers(path: Path) -> dict[str, Any]:
    """A checked `layers.json`. Raises InputError."""
    data = read_json(path, FORMAT, VERSION)
    tables = [data.get(name) for name in ("branches", "blocks", "modules", "kinds", "found")]
    valid = all(isinstance(table, dict) and _numbers(table) for table in tables) and isinstance(data.get("cells"), dict)
    valid = valid and all(isinstance(row, dict) and _numbers(row) for row in data["cells"].values())
    valid = valid and isinstance(data.get("subject"), dict) and isinstance(data["subject"].get("name"), str)
    if not valid or not set(data["branches"]) <= set(BRANCHES) or not _numbers({"total": data.get("total_ms")}):
        raise InputError(f"{path} does not hold what a profile by layer holds")
    return data


def _numbers(table: dict[str, Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 for v in table.values())
