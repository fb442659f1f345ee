"""The artefact's column of a parity run: the picture from the shipped file, the routing from a debug copy of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.base import Runner
from ppexport.errors import ArtifactError
from ppexport.parity.columns import Sample
from ppexport.parity.inputs import ParityInput


class ArtifactColumn:
    """An opened ONNX artefact."""

    def __init__(self, runner: Runner) -> None:
        from ppexport.backends.onnx.debug import DebugModel

        if runner.artifact.manifest.backend != "onnx":
            raise ArtifactError(f"parity cannot look into a {runner.artifact.manifest.backend} artefact")
        self.runner = runner
        self.name = f"{runner.artifact.manifest.backend}-{runner.artifact.manifest.precision}"
        self.debug = DebugModel(runner.artifact.model_file)

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*; with injected *categories* the picture is the debug copy's."""
        inside = self.debug.run(item.lr, None if categories is None else categories.astype(np.int64))
        result = self.runner(item.lr)
        return Sample(
            sr=result.sr if categories is None else inside.sr,
            impure=result.impure_tokens,
            categories=inside.categories.astype(np.uint8),
            pure=None if inside.pure is None else inside.pure.reshape(-1),
            labels=None if inside.labels is None else inside.labels.reshape(-1).astype(np.uint8),
        )

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """The output of every layer."""
        return self.debug.layers(item.lr, None if categories is None else categories.astype(np.int64))
