"""The Core AI asset's column of a parity run, computed by Apple's runtime.

An asset cannot be looked into by name. So the same twin is converted once more, with more outputs: what its layers
chose, and what from. Both must compute the same picture, else that copy tells nothing of what ships.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.base import Prepared, Runner, feeds
from ppexport.backends.coreai.build import build_for_looking
from ppexport.backends.coreai.session import Session
from ppexport.errors import ArtifactError
from ppexport.metrics import psnr
from ppexport.networks.load import card_of
from ppexport.parity.columns import Sample, routed_sample
from ppexport.parity.inputs import ParityInput
from ppexport.parity.rechoose import ChosenFrom
from ppexport.twin.build import StaticTwin

SAME_DB = 120.0
"""The copy computes the same numbers, although the runtime may fuse other operations in it."""


class AssetColumn:
    """An opened asset."""

    def __init__(self, runner: Runner, twin: StaticTwin) -> None:
        """Converts *twin* once more, which takes about as long as the export."""
        self.runner, self.manifest = runner, runner.artifact.manifest
        self.name = f"{self.manifest.backend}-{self.manifest.precision}"
        self._folder = TemporaryDirectory()
        path = Path(self._folder.name) / "open.aimodel"
        card = card_of(twin.__dict__["network"])
        build_for_looking(twin, card, path, self.manifest.capacities, self.manifest.mask, self.manifest.precision)
        self.open = Session(path)
        self._last: tuple[str, dict[str, NDArray[Any]]] = ("", {})

    def _opened(self, item: ParityInput, prepared: Prepared) -> dict[str, NDArray[Any]]:
        """All outputs of the copy."""
        if self._last[0] != item.name:
            self._last = (item.name, self.open.run(feeds(self.manifest, prepared)))
        return self._last[1]

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*. Raises ArtifactError where the copy computes another picture."""
        assert categories is None, "categories cannot be injected into an asset"
        prepared = self.runner.prepare(item.lr)
        result, inside = self.runner.run(prepared), self._opened(item, prepared)
        same = psnr(result.sr, inside["sr"].astype(np.float32), 1.0)
        if not same >= SAME_DB:
            raise ArtifactError(
                f"{self.runner.artifact.path}: an asset converted from the same model computes another picture of "
                f"{item.name} ({same:.1f} dB): export again with the installed versions"
            )
        mask = inside.get("pure"), inside.get("labels")
        return routed_sample(item, prepared, self.manifest, result, inside["categories"], mask)

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """The input of every layer but the first, which is the output of the one before, or of a block."""
        return list(self._opened(item, self.runner.prepare(item.lr))["tokens"])[1:]

    def chosen_from(self, item: ParityInput, categories: NDArray[np.uint8]) -> list[ChosenFrom]:
        """What every layer chose from; *categories* are the asset's own."""
        inside = self._opened(item, self.runner.prepare(item.lr))
        return [ChosenFrom(*pair) for pair in zip(inside["tokens"], inside["dictionaries"], strict=True)]
