"""Artefact folder -> runner. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ppexport.artifact import read_artifact
from ppexport.backends.base import Runner
from ppexport.errors import ArtifactError


def open_artifact(path: str | Path, *, threads: int | None = None) -> Runner:
    """A runner for the artefact folder *path*, called with float32 (1, 3, h, w) in [0, 1].

    It returns `(sr, impure_tokens, capacity)`, sr float32 and not clipped. *threads* None lets the runtime choose.
    Raises ArtifactError where the folder is damaged, UnavailableError where its runtime is not installed.
    """
    artifact = read_artifact(Path(path))
    if artifact.manifest.backend == "onnx":
        from ppexport.backends.onnx.runner import OnnxRunner

        return OnnxRunner(artifact, threads)
    raise ArtifactError(f"{path} is for backend {artifact.manifest.backend!r}, which this ppexport cannot run")
