"""Runs an artefact under its runtime's profiler, apart from the latency run, which a profiler would slow down."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Artifact, read_artifact
from ppexport.device.job import Job
from ppexport.device.picture import to_input
from ppexport.device.runner import Runner, check_threads
from ppexport.device.target import Target
from ppexport.errors import UnavailableError
from ppexport.profile.layers import coreml, onnxruntime, openvino
from ppexport.profile.layers.spans import Operation

RUNS = 12
"""Runs that are profiled; the median of each operation counts."""
WARM = 2


def run_cycle(runner: Runner, images: NDArray[np.uint8], runs: int) -> None:
    """*runs* runs on *images* (count, h, w, 3) in turns."""
    for i in range(runs):
        runner(to_input(images[i % len(images)]))


def trace_onnxruntime(target: Target, artifact: Artifact, images: NDArray[np.uint8]) -> list[Operation]:
    """From ONNX Runtime's own trace, which it writes into a temporary folder."""
    from ppexport.backends.onnx.run_onnxruntime import OnnxRunner, load

    with tempfile.TemporaryDirectory() as folder:
        runner = OnnxRunner(artifact, target.threads, target.device)
        runner.session = load(
            artifact.read(artifact.model_file),
            str(artifact.model_file),
            target.device,
            intra_op_num_threads=check_threads(target.threads) or 0,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder) / "trace"),
        )
        run_cycle(runner, images, WARM + RUNS)
        return onnxruntime.operations_of(onnxruntime.read_trace(Path(runner.session.end_profiling())), WARM)


def count_openvino(target: Target, artifact: Artifact, images: NDArray[np.uint8]) -> list[Operation]:
    """From OpenVINO's counters."""
    from ppexport.backends.openvino.run_openvino import OpenVinoRunner

    runner = OpenVinoRunner(artifact, target.device, target.threads, counters=True)
    run_cycle(runner, images, WARM)
    runs = []
    for i in range(RUNS):
        run_cycle(runner, images[i % len(images)][None], 1)
        runs.append(openvino.counters(runner.session.request))
    return openvino.operations_of(runs, openvino.original_names(runner.session.compiled))


def plan_coreml(target: Target, artifact: Artifact) -> list[Operation]:
    """From Core ML's plan, as shares of one. Untested on hardware."""
    from ppexport.backends.coreml.run_mac import CoreMLMacRunner

    # Refuses anything but a Mac with one sentence.
    return coreml.operations_of(CoreMLMacRunner(artifact, target.device).plan(), 1.0)


def collect(target: Target, images: NDArray[np.uint8]) -> list[Operation]:
    """The operations of *target* with their times, in the order of execution.

    Raises UnavailableError for a runtime that does not tell, else as the runner does.
    """
    artifact = read_artifact(Path(target.artifact))
    if target.runtime == "onnxruntime":
        return trace_onnxruntime(target, artifact, images)
    if target.runtime == "openvino":
        return count_openvino(target, artifact, images)
    if target.runtime == "coreml":
        return plan_coreml(target, artifact)
    raise UnavailableError(
        "TensorRT tells its layers through trtexec: run it with --exportProfile=FILE --separateProfileRun, and pass "
        "--layer-times FILE"
    )


def print_layers(job: Job) -> None:
    """Print the operations of the only target as JSON, for the measuring process."""
    images = np.load(job.images, allow_pickle=False)
    print(json.dumps([vars(operation) for operation in collect(job.targets[0], images)]))
