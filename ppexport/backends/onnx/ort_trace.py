"""Time by operation in ONNX Runtime, from its trace: a JSON list of events, one for every node of every run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import PROFILE_WARM_UP, PROFILED_RUNS, Operation
from ppexport.backends.onnx.run_onnxruntime import open_target
from ppexport.device.picture import to_input
from ppexport.errors import InputError
from ppexport.files import read_limited_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ppexport.device.artifact import Artifact
    from ppexport.device.target import Target

METHOD = "ONNX Runtime's trace: median of every node over 12 runs; tracing adds to the time"
KERNEL = "_kernel_time"
MAX_BYTES = 1 << 29
CONTROL = ("If", "Loop", "Scan")
"""Operators whose time is that of the nodes inside them."""


def layer_times(target: Target, artifact: Artifact, images: NDArray[np.uint8]) -> list[Operation]:
    """Profile *artifact* on *images*, uint8 (count, h, w, 3), in turns; the operations in the order of execution.

    Raises PpexportError as the runner does.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "trace")}
        runner = open_target(artifact, target, **settings)
        for i in range(PROFILE_WARM_UP + PROFILED_RUNS):
            runner(to_input(images[i % len(images)]))
        trace = read_limited_json(Path(runner.session.end_profiling()), MAX_BYTES, "a trace of ONNX Runtime")
    return operations_of(trace, PROFILE_WARM_UP)


def operations_of(events: Iterable[dict[str, Any]], skip: int = 1) -> list[Operation]:
    """The median time of every node over all runs but the first *skip*, in the order of execution.

    A node that ran several times in one run, as in a loop, counts with the sum. A node of a branch that only some runs
    took counts with its share of all runs. The `If` itself counts nothing, since its time is that of its branch.
    Raises InputError for a trace without nodes or times.
    """
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    runs = 0
    try:
        for event in events:
            name, kind = str(event.get("name", "")), str(event.get("args", {}).get("op_name", ""))
            if event.get("cat") == "Node" and name.endswith(KERNEL) and kind not in CONTROL:
                node = name[: -len(KERNEL)]
                times.setdefault(node, []).append(float(event["dur"]) / 1e3)
                kinds.setdefault(node, kind)
            runs += event.get("cat") == "Session" and name == "model_run"
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("the trace of ONNX Runtime has a node without a time") from None
    if not times or not runs:
        raise InputError("the trace of ONNX Runtime holds no run")
    found = []
    for node, measured in times.items():
        ms = sum(measured) / runs
        if len(measured) >= runs:
            each = len(measured) // runs
            kept = measured[skip * each :] or measured
            ms = median(sum(kept[i : i + each]) for i in range(0, len(kept) - each + 1, each))
        found.append(Operation(node, kinds[node], ms))
    return found
