"""Artefact folder -> runner. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ppexport.device.artifact import read_artifact
from ppexport.device.runner import Runner, check_threads
from ppexport.errors import ArtifactError


def open_artifact(path: str | Path, *, threads: int | None = None, trust: bool = False) -> Runner:
    """A runner for the artefact folder *path*, called with float32 (1, 3, h, w) in [0, 1].

    It returns `(sr, impure_tokens, capacity)`, sr float32 and not clipped. *threads* None lets the runtime choose;
    more than four for each core are refused.
    Loading a TensorRT engine runs the code in it: one that this user did not build takes *trust*.
    Raises ArtifactError where the folder is damaged, or holds an engine of another machine, UnavailableError where its
    runtime or GPU is missing, InputError for an engine that is not trusted, and for threads that are no such number.
    """
    check_threads(threads)
    artifact = read_artifact(Path(path))
    if artifact.manifest.backend == "onnx":
        from ppexport.backends.onnx.run_onnxruntime import OnnxRunner

        return OnnxRunner(artifact, threads)
    if artifact.manifest.backend == "tensorrt":
        from ppexport.backends.tensorrt.run_engine import TensorRTRunner

        return TensorRTRunner(artifact, trust)
    if artifact.manifest.backend == "coreml":
        from ppexport.backends.coreml.evaluated import CoreMLRunner

        return CoreMLRunner(artifact)
    if artifact.manifest.backend == "coreai":
        from ppexport.backends.coreai.asset import CoreAIRunner

        return CoreAIRunner(artifact)
    raise ArtifactError(f"{path} is for backend {artifact.manifest.backend!r}, which this ppexport cannot run")


PROFILED_RUNS = 12
"""Runs whose operations are timed; of each operation the median counts."""
PROFILE_WARM_UP = 2
"""Runs before them, whose times are not used."""


@dataclass(frozen=True)
class Operation:
    """One operation of an artifact as its runtime's profiler tells it."""

    name: str
    kind: str
    """What the runtime calls it, such as "Conv"."""
    ms: float
    """Median milliseconds of one run; where the runtime only estimates, its share of a run, of 1."""
    names: tuple[str, ...] = ()
    """Operations of the exported file that it was fused from: they tell where it comes from, not its own name."""
    module: str | None = None
    """Dotted path of the PyTorch module it comes from, in a format that tells this itself."""
