"""Runs a Core ML artefact in the evaluator, on any machine: exact, slow, and no measure of a device's speed."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.coreml.session import Session


class CoreMLRunner(Runner):
    """A Core ML artefact in the evaluator."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged package or one that is not what the manifest says."""
        super().__init__(artifact)
        self.session = Session(artifact.model_file)
        self.check_facts(self.session.facts)

    def _run(self, prepared: Prepared) -> Result:
        found = self.session.run(feeds(self.artifact.manifest, prepared))
        return Result(found["sr"], int(found["impure_tokens"].reshape(-1)[0]), prepared.capacity)
