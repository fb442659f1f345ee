"""Runs a Core ML artefact in the evaluator, on any machine: exact, slow, and no measure of a device's speed."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import SessionRunner
from ppexport.backends.coreml.session import Session


class CoreMLRunner(SessionRunner):
    """A Core ML artefact in the evaluator."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged package or one that is not what the manifest says."""
        super().__init__(artifact, Session(artifact.model_file))
