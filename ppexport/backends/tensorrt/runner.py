"""Runs a TensorRT engine."""

from __future__ import annotations

import numpy as np

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner
from ppexport.backends.tensorrt.session import open_session


class TensorRTRunner(Runner):
    """An engine artefact on this machine's GPU."""

    def __init__(self, artifact: Artifact, trust: bool = False) -> None:
        super().__init__(artifact)
        self.session = open_session(artifact, trust)

    def _run(self, prepared: Prepared) -> Result:
        inputs = {"lr": prepared.lr}
        if self.artifact.manifest.mask == "input":
            assert prepared.pure is not None
            inputs["mask"] = prepared.pure.astype(np.float32)[None, None]
        out = self.session.run(inputs, prepared.capacity)
        return Result(out["sr"], int(out["impure_tokens"][0]), prepared.capacity)
