"""The Core ML package's column of a parity run, computed by the evaluator, which sees every operation of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.debug import DebugPackage, Inputs
from ppexport.device.runner import Result, Runner, feeds
from ppexport.parity.columns import Sample, routed_sample
from ppexport.parity.inputs import ParityInput
from ppexport.parity.rechoose import ChosenFrom


class PackageColumn:
    """An opened package."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.manifest = runner, runner.artifact.manifest
        self.name = f"{self.manifest.backend}-{self.manifest.precision}"
        self.debug = DebugPackage(runner.artifact.model_file)

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*, with injected *categories* if given."""
        prepared = self.runner.prepare(item.lr)
        inside = self.debug.run(feeds(self.manifest, prepared), categories)
        result = Result(inside.sr, inside.impure_tokens, prepared.capacity)
        return routed_sample(item, prepared, self.manifest, result, inside.categories, (inside.pure, inside.labels))

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """The output of every layer."""
        return self.debug.layers(self._inputs(item), categories)

    def chosen_from(self, item: ParityInput, categories: NDArray[np.uint8]) -> list[ChosenFrom]:
        """What every layer chose from, with injected *categories*."""
        return [ChosenFrom(*pair) for pair in self.debug.chosen_from(self._inputs(item), categories)]

    def _inputs(self, item: ParityInput) -> Inputs:
        """The package's inputs."""
        return feeds(self.manifest, self.runner.prepare(item.lr))
