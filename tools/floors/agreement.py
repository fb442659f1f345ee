"""Whether all formulations of a part compute the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from floors.kernel import Kernel
from floors.part import Arrays
from ppexport.errors import ExportError


def apart(one: Arrays, other: Arrays) -> tuple[float, float]:
    """Largest absolute difference, and the largest as a share of the largest value of the same output."""
    absolute = relative = 0.0
    for name, value in one.items():
        if value.shape != other[name].shape:
            return float("inf"), float("inf")
        difference = float(np.abs(value.astype(np.float64) - other[name].astype(np.float64)).max())
        # A comparison with NaN is false, and would pass.
        difference = float("inf") if np.isnan(difference) else difference
        absolute = max(absolute, difference)
        relative = max(relative, difference / max(float(np.abs(value).max()), 1e-30))
    return absolute, relative


def check(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Key -> largest absolute difference to the first of *kernels*, which are one part's and have run.

    Raises ExportError where one is further away than the part tolerates.
    """
    expected, differences = kernels[0].results(), {}
    for kernel in kernels:
        absolute, relative = apart(expected, kernel.results())
        if relative > kernel.part.tolerance:
            raise ExportError(
                f"{kernel.name} is not {kernels[0].formulation.name}: {absolute:.2g} apart, "
                f"{relative:.2g} of the largest value"
            )
        differences[kernel.key] = absolute
    return differences
