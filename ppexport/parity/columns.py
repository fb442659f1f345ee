"""One column of a parity run: what one implementation computed for every input, saved so that any two compare later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Manifest
from ppexport.device.mask import pixel_labels
from ppexport.device.runner import Prepared, Result
from ppexport.errors import InputError, first_line
from ppexport.files import atomic_path, is_plain_name
from ppexport.parity.inputs import ParityInput


@dataclass(frozen=True)
class Sample:
    """What one implementation computed for one input."""

    sr: NDArray[np.float32]
    """(1, 3, h * scale, w * scale)."""
    impure: int
    """Number of impure tokens."""
    categories: NDArray[np.uint8] | None = None
    """(layers, n): the category each token chose; None where an implementation does not tell."""
    gaps: NDArray[np.float32] | None = None
    """(layers, n): lead of the best similarity over the second best."""
    pure: NDArray[np.bool_] | None = None
    """(n,): tokens that skip category attention."""
    labels: NDArray[np.uint8] | None = None
    """(n,): Pure-Pass label of every pixel of the padded image."""
    capacity: int | None = None
    """Slots that category attention ran with; None for the network, which needs none."""


def routed_sample(
    item: ParityInput,
    prepared: Prepared,
    manifest: Manifest,
    result: Result,
    categories: NDArray[Any],
    mask: tuple[NDArray[Any] | None, NDArray[Any] | None],
) -> Sample:
    """The sample of an artefact that tells its routing: *categories* (layers, n), and its *mask* as (pure, labels).

    An artefact that is given the mask computes neither; then both are the host's, of *prepared*.
    """
    pure, labels = mask
    if manifest.mask == "input":
        pure = prepared.pure
        labels = pixel_labels(np.ascontiguousarray(item.lr[0].transpose(1, 2, 0)), manifest.options["colors"])
    return Sample(
        sr=result.sr,
        impure=result.impure_tokens,
        categories=categories.astype(np.uint8),
        pure=None if pure is None else pure.reshape(-1).astype(np.bool_),
        labels=None if labels is None else labels.reshape(-1).astype(np.uint8),
        capacity=result.capacity,
    )


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
