"""The artefact's column of a parity run: the picture from the shipped file, the routing from a debug copy of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.base import Prepared, Runner
from ppexport.errors import ArtifactError
from ppexport.mask import pixel_labels
from ppexport.parity.columns import Sample
from ppexport.parity.inputs import ParityInput


class ArtifactColumn:
    """An opened ONNX artefact."""

    def __init__(self, runner: Runner) -> None:
        from ppexport.backends.onnx.debug import DebugModel

        if runner.artifact.manifest.backend != "onnx":
            raise ArtifactError(f"parity cannot look into a {runner.artifact.manifest.backend} artefact")
        self.runner, self.manifest = runner, runner.artifact.manifest
        self.name = f"{self.manifest.backend}-{self.manifest.precision}"
        self.debug = DebugModel(runner.artifact.model_file)

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*; with injected *categories* the picture is the debug copy's."""
        prepared = self.runner.prepare(item.lr)
        inside = self.debug.run(self._inputs(prepared), None if categories is None else categories.astype(np.int64))
        result = self.runner.run(prepared)
        pure, labels = inside.pure, inside.labels
        if self.manifest.mask == "input":
            # The graph is given the mask, so labels and mask are the host's.
            pure = prepared.pure
            rgb = np.ascontiguousarray(item.lr[0].transpose(1, 2, 0))
            labels = pixel_labels(rgb, self.manifest.options["colors"]).astype(np.int64)
        return Sample(
            sr=result.sr if categories is None else inside.sr,
            impure=result.impure_tokens,
            categories=inside.categories.astype(np.uint8),
            pure=None if pure is None else pure.reshape(-1),
            labels=None if labels is None else labels.reshape(-1).astype(np.uint8),
            capacity=result.capacity,
        )

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """The output of every layer."""
        inputs = self._inputs(self.runner.prepare(item.lr))
        return self.debug.layers(inputs, None if categories is None else categories.astype(np.int64))

    def _inputs(self, prepared: Prepared) -> dict[str, NDArray[Any]]:
        """The graph's inputs."""
        from ppexport.backends.onnx.runner import feeds

        return feeds(self.manifest, prepared)
