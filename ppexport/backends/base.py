"""What every backend's runner is: the base class owns the public call and its checks, a subclass one small method.

Imports the standard library and NumPy only: this file runs on devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppexport.artifact import Artifact
from ppexport.errors import InputError

Image = NDArray[np.float32]


class Result(NamedTuple):
    """One picture, and what its routing needed."""

    sr: Image
    """float32 (1, 3, h * scale, w * scale), not clipped."""
    impure_tokens: int
    """Tokens that category attention had to mix."""
    capacity: int
    """Slots it had for them; with fewer slots than impure tokens the picture is not the network's."""


class Runner(ABC):
    """An opened artefact: `runner(lr)` super-resolves one image of exactly `runner.size`."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.size: tuple[int, int] = artifact.size
        self.scale: int = artifact.scale

    def __call__(self, lr: Image) -> Result:
        """Super-resolve *lr*, float32 (1, 3, h, w) in [0, 1].

        Raises InputError for another type or shape, or for values that are not finite.
        """
        expected = (1, 3, *self.size)
        if not isinstance(lr, np.ndarray) or lr.dtype != np.float32 or lr.shape != expected:
            got = f"{lr.dtype} {lr.shape}" if isinstance(lr, np.ndarray) else type(lr).__name__
            raise InputError(f"{self.artifact.path.name} takes one float32 image {expected} in [0, 1], not {got}")
        if not np.isfinite(lr).all():
            raise InputError("the image holds NaN or infinite values")
        return self._run(np.ascontiguousarray(lr))

    @abstractmethod
    def _run(self, lr: Image) -> Result:
        """Run a checked image."""
