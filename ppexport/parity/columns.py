"""One column of a parity run: what one implementation computed for every input, saved so that any two compare later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Probe, find_backend
from ppexport.device.mask import pixel_labels
from ppexport.device.runner import Runner, feeds
from ppexport.errors import InputError, first_line
from ppexport.files import atomic_path, is_plain_name
from ppexport.parity.inputs import ParityInput

if TYPE_CHECKING:
    from ppexport.twin.twin import StaticTwin

Categories = NDArray[np.integer[Any]]
"""(layers, n): the category of every token in every layer."""
Layers = list[NDArray[np.float32]]
"""Per layer (n, c)."""


@dataclass(frozen=True)
class Sample:
    """What one implementation computed for one input."""

    sr: NDArray[np.float32]
    """(1, 3, h * scale, w * scale)."""
    impure: int
    """Number of impure tokens."""
    categories: Categories | None = None
    """(layers, n): the category each token chose; None where an implementation does not tell, or does not route."""
    gaps: NDArray[np.float32] | None = None
    """(layers, n): lead of the best similarity over the second best."""
    pure: NDArray[np.bool_] | None = None
    """(n,): tokens that skip category attention."""
    labels: NDArray[np.uint8] | None = None
    """(n,): Pure-Pass label of every pixel of the padded image."""
    capacity: int | None = None
    """Slots that category attention ran with; None for the network, which needs none, and without routing."""


def narrow(categories: NDArray[Any]) -> Categories | None:
    """*categories* (layers, n) in the smallest type that holds them; None where there are no layers."""
    return categories.astype(np.min_scalar_type(int(categories.max()))) if categories.size else None


class Source(Protocol):
    """What computes a column."""

    name: str

    @property
    def injects(self) -> bool:
        """Whether it can compute with other categories than its own."""

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """The entry for *item*, with *categories* injected if given."""

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer, in the order in which they run."""


class ArtifactColumn:
    """An artifact: its picture and, where a probe opens it, its routing."""

    def __init__(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> None:
        """*twin* and *folder* are for a backend whose probe needs them (`Backend.probe`)."""
        self.runner, self.manifest = runner, runner.artifact.manifest
        backend = find_backend(self.manifest.backend)
        self.probe: Probe | None = backend.probe(runner, twin, folder)
        self.name = f"{self.manifest.backend}-{self.manifest.precision}"
        if self.probe is None and self.manifest.precision in backend.rounded:
            # Only the weights are of that precision.
            self.name += "-weights"

    @property
    def injects(self) -> bool:
        """Whether it can compute with other categories than its own."""
        return self.probe is not None and self.probe.injects

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """The column's entry for *item*; with injected *categories* the picture is the probe's."""
        prepared, manifest = self.runner.prepare(item.lr), self.manifest
        if self.probe is None:
            if categories is not None:
                raise InputError(f"categories cannot be injected into {self.name}")
            result = self.runner.run_unchecked(prepared)
            return Sample(result.sr, result.impure_tokens, capacity=result.capacity or None)
        inside = self.probe.run(feeds(manifest, prepared), _wide(categories))
        sr, impure, pure, labels = inside.sr, inside.impure_tokens, inside.pure, inside.labels
        if categories is None and not self.probe.gives_picture:
            sr, impure, _ = self.runner.run_unchecked(prepared)
        if manifest.mask == "input":
            # The artifact computes neither; both are the host's.
            pure = prepared.pure
            labels = pixel_labels(np.ascontiguousarray(item.lr[0].transpose(1, 2, 0)), manifest.options["colors"])
        return Sample(
            sr=sr,
            impure=impure,
            categories=narrow(inside.categories),
            pure=None if pure is None else pure.reshape(-1).astype(np.bool_),
            labels=None if labels is None else labels.reshape(-1).astype(np.uint8),
            capacity=prepared.capacity or None,
        )

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer; none where nothing opens the artifact."""
        return [] if self.probe is None else self.probe.layers(self._inputs(item), _wide(categories))

    def chosen_from(self, item: ParityInput, categories: Categories) -> list[ChosenFrom]:
        """What every layer chose from, with injected *categories*, or its own where nothing can be injected."""
        if self.probe is None:
            raise InputError(f"{self.name} does not tell what its layers choose from")
        return self.probe.chosen_from(self._inputs(item), categories.astype(np.int64))

    def close(self) -> None:
        """Release the probe."""
        if self.probe is not None:
            self.probe.close()

    def _inputs(self, item: ParityInput) -> dict[str, NDArray[Any]]:
        return feeds(self.manifest, self.runner.prepare(item.lr))


def _wide(categories: Categories | None) -> NDArray[np.int64] | None:
    return None if categories is None else categories.astype(np.int64)


Column = dict[str, Sample]
_FIELDS = ("sr", "impure", "categories", "gaps", "pure", "labels", "capacity")
_NUMBERS = ("impure", "capacity")


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of an .npz file, never unpickled. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in data.files}
    except Exception as error:  # NumPy, zipfile and zlib each raise their own kinds
        raise InputError(f"{path} is not a readable parity file: {first_line(error)}") from None


def save_column(path: Path, column: Column) -> None:
    """Write *column* to an .npz file, atomically."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, sample in column.items():
        for field in _FIELDS:
            value = getattr(sample, field)
            if value is not None:
                arrays[f"{name}.{field}"] = np.asarray(value)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load_column(path: Path) -> Column:
    """Read a column that `save_column` wrote. Raises InputError."""
    arrays = load_arrays(path)
    column: Column = {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in arrays):
        found: dict[str, Any] = {field: arrays.get(f"{name}.{field}") for field in _FIELDS}
        if found["sr"] is None or found["impure"] is None:
            raise InputError(f"{path}: {name!r} has no picture")
        shapes = {field: value.shape for field, value in found.items() if value is not None}
        tokens = {shape[-1:] for field, shape in shapes.items() if field not in ("sr", *_NUMBERS)}
        numbers = {field: found[field] for field in _NUMBERS}
        scalars = all(value is None or value.shape == () for value in numbers.values())
        if found["sr"].dtype != np.float32 or found["sr"].ndim != 4 or not scalars or len(tokens) > 1:
            raise InputError(f"{path}: {name!r} does not hold what a column holds: {shapes}")
        found.update({field: value if value is None else int(value) for field, value in numbers.items()})
        column[name] = Sample(**found)
    return column


def save_inputs(path: Path, inputs: list[ParityInput]) -> None:
    """Write the inputs and their ground truths to an .npz file, atomically."""
    arrays: dict[str, NDArray[np.generic]] = {f"{item.name}.lr": item.lr for item in inputs}
    arrays.update({f"{item.name}.hr": item.hr for item in inputs if item.hr is not None})
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load_inputs(path: Path, size: tuple[int, int]) -> list[ParityInput]:
    """Read inputs for LR images of *size*. Raises InputError for another size, type or a name that is not plain."""
    arrays = load_arrays(path)
    inputs = []
    for key, lr in arrays.items():
        name, _, field = key.rpartition(".")
        if field != "lr":
            continue
        if not is_plain_name(name) or lr.dtype != np.float32 or lr.shape != (1, 3, *size):
            raise InputError(f"{path}: input {name!r} is {lr.dtype} {lr.shape}, needed is float32 {(1, 3, *size)}")
        inputs.append(ParityInput(name, lr, arrays.get(f"{name}.hr")))  # type: ignore[arg-type]
    if not inputs:
        raise InputError(f"{path} holds no inputs")
    return inputs
