"""The first operation whose result differs: between two packages of one twin, or between a package and itself with
more bits.

Operations are matched by name, in the order of the program. Casts have no counterpart in an fp32 package and are
skipped; so is what one of the two programs lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.evaluated import PackageProbe
from ppexport.backends.coreml.evaluator.evaluate import Evaluator
from ppexport.backends.coreml.specification import decode
from ppexport.errors import InputError
from ppexport.files import finite
from ppexport.networks.architecture import Routing

CHUNK = 400
"""Results that are kept at a time: all at once would not fit into memory."""


@dataclass(frozen=True)
class Divergence:
    """One result that differs."""

    name: str
    operation: str
    module: str | None
    """Dotted path of the PyTorch module, None where the name contains none."""
    decibel: float
    """Power of the reference's result over the power of the difference; -inf where other values are not finite."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinite figures become null."""
        return finite(vars(self))  # type: ignore[no-any-return]


def agreement(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """How well *other* agrees, in dB; inf where it is equal."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    kept = np.isfinite(a)
    if not np.array_equal(kept, np.isfinite(b)) or not np.array_equal(a[~kept], b[~kept], equal_nan=True):
        return -math.inf
    error, power = float(np.square(a[kept] - b[kept]).sum()), float(np.square(a[kept]).sum())
    return math.inf if not error else -math.inf if not power else 10 * math.log10(power / error)


def divergences(
    reference: Evaluator,
    other: Evaluator,
    inputs: Mapping[str, NDArray[Any]],
    replace: Mapping[str, NDArray[Any]] | None = None,
) -> Iterator[Divergence]:
    """Every result that both compute, in order, and how well they agree. *replace* stands in for results of both."""
    shapes = {port.name: port.type.shape for op in reference.steps for port in op.outputs if port.type is not None}
    common = [
        (port.name, op.type)
        for op in other.steps
        if op.type != "cast"
        for port in op.outputs
        if port.type is not None and shapes.get(port.name) == port.type.shape
    ]
    for first in range(0, len(common), CHUNK):
        names = [name for name, _ in common[first : first + CHUNK]]
        a, b = (evaluator.run(inputs, keep=names, replace=replace) for evaluator in (reference, other))
        for name, operation in common[first : first + CHUNK]:
            yield Divergence(name, operation, decode(name), agreement(a[name], b[name]))


def compare_packages(
    path: Path, reference: Path | None, routing: Routing, inputs: Mapping[str, NDArray[Any]]
) -> Iterator[Divergence]:
    """Every result of two packages, computed with the reference's categories.

    Args:
        path: a package.
        reference: the other one; None for the same one without rounding to fp16.
        routing: roles of their network's modules.
        inputs: what `Session.run` takes.

    Raises:
        ArtifactError: a package is damaged, or the names of its operations do not contain the layers.
        InputError: an input of a package is a picture.
    """
    debug = PackageProbe(path, routing)
    other = PackageProbe(reference or path, routing, rounding=reference is not None)
    if debug.session.package.images or other.session.package.images:
        raise InputError("packages whose input is a picture are not searched: export one with tensors")
    replace = other.stand_in(other.run(dict(inputs)).categories)
    fed = dict(inputs)
    slots = fed.pop("slots", None)
    capacity = None if slots is None else slots.shape[1]
    yield from divergences(other.session.evaluator(capacity), debug.session.evaluator(capacity), fed, replace)
