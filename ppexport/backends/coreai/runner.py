"""Runs a Core AI artefact in Apple's runtime: on Linux exact and slow, and no measure of a device's speed."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import SessionRunner
from ppexport.backends.coreai.session import Session


class CoreAIRunner(SessionRunner):
    """A Core AI artefact."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged asset or one that is not what the manifest says."""
        super().__init__(artifact, Session(artifact.model_file))
