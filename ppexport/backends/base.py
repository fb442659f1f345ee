"""What every backend's runner is: the base class owns the public call and its checks, a subclass one small method.

Imports the standard library and NumPy only: this file runs on devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ppexport.artifact import Artifact, Manifest, smallest_capacity
from ppexport.errors import ArtifactError, InputError, present
from ppexport.mask import pure_mask

Image = NDArray[np.float32]
if TYPE_CHECKING:
    # No such type in Python 3.8, which devices have.
    Arrays = dict[str, NDArray[Any]]


class Result(NamedTuple):
    """One picture, and what its routing needed."""

    sr: Image
    """float32 (1, 3, h * scale, w * scale), not clipped."""
    impure_tokens: int
    """Tokens that category attention had to mix."""
    capacity: int
    """Slots it had for them; with fewer slots than impure tokens the picture is not the network's."""


class Prepared(NamedTuple):
    """A checked input, and what the host decided about it."""

    lr: Image
    """float32 (1, 3, h, w)."""
    pure: NDArray[np.bool_] | None
    """The Pure-Pass mask (H', W') of the padded input, None where the host needs none."""
    capacity: int
    """Slots to run with."""


def feeds(manifest: Manifest, prepared: Prepared) -> Arrays:
    """What a model takes: `lr`, `slots` (1, C) of a capacity set, `mask` (1, 1, H', W') where it is an input."""
    inputs: Arrays = {"lr": prepared.lr}
    if len(manifest.capacities) > 1:
        inputs["slots"] = np.zeros((1, prepared.capacity), np.int32)
    if manifest.mask == "input":
        inputs["mask"] = present(prepared.pure, "the mask").astype(np.float32)[None, None]
    return inputs


class Runner(ABC):
    """An opened artefact: `runner(lr)` super-resolves one image of exactly `runner.size`.

    `run(prepare(lr))` is the same in two steps, so that one image can be prepared while another runs.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.size: tuple[int, int] = artifact.size
        self.scale: int = artifact.scale

    def check_facts(self, facts: Mapping[str, str]) -> None:
        """Raise ArtifactError unless *facts*, what the model file says of itself, are the manifest's."""
        m = self.artifact.manifest
        said = {"ppexport.capacities": ",".join(map(str, m.capacities)), "ppexport.card_sha256": m.card_sha256}
        for key, value in said.items():
            if facts.get(key) != value:
                raise ArtifactError(
                    f"{self.artifact.model_file}: {key} is {facts.get(key)!r}, the manifest says {value!r}"
                )

    def __call__(self, lr: Image) -> Result:
        """Super-resolve *lr*, float32 (1, 3, h, w) in [0, 1].

        Raises InputError for another type or shape, or for values that are not finite.
        """
        return self.run(self.prepare(lr))

    def prepare(self, lr: Image) -> Prepared:
        """Check *lr*, and choose the capacity where there are several. Raises InputError as the call does."""
        expected = (1, 3, *self.size)
        if not isinstance(lr, np.ndarray) or lr.dtype != np.float32 or lr.shape != expected:
            got = f"{lr.dtype} {lr.shape}" if isinstance(lr, np.ndarray) else type(lr).__name__
            raise InputError(f"{self.artifact.path.name} takes one float32 image {expected} in [0, 1], not {got}")
        if not np.isfinite(lr).all():
            raise InputError("the image holds NaN or infinite values")
        lr, manifest = np.ascontiguousarray(lr), self.artifact.manifest
        if not manifest.needs_host_mask:
            return Prepared(lr, None, manifest.capacities[-1])
        options = manifest.options
        # A copy, because the mask reads pixel by pixel.
        rgb = np.ascontiguousarray(lr[0].transpose(1, 2, 0))
        pure = pure_mask(rgb, options["colors"], options["window"], options["csmf"])
        return Prepared(lr, pure, smallest_capacity(manifest.capacities, int(pure.size - np.count_nonzero(pure))))

    def run(self, prepared: Prepared) -> Result:
        """Super-resolve an image that `prepare` made ready."""
        return self._run(prepared)

    @abstractmethod
    def _run(self, prepared: Prepared) -> Result:
        """Run a prepared image."""


class NamedSession(Protocol):
    """An opened model that takes and gives arrays by name, and tells its own metadata."""

    @property
    def facts(self) -> Mapping[str, str]:
        """The model's own metadata."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """All outputs for what `feeds` makes."""


class SessionRunner(Runner):
    """A runner over a `NamedSession`."""

    def __init__(self, artifact: Artifact, session: NamedSession) -> None:
        """Raises ArtifactError where *session* is not of what the manifest says."""
        super().__init__(artifact)
        self.session = session
        self.check_facts(session.facts)

    def _run(self, prepared: Prepared) -> Result:
        found = self.session.run(feeds(self.artifact.manifest, prepared))
        sr = np.asarray(found["sr"], np.float32)
        return Result(sr, int(found["impure_tokens"].reshape(-1)[0]), prepared.capacity)
