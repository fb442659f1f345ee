"""The artefact's column of a parity run.

Of an fp32 or int8 ONNX artefact the picture comes from the shipped file and the routing from a debug copy of it; of one
in fp16 or mixed both come from a debug copy that rounds what is fp16, since ONNX Runtime's CPU kernels would compute it
in fp32. An engine cannot be opened: its column is the picture and the number of impure tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.mask import pixel_labels
from ppexport.parity.columns import Sample
from ppexport.parity.inputs import ParityInput


class ArtifactColumn:
    """An opened ONNX artefact."""

    def __init__(self, runner: Runner) -> None:
        from ppexport.backends.onnx.debug import DebugModel
        from ppexport.backends.onnx.rounding import RoundedModel

        self.runner, self.manifest = runner, runner.artifact.manifest
        self.name = f"onnx-{self.manifest.precision}"
        self.rounds = self.manifest.precision in ("fp16", "mixed")
        self.debug = (RoundedModel if self.rounds else DebugModel)(runner.artifact.model_file)

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*; with injected *categories*, or where it rounds, the picture is the copy's."""
        prepared = self.runner.prepare(item.lr)
        inside = self.debug.run(self._inputs(prepared), None if categories is None else categories.astype(np.int64))
        rounded = Result(inside.sr, inside.impure_tokens, prepared.capacity)
        result = rounded if self.rounds else self.runner.run(prepared)
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
        return feeds(self.manifest, prepared)


class EngineColumn:
    """An opened engine."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.name = f"{runner.artifact.manifest.backend}-{runner.artifact.manifest.precision}"

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*."""
        assert categories is None, "categories cannot be injected into an engine"
        result = self.runner(item.lr)
        return Sample(sr=result.sr, impure=result.impure_tokens, capacity=result.capacity)


def artifact_column(runner: Runner) -> ArtifactColumn | EngineColumn:
    """The column of whatever *runner* runs."""
    return ArtifactColumn(runner) if runner.artifact.manifest.backend == "onnx" else EngineColumn(runner)
