"""Runs a Core ML artefact in the evaluator, on any machine: exact, slow, and no measure of a device's speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.artifact import Artifact, Manifest
from ppexport.backends.base import Prepared, Result, Runner
from ppexport.backends.coreml.session import Session
from ppexport.errors import ArtifactError


def feeds(manifest: Manifest, prepared: Prepared) -> dict[str, NDArray[Any]]:
    """What `Session.run` takes: `lr`, `slots` (1, C) of a capacity set, `mask` where it is an input."""
    inputs: dict[str, NDArray[Any]] = {"lr": prepared.lr}
    if len(manifest.capacities) > 1:
        inputs["slots"] = np.zeros((1, prepared.capacity), np.int32)
    if manifest.mask == "input":
        assert prepared.pure is not None
        inputs["mask"] = prepared.pure.astype(np.float32)[None, None]
    return inputs


class CoreMLRunner(Runner):
    """A Core ML artefact in the evaluator."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged package or one that is not what the manifest says."""
        super().__init__(artifact)
        self.session = Session(artifact.model_file)
        m = artifact.manifest
        said = {"ppexport.capacities": ",".join(map(str, m.capacities)), "ppexport.card_sha256": m.card_sha256}
        for key, value in said.items():
            if self.session.facts.get(key) != value:
                raise ArtifactError(
                    f"{artifact.model_file}: {key} is {self.session.facts.get(key)!r}, the manifest says {value!r}"
                )

    def _run(self, prepared: Prepared) -> Result:
        found = self.session.run(feeds(self.artifact.manifest, prepared))
        return Result(found["sr"], int(found["impure_tokens"].reshape(-1)[0]), prepared.capacity)
