"""What packages for Core ML can be: known without torch and without Apple's tools."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from pydantic import Field

from ppexport.backends.backend import Request
from ppexport.backends.options import NoOptions
from ppexport.errors import InputError, UnavailableError, require

FIRST_NUMPY_TOO_NEW = (2, 4)
"""From here on coremltools 9.0 fails inside: "only 0-dimensional arrays can be converted to Python scalars"."""


class CoreMLOptions(NoOptions):
    """Options of `--backend coreml`."""

    target: Literal["iOS16", "iOS17", "iOS18"] = Field(
        default="iOS18", description="deployment target; each also stands for the macOS of its year"
    )
    interface: Literal["tensor", "image"] = Field(
        default="tensor", description="image takes and gives an app's pictures, of 8 bits"
    )


def check_installed() -> None:
    """Raise UnavailableError unless coremltools is installed beside a NumPy that its converter works with."""
    require("coremltools", "coreml")
    if tuple(map(int, re.findall(r"\d+", np.__version__)[:2])) >= FIRST_NUMPY_TOO_NEW:
        raise UnavailableError(
            f"coremltools cannot convert with NumPy {np.__version__}, which refuses to make numbers of arrays: "
            f"pip install 'numpy<{'.'.join(map(str, FIRST_NUMPY_TOO_NEW))}'"
        )


def check_request(request: Request) -> None:
    """Raise InputError for a package that the deployment target or the recipe does not allow."""
    target, quantisation = request.options.target, request.quantisation
    # MIL quantises activations from iOS 17 on, and packages of several functions exist from iOS 18 on.
    if request.precision == "w8a8" and target == "iOS16":
        raise InputError("w8a8 quantises activations, which needs iOS17 or iOS18")
    if len(request.capacities) > 1 and target != "iOS18":
        raise InputError("a capacity set is a package of several functions, which needs iOS18")
    if quantisation is not None and quantisation.recipe.weight_bits != 8:
        bits = quantisation.recipe.weight_bits
        raise InputError(f"w8a8 of --backend coreml has weights of 8 bits, the recipe says {bits}")
