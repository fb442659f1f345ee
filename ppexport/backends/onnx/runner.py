"""Runs an ONNX artefact with ONNX Runtime."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import Image, Result, Runner
from ppexport.backends.onnx.session import make_session


class OnnxRunner(Runner):
    """An ONNX artefact on ONNX Runtime's CPU provider."""

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        super().__init__(artifact)
        self.session = make_session(artifact.model_file, threads)

    def _run(self, lr: Image) -> Result:
        sr, impure = self.session.run(["sr", "impure_tokens"], {"lr": lr})
        return Result(sr, int(impure[0]), self.artifact.manifest.capacities[-1])
