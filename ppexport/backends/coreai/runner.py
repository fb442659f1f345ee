"""Runs a Core AI artefact in Apple's runtime: on Linux exact and slow, and no measure of a device's speed."""

from __future__ import annotations

import numpy as np

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.coreai.session import Session


class CoreAIRunner(Runner):
    """A Core AI artefact."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged asset or one that is not what the manifest says."""
        super().__init__(artifact)
        self.session = Session(artifact.model_file)
        self.check_facts(self.session.facts)

    def _run(self, prepared: Prepared) -> Result:
        found = self.session.run(feeds(self.artifact.manifest, prepared))
        return Result(found["sr"].astype(np.float32), int(found["impure_tokens"].reshape(-1)[0]), prepared.capacity)
