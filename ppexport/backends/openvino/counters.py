"""Time by operation in OpenVINO, from its counters, and the names that its operations were fused from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from ppexport.backends.backend import PROFILE_WARM_UP, PROFILED_RUNS, Operation
from ppexport.backends.openvino.run_openvino import OpenVinoRunner
from ppexport.device.picture import to_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ppexport.device.artifact import Artifact
    from ppexport.device.target import Target

METHOD = "OpenVINO's counters: median of every operation over 12 runs; counting adds to the time"
ORIGINAL = "originalLayersNames"
"""What holds the names in the ONNX file of everything that an operation was made from."""


def layer_times(target: Target, artifact: Artifact, images: NDArray[np.uint8]) -> list[Operation]:
    """Profile *artifact* on *images*, uint8 (count, h, w, 3), in turns; the operations in the order of execution.

    Raises PpexportError as the runner does.
    """
    runner = OpenVinoRunner(artifact, target.device, target.threads, counters=True)
    session, runs = runner.session, []
    for i in range(PROFILE_WARM_UP + PROFILED_RUNS):
        runner(to_input(images[i % len(images)]))
        executed = (entry for entry in session.request.profiling_info if str(entry.status).endswith("EXECUTED"))
        runs.append({e.node_name: (e.node_type, e.real_time.total_seconds() * 1e3) for e in executed})
    names = {}
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        text = str(info[ORIGINAL].value) if ORIGINAL in info else ""
        names[node.get_friendly_name()] = tuple(name.strip() for name in text.split(",") if name.strip())
    return operations_of(runs[PROFILE_WARM_UP:], names)


def operations_of(runs: Sequence[dict[str, tuple[str, float]]], names: dict[str, tuple[str, ...]]) -> list[Operation]:
    """The median time of every operation over *runs*, each {operation: (kind, milliseconds)}; *names* as fused from."""
    kinds = {name: kind for run in runs for name, (kind, _) in run.items()}
    return [
        Operation(name, kind, median(run[name][1] for run in runs if name in run), names.get(name, ()))
        for name, kind in kinds.items()
    ]
