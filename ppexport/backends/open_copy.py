"""Looks into a model file that gives outputs only, by means of a second, open one.

The same twin is converted once more, with more outputs: what its layers chose, what from, and what they computed. Both
must compute the same picture, or the copy says nothing about the file that ships.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.open_front import KeptResults
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays, Runner

SAME_DB = 120.0
"""The copy computes the same numbers, although the runtime may fuse other operations in it."""


class OpenSession(Protocol):
    """A file of an `OpenFront`, opened in the runtime."""

    def run(self, inputs: Arrays, /) -> Arrays:
        """All outputs by name, for inputs as `device.runner.feeds` makes them."""

    def close(self) -> None:
        """Free what it holds."""


class OpenCopyProbe(Probe):
    """A model file and its open copy. Nothing can be injected: categories are the file's own."""

    injects = False

    def __init__(self, runner: Runner, kept: KeptResults, copy: OpenSession) -> None:
        """*kept* holds what either computed."""
        self.runner, self.kept, self.open = runner, kept, copy

    def _opened(self, inputs: Arrays) -> Arrays:
        """What the copy computes."""
        return self.kept.arrays(f"{_key(inputs)}-open", lambda: self.open.run(inputs))

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`, without *categories*. Raises ArtifactError where the copy computes another picture."""
        if categories is not None:
            raise InputError("categories cannot be injected into a file that gives outputs only")

        def run_shipped() -> Arrays:
            result = self.runner.run_unchecked(self.runner.prepare(inputs["lr"]))
            return {"sr": result.sr, "impure_tokens": np.asarray(result.impure_tokens)}

        shipped, inside = self.kept.arrays(_key(inputs), run_shipped), self._opened(inputs)
        sr = shipped["sr"]
        same = psnr(sr, inside["sr"].astype(np.float32), 1.0)
        # A picture that is not finite fails by itself, whatever its copy computes.
        if np.isfinite(sr).all() and not same >= SAME_DB:
            raise ArtifactError(
                f"{self.runner.artifact.path}: a file converted from the same model computes another picture "
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
        """The output (rows, c) of every layer, with the file's own categories."""
        found = self._opened(inputs).get("layers", np.zeros((0, 1, 1))).astype(np.float32)
        return [layer.reshape(-1, layer.shape[-1]) for layer in found]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """What every layer chose from; *categories* are the file's own."""
        inside = self._opened(inputs)
        return [ChosenFrom(*pair) for pair in zip(inside["tokens"], inside["dictionaries"], strict=True)]

    def close(self) -> None:
        """Release the copy."""
        self.open.close()


def _key(inputs: Arrays) -> str:
    return hashlib.sha256(inputs["lr"].tobytes()).hexdigest()[:16]
