"""Runs a TensorRT engine."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.tensorrt.session import open_session


class TensorRTRunner(Runner):
    """An engine artefact on this machine's GPU."""

    def __init__(self, artifact: Artifact, trust: bool = False) -> None:
        super().__init__(artifact)
        self.session = open_session(artifact, trust)

    def _run(self, prepared: Prepared) -> Result:
        inputs = feeds(self.artifact.manifest, prepared)
        # The engine's profile stands for the slots, whose content nothing reads.
        inputs.pop("slots", None)
        out = self.session.run(inputs, prepared.capacity)
        return Result(out["sr"], int(out["impure_tokens"][0]), prepared.capacity)
