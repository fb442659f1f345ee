"""One column of a parity run: what one implementation computed for every input, saved so that any two compare later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Probe, find_backend
from ppexport.device.artifact import Manifest
from ppexport.device.runner import Runner, feeds
from ppexport.errors import InputError, first_line, present
from ppexport.files import atomic_path, is_plain_name
from ppexport.parity.inputs import ParityInput

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays
    from ppexport.twin.twin import StaticTwin

Categories = NDArray[np.integer[Any]]
"""(layers, n): the category of every token in every layer."""
Layers = list[NDArray[np.float32]]
"""Per layer (n, c)."""


@dataclass(frozen=True)
class Sample:
    """What one implementation computed for one input. A field that is not reported, or not routed, is None."""

    sr: NDArray[np.float32]
    """(1, 3, h * scale, w * scale)."""
    impure: int
    """Number of impure tokens."""
    categories: Categories | None = None
    """(layers, n): the category each token chose."""
    gaps: NDArray[np.float32] | None = None
    """(layers, n): lead of the best similarity over the second best."""
    pure: NDArray[np.bool_] | None = None
    """(n,): tokens that skip category attention."""
    labels: NDArray[np.uint8] | None = None
    """(n,): Pure-Pass label of every pixel of the padded image."""
    capacity: int | None = None
    """Slots that category attention ran with; None for the network, which needs none."""


def narrow(categories: NDArray[Any]) -> Categories | None:
    """*categories* (layers, n) in the smallest type that holds them; None where there are no layers."""
    return categories.astype(np.min_scalar_type(int(categories.max()))) if categories.size else None


def wide(categories: Categories | None) -> NDArray[np.int64] | None:
    """*categories* as a probe and a network take them."""
    return None if categories is None else categories.astype(np.int64)


def host_labels(manifest: Manifest, item: ParityInput) -> NDArray[Any]:
    """The Pure-Pass label of every pixel, as devices compute it: (H', W') of the padded image."""
    return manifest.labels(np.ascontiguousarray(item.lr[0].transpose(1, 2, 0)))


@dataclass(frozen=True)
class ChosenAgain:
    """What the reference would have chosen from the numbers that the other one chose from."""

    categories: Categories
    """(layers, n)."""
    gaps: NDArray[np.float32]
    """(layers, n): lead of the best similarity over the second best."""
    tokens_db: float
    """Power of the reference's tokens over that of their error, in the worst layer."""
    dictionary_db: float
    """The same of the dictionaries."""


class Column:
    """What one implementation computed for all inputs. A column that was only loaded has samples, but no methods."""

    injects = False
    """Whether it can compute with other categories than its own."""

    def __init__(self, name: str, samples: dict[str, Sample] | None = None) -> None:
        self.name = name
        self.samples: dict[str, Sample] = samples or {}
        """{name of an input: what was computed for it}."""

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """Compute the entry for *item*, with *categories* injected if given."""
        raise NotImplementedError

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer, in the order in which they run."""
        raise NotImplementedError

    def chosen_from(self, item: ParityInput, categories: Categories) -> list[ChosenFrom]:
        """What every layer chose from, with injected *categories*, or its own where nothing can be injected."""
        raise NotImplementedError

    def choose_again(self, item: ParityInput, categories: Categories, other: Column) -> ChosenAgain | None:
        """What this one chooses from the numbers of the *other*, with the same *categories* in both, if it can."""
        return None


class ArtifactColumn(Column):
    """An artifact: its picture and, where a probe opens it, its routing."""

    def __init__(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> None:
        """*twin* and *folder* are for a backend whose probe needs them (`Backend.probe`)."""
        self.runner, self.manifest = runner, runner.artifact.manifest
        backend = find_backend(self.manifest.backend)
        self.probe: Probe | None = backend.probe(runner, twin, folder)
        self.injects = self.probe is not None and self.probe.injects
        # Unless a probe makes the picture, or another device, only the weights of some files are of that precision.
        shown = (self.probe is not None and self.probe.gives_picture) or runner.variant
        weights = "-weights" if not shown and self.manifest.precision in backend.rounded else ""
        kind = "".join(f"-{word}" for word in (backend.imitates, runner.variant) if word)
        super().__init__(f"{self.manifest.backend}-{self.manifest.precision}{weights}{kind}")

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """The column's entry for *item*; with injected *categories*, which need a probe, the picture is the probe's."""
        prepared = self.runner.prepare(item.lr)
        if self.probe is None:
            result = self.runner.run_unchecked(prepared)
            return Sample(result.sr, result.impure_tokens, capacity=result.capacity or None)
        inside = self.probe.run(feeds(self.manifest, prepared), wide(categories))
        sr, impure = inside.sr, inside.impure_tokens
        if categories is None and not self.probe.gives_picture:
            sr, impure, _ = self.runner.run_unchecked(prepared)
        pure, labels = inside.pure, inside.labels
        if self.manifest.mask == "input":
            # The artifact computes neither; both are the host's.
            pure, labels = prepared.pure, host_labels(self.manifest, item)
        return Sample(
            sr=sr,
            impure=impure,
            categories=narrow(inside.categories),
            pure=None if pure is None else pure.reshape(-1).astype(np.bool_),
            labels=None if labels is None else labels.reshape(-1).astype(np.uint8),
            capacity=prepared.capacity or None,
        )

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer; only with a probe."""
        return present(self.probe, "the probe").layers(self._inputs(item), wide(categories))

    def chosen_from(self, item: ParityInput, categories: Categories) -> list[ChosenFrom]:
        """What every layer chose from, with injected *categories*, or its own where nothing can be injected."""
        return present(self.probe, "the probe").chosen_from(self._inputs(item), categories.astype(np.int64))

    def close(self) -> None:
        """Release the probe."""
        if self.probe is not None:
            self.probe.close()

    def _inputs(self, item: ParityInput) -> Arrays:
        return feeds(self.manifest, self.runner.prepare(item.lr))


def save_entries(path: Path, entries: Mapping[str, Sample | ParityInput]) -> None:
    """Write {name of an input: its entry} to an .npz file, atomically: every field that is not None by itself."""
    arrays = {
        f"{name}.{field}": np.asarray(value)
        for name, entry in entries.items()
        for field, value in vars(entry).items()
        if value is not None and field != "name"
    }
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _load_entries(path: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """The fields of what `save_entries` wrote, never unpickled. Raises InputError."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with np.load(path, allow_pickle=False) as data:
            for key in data.files:
                name, _, field = key.rpartition(".")
                found.setdefault(name, {})[field] = data[key]
    except Exception as error:  # NumPy, zipfile and zlib each raise their own kinds
        raise InputError(f"{path} is not a readable parity file: {first_line(error)}") from None
    return found


def load_column(path: Path) -> Column:
    """Read a column that `save_entries` wrote. Raises InputError."""
    samples: dict[str, Sample] = {}
    for name, found in _load_entries(path).items():
        shapes = {field.name: found[field.name].shape for field in fields(Sample) if field.name in found}
        numbers = {field: shapes[field] for field in ("impure", "capacity") if field in shapes}
        not_scalar = [field for field, shape in numbers.items() if shape or found[field].dtype.kind not in "iu"]
        tokens = {shape[-1:] for field, shape in shapes.items() if field not in ("sr", *numbers)}
        picture = found.get("sr")
        whole = picture is not None and picture.dtype == np.float32 and picture.ndim == 4
        if not whole or "impure" not in numbers or not_scalar or len(tokens) > 1:
            raise InputError(f"{path}: {name!r} does not hold what a column holds: {shapes}")
        values: dict[str, Any] = {field: int(found[field]) if field in numbers else found[field] for field in shapes}
        samples[name] = Sample(**values)
    return Column(path.stem, samples)


def load_inputs(path: Path, size: tuple[int, int]) -> list[ParityInput]:
    """Read inputs for LR images of *size*. Raises InputError for another size, type or a name that is not plain."""
    inputs = []
    for name, found in _load_entries(path).items():
        lr = found.get("lr")
        if not is_plain_name(name) or lr is None or lr.dtype != np.float32 or lr.shape != (1, 3, *size):
            what = "missing" if lr is None else f"{lr.dtype} {lr.shape}"
            raise InputError(f"{path}: input {name!r} is {what}, needed is float32 {(1, 3, *size)}")
        inputs.append(ParityInput(name, lr, found.get("hr")))
    if not inputs:
        raise InputError(f"{path} holds no inputs")
    return inputs
