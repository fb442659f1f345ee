"""Looks into a Core AI asset, which Apple's runtime computes, by means of a second, open one.

An asset gives its outputs only. So the same twin is converted once more, with more outputs: what its layers chose, what
from, and what they computed. Both must compute the same picture, or the copy says nothing about the file that ships.

A picture takes minutes. So whatever was computed is kept until the run is complete, and an interrupted run continues
from what was kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.coreai.asset import Session
from ppexport.backends.coreai.convert_asset import Front, write_asset
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, InputError
from ppexport.files import atomic_path, is_plain_name, sha256_text
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import card_of
from ppexport.networks.network import Trace
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays, Runner

SAME_DB = 120.0
"""The copy computes the same numbers, although the runtime may fuse other operations in it."""


class OpenFront(Front):
    """A twin that also gives what every layer chose, what from, and what it computed."""

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__(twin)
        routing = find_architecture(twin.network.arch).routing
        # What is not chosen by a dictionary cannot be chosen again from it.
        chosen = ("categories", "layers") if routing and routing.choice else ()
        given = ("tokens", "dictionaries") if routing and routing.norm else ()
        # A mask of adaptive colour centres is the host's.
        shown = () if twin.pure_pass is None or twin.pure_pass.adaptive else ("pure", "labels")
        self.inside = (*chosen, *given, *shown)
        self.outputs = (*Front.outputs, *self.inside)

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Also, as far as the network has them, categories (layers, n), the layers' results (layers, ...), their input
        tokens (layers, n, c) and dictionaries (layers, t, c), the mask (n,) and the labels (n,) that it comes from.
        """
        trace, found = Trace(), {}
        sr, impure = self.twin(lr, mask, trace=trace)
        if "categories" in self.inside:
            found = {"categories": torch.stack(trace.categories), "layers": torch.stack(trace.tokens)}
        if "tokens" in self.inside:
            found |= {name: torch.stack([pair[i] for pair in trace.inputs]) for i, name in enumerate(self.inside[2:4])}
        if self.twin.pure_pass is not None and "pure" in self.inside:
            padded = self.twin.pad(lr)
            labels = self.twin.pure_pass.labels(padded).to(torch.int32).reshape(-1)
            found |= {"pure": self.twin.pure_pass(padded).to(torch.int32), "labels": labels}
        return sr, impure, *(found[name] for name in self.inside)


class KeptResults:
    """A folder of results by name; those of another *key* were made from something else, and are removed."""

    def __init__(self, root: Path, key: str) -> None:
        """*key* is a plain name, that of the folder in *root* that holds everything."""
        self.folder = root / key
        for other in root.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def arrays(self, name: str, run: Callable[[], Arrays]) -> Arrays:
        """What is kept as *name*, else what *run* returns, which then is kept."""
        if not is_plain_name(name):
            raise InputError(f"{name!r} is not a plain name of a result")
        path = self.folder / f"{name}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as data:
                    return {key: data[key] for key in data.files}
            except Exception:  # NumPy, zipfile and zlib each raise their own kinds
                # What is damaged is made again.
                path.unlink()
        found = run()
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
        return found


class AssetProbe(Probe):
    """An asset and its open copy. Nothing can be injected: categories are the asset's own."""

    injects = False

    def __init__(self, runner: Runner, twin: StaticTwin, folder: Path) -> None:
        """Convert *twin* once more, which takes about as long as the export, unless *folder* has the copy."""
        self.runner, manifest = runner, runner.artifact.manifest
        versions = {name: version(name) for name in ("torch", "coreai-core", "coreai-torch")}
        made_from = {"files": manifest.files, "versions": versions, "outputs": OpenFront(twin).outputs}
        self.kept = KeptResults(folder, sha256_text(json.dumps(made_from, sort_keys=True))[:16])
        path = self.kept.folder / "open.aimodel"
        if not path.is_dir():
            new = path.with_name("new.aimodel")
            shutil.rmtree(new, ignore_errors=True)
            write_asset(new, twin, card_of(twin.network), manifest, OpenFront)
            new.rename(path)
        self.open = Session(path)

    def _opened(self, inputs: Arrays) -> Arrays:
        """What the copy computes."""
        return self.kept.arrays(f"{_key(inputs)}-open", lambda: self.open.run(inputs))

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`, without *categories*. Raises ArtifactError where the copy computes another picture."""
        if categories is not None:
            raise InputError("categories cannot be injected into an asset")

        def run_shipped() -> Arrays:
            result = self.runner.run_unchecked(self.runner.prepare(inputs["lr"]))
            return {"sr": result.sr, "impure_tokens": np.asarray(result.impure_tokens)}

        shipped, inside = self.kept.arrays(_key(inputs), run_shipped), self._opened(inputs)
        sr = shipped["sr"]
        same = psnr(sr, inside["sr"].astype(np.float32), 1.0)
        # A picture that is not finite fails by itself, whatever its copy computes.
        if np.isfinite(sr).all() and not same >= SAME_DB:
            raise ArtifactError(
                f"{self.runner.artifact.path}: an asset converted from the same model computes another picture "
                f"({same:.1f} dB): export again with the installed versions"
            )
        labels, pure = inside.get("labels"), inside.get("pure")
        return Inside(
            sr,
            int(shipped["impure_tokens"]),
            inside.get("categories", np.zeros((0, 0))).astype(np.int64),
            None if labels is None else labels.astype(np.int64),
            None if pure is None else pure.astype(np.bool_),
        )

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (rows, c) of every layer, with the asset's own categories."""
        found = self._opened(inputs).get("layers", np.zeros((0, 1, 1))).astype(np.float32)
        return [layer.reshape(-1, layer.shape[-1]) for layer in found]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """What every layer chose from; *categories* are the asset's own."""
        inside = self._opened(inputs)
        return [ChosenFrom(*pair) for pair in zip(inside["tokens"], inside["dictionaries"], strict=True)]

    def close(self) -> None:
        """Release the copy."""
        self.open.close()


def _key(inputs: Arrays) -> str:
    return hashlib.sha256(inputs["lr"].tobytes()).hexdigest()[:16]
