"""The Core AI asset's column of a parity run, computed by Apple's runtime.

An asset cannot be looked into by name. So the same twin is converted once more, with more outputs: what its layers
chose, and what from. Both must compute the same picture, else that copy tells nothing of what ships.

A picture takes minutes. So whatever was computed is kept in the run's folder until the run is complete, and a run that
was ended goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreai.asset import Session
from ppexport.backends.coreai.convert_asset import build_for_looking
from ppexport.device.picture import psnr
from ppexport.device.runner import Prepared, Result, Runner, feeds
from ppexport.errors import ArtifactError, InputError
from ppexport.exporting import package_versions
from ppexport.files import sha256_text
from ppexport.networks.load import card_of
from ppexport.parity.columns import Sample, routed_sample
from ppexport.parity.inputs import ParityInput
from ppexport.parity.kept import UNFINISHED, Kept
from ppexport.parity.rechoose import ChosenFrom
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

SAME_DB = 120.0
"""The copy computes the same numbers, although the runtime may fuse other operations in it."""


def _key(item: ParityInput) -> str:
    """Tells inputs of one name apart, of different versions of this project."""
    return f"{item.name}-{hashlib.sha256(item.lr.tobytes()).hexdigest()[:12]}"


class AssetColumn:
    """An opened asset."""

    def __init__(self, runner: Runner, twin: StaticTwin, folder: Path) -> None:
        """Converts *twin* once more, which takes about as long as the export, unless *folder*, a run's, has it."""
        self.runner, self.manifest = runner, runner.artifact.manifest
        self.name = f"{self.manifest.backend}-{self.manifest.precision}"
        made_from = {"files": self.manifest.files, "versions": package_versions()}
        self.kept = Kept(folder / UNFINISHED, sha256_text(json.dumps(made_from, sort_keys=True))[:16])
        path = self.kept.folder / "open.aimodel"
        if not path.is_dir():
            card = card_of(twin.network)
            new = path.with_name("new.aimodel")
            shutil.rmtree(new, ignore_errors=True)
            build_for_looking(twin, card, new, self.manifest.capacities, self.manifest.mask, self.manifest.precision)
            new.rename(path)
        self.open = Session(path)

    def _opened(self, item: ParityInput, prepared: Prepared) -> Arrays:
        """All outputs of the copy."""
        return self.kept.arrays(f"{_key(item)}-open", lambda: self.open.run(feeds(self.manifest, prepared)))

    def _shipped(self, item: ParityInput, prepared: Prepared) -> Result:
        """What the asset itself computes."""

        def run() -> Arrays:
            return {name: np.asarray(value) for name, value in self.runner.run_unchecked(prepared)._asdict().items()}

        found = self.kept.arrays(_key(item), run)
        return Result(found["sr"], int(found["impure_tokens"]), int(found["capacity"]))

    def finish(self) -> None:
        """Remove what was kept for a run that would have ended early."""
        self.open.close()
        self.kept.remove()

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*. Raises ArtifactError where the copy computes another picture."""
        if categories is not None:
            raise InputError("categories cannot be injected into an asset")
        prepared = self.runner.prepare(item.lr)
        result, inside = self._shipped(item, prepared), self._opened(item, prepared)
        same = psnr(result.sr, inside["sr"].astype(np.float32), 1.0)
        # A picture that is not finite fails by itself, whatever its copy computes.
        if np.isfinite(result.sr).all() and not same >= SAME_DB:
            raise ArtifactError(
                f"{self.runner.artifact.path}: an asset converted from the same model computes another picture of "
                f"{item.name} ({same:.1f} dB): export again with the installed versions"
            )
        mask = inside.get("pure"), inside.get("labels")
        return routed_sample(item, prepared, self.manifest, result, inside["categories"], mask)

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """What every layer is given, with the asset's own categories: it does not tell what comes out of one."""
        return list(self._opened(item, self.runner.prepare(item.lr))["tokens"])

    def chosen_from(self, item: ParityInput, categories: NDArray[np.uint8]) -> list[ChosenFrom]:
        """What every layer chose from; *categories* are the asset's own."""
        inside = self._opened(item, self.runner.prepare(item.lr))
        return [ChosenFrom(*pair) for pair in zip(inside["tokens"], inside["dictionaries"], strict=True)]
