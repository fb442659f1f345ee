"""The artefact's column of a parity run.

Of an fp32 or int8 ONNX artefact the picture comes from the shipped file and the routing from a debug copy of it; of one
in fp16 or mixed both come from a debug copy that rounds what is fp16, since ONNX Runtime's CPU kernels would compute it
in fp32. A Core ML package is computed by the evaluator (`package_column`). An engine cannot be opened: its column is
the picture and the number of impure tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.runner import Prepared, Result, Runner, feeds
from ppexport.errors import InputError
from ppexport.parity.columns import Sample, routed_sample
from ppexport.parity.inputs import ParityInput

if TYPE_CHECKING:
    from ppexport.parity.package_column import PackageColumn
    from ppexport.parity.rechoose import ChosenFrom


class ArtifactColumn:
    """An opened ONNX artefact."""

    def __init__(self, runner: Runner) -> None:
        from ppexport.backends.onnx.debug import DebugModel
        from ppexport.backends.onnx.model_file import artifact_model
        from ppexport.backends.onnx.rounding import RoundedModel

        self.runner, self.manifest = runner, runner.artifact.manifest
        self.name = f"onnx-{self.manifest.precision}"
        self.rounds = self.manifest.precision in ("fp16", "mixed")
        self.debug = (RoundedModel if self.rounds else DebugModel)(
            runner.artifact.graph_file, artifact_model(runner.artifact)
        )

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*; with injected *categories*, or where it rounds, the picture is the copy's."""
        prepared = self.runner.prepare(item.lr)
        inside = self.debug.run(self._inputs(prepared), None if categories is None else categories.astype(np.int64))
        result = Result(inside.sr, inside.impure_tokens, prepared.capacity)
        if not self.rounds:
            shipped = self.runner.run_unchecked(prepared)
            result = shipped if categories is None else shipped._replace(sr=inside.sr)
        return routed_sample(item, prepared, self.manifest, result, inside.categories, (inside.pure, inside.labels))

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """The output of every layer."""
        inputs = self._inputs(self.runner.prepare(item.lr))
        return self.debug.layers(inputs, None if categories is None else categories.astype(np.int64))

    def chosen_from(self, item: ParityInput, categories: NDArray[np.uint8]) -> list[ChosenFrom]:
        """What every layer chose from, with injected *categories*."""
        from ppexport.parity.rechoose import ChosenFrom

        inputs = self._inputs(self.runner.prepare(item.lr))
        return [ChosenFrom(*pair) for pair in self.debug.chosen_from(inputs, categories.astype(np.int64))]

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
        if categories is not None:
            raise InputError("categories cannot be injected into an engine")
        result = self.runner.run_unchecked(self.runner.prepare(item.lr))
        return Sample(sr=result.sr, impure=result.impure_tokens, capacity=result.capacity)


def artifact_column(runner: Runner) -> ArtifactColumn | PackageColumn | EngineColumn:
    """The column of whatever *runner* runs; a Core AI asset is as closed as an engine, but for `AssetColumn`."""
    backend = runner.artifact.manifest.backend
    if backend == "coreml":
        from ppexport.parity.package_column import PackageColumn

        return PackageColumn(runner)
    return ArtifactColumn(runner) if backend == "onnx" else EngineColumn(runner)
