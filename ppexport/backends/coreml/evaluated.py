"""Runs the functions of a package in the evaluator, with what an app would feed. Imports torch when it is opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Artifact, capacity_function
from ppexport.device.runner import SessionRunner
from ppexport.errors import ArtifactError, require

if TYPE_CHECKING:
    from ppexport.backends.coreml.evaluator.evaluate import Evaluator

Arrays = dict[str, NDArray[Any]]


class Session:
    """An opened package of this project."""

    def __init__(self, path: Path, *, rounding: bool = True) -> None:
        """*rounding* False computes what is fp16 in fp32. Raises ArtifactError for a damaged package."""
        require("torch", "coreml")
        from ppexport.backends.coreml.package import read_package

        self.path, self.rounding = path, rounding
        self.package = read_package(path)
        self._evaluators: dict[str, Evaluator] = {}

    @property
    def facts(self) -> dict[str, str]:
        """The package's own metadata."""
        return self.package.facts

    @property
    def images(self) -> bool:
        """Whether `lr` and `sr` are pictures."""
        return any(f.image is not None for f in self.package.interfaces[self.package.default].inputs)

    def evaluator(self, capacity: int | None = None) -> Evaluator:
        """The evaluator of the function for *capacity* slots, made when it is first needed; None for the default.

        Raises InputError for a capacity that the package has no function for.
        """
        from ppexport.backends.coreml.evaluator.evaluate import Evaluator

        name = self.package.default if capacity is None else capacity_function(capacity)
        if name not in self._evaluators:
            self._evaluators[name] = Evaluator(self.package, name, rounding=self.rounding)
        return self._evaluators[name]

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        keep: Collection[str] = (),
        replace: Mapping[str, NDArray[Any]] | None = None,
    ) -> Arrays:
        """Outputs for *inputs* as the ONNX graph takes them, and the results named in *keep*.

        `lr` and `sr` are float32 in [0, 1], also where the package takes pictures, which have 8 bits; `slots` (1, C)
        of a capacity set chooses the function for C slots. Raises ArtifactError for a foreign package without them.
        """
        fed = dict(inputs)
        slots = fed.pop("slots", None)
        if self.images:
            fed["lr"] = np.floor(np.clip(fed["lr"], 0, 1) * np.float32(255) + np.float32(0.5))
        evaluator = self.evaluator(None if slots is None else slots.shape[1])
        found = evaluator.run(fed, keep=keep, replace=replace)
        for name in ("sr", "impure_tokens"):
            if name not in found:
                raise ArtifactError(f"{self.path} computes no {name}: no export made it")
        found["sr"] = found["sr"].astype(np.float32)
        if self.images:
            found["sr"] /= np.float32(255)
        return found


class CoreMLRunner(SessionRunner):
    """A Core ML artifact in the evaluator, on any machine: exact, slow, and no measure of a device's speed."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged package or one that is not what the manifest says."""
        super().__init__(artifact, Session(artifact.model_file))

    def _close(self) -> None:
        del self.session
