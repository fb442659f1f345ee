"""What packages for Core ML and assets for Core AI can be: known without torch and without Apple's tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from ppexport.backends.backend import Request
from ppexport.backends.options import NoOptions
from ppexport.errors import InputError, UnavailableError, require

COREML_PRECISIONS = ("fp32", "fp16", "w8", "w8a8")
"""w8: fp16, whose weights are stored with 8 bits, one scale for every output channel; w8a8: and whose layers read int8,
as far as a recipe says."""
COREAI_PRECISIONS = ("fp32", "fp16")
TARGETS = ("iOS16", "iOS17", "iOS18")
"""Deployment targets; each also stands for the macOS, watchOS and tvOS of its year."""
SET_TARGET = "iOS18"
"""Packages of several functions exist from here on."""
ACTIVATIONS_TARGETS = ("iOS17", "iOS18")
"""MIL quantises activations from iOS 17 on."""
INTERFACES = ("tensor", "image")
"""tensor: `lr` and `sr` are float32 (1, 3, h, w) in [0, 1]; image: they are RGB pictures, in an app a CVPixelBuffer."""

FIRST_NUMPY_TOO_NEW = (2, 4)
"""From here on coremltools 9.0 fails inside: "only 0-dimensional arrays can be converted to Python scalars"."""


def check_installed() -> None:
    """Raise UnavailableError unless coremltools is installed beside a NumPy that its converter works with."""
    require("coremltools", "coreml")
    if tuple(map(int, re.findall(r"\d+", np.__version__)[:2])) >= FIRST_NUMPY_TOO_NEW:
        raise UnavailableError(
            f"coremltools cannot convert with NumPy {np.__version__}, which refuses to make numbers of arrays: "
            f"pip install 'numpy<{'.'.join(map(str, FIRST_NUMPY_TOO_NEW))}'"
        )


def check_coreml(precision: str, target: str, interface: str, capacities: Sequence[int]) -> None:
    """Raise InputError for a Core ML package that cannot be made."""
    for what, value, known in (
        ("a Core ML precision", precision, COREML_PRECISIONS),
        ("a deployment target", target, TARGETS),
        ("an interface", interface, INTERFACES),
    ):
        if value not in known:
            raise InputError(f"{what} is one of {', '.join(known)}, not {value!r}")
    if precision == "w8a8" and target not in ACTIVATIONS_TARGETS:
        raise InputError(f"w8a8 quantises activations, which needs {' or '.join(ACTIVATIONS_TARGETS)}")
    if len(capacities) > 1 and target != SET_TARGET:
        raise InputError(f"a capacity set is a package of several functions, which needs {SET_TARGET}")


def check_coreai(precision: str) -> None:
    """Raise InputError for a Core AI asset that cannot be made."""
    if precision not in COREAI_PRECISIONS:
        raise InputError(f"a Core AI precision is one of {', '.join(COREAI_PRECISIONS)}, not {precision!r}")


class CoreMLOptions(NoOptions):
    """Options of `--backend coreml`."""

    target: Literal["iOS16", "iOS17", "iOS18"] = Field(
        default="iOS18", description="deployment target; each also stands for the macOS of its year"
    )
    interface: Literal["tensor", "image"] = Field(
        default="tensor", description="image takes and gives an app's pictures, of 8 bits"
    )


def check_request(request: Request) -> None:
    """Raise InputError for a package that cannot be made."""
    options, quantisation = request.options, request.quantisation
    check_coreml(request.precision, options.target, options.interface, request.capacities)
    if quantisation is not None and quantisation.recipe.weight_bits != 8:
        bits = quantisation.recipe.weight_bits
        raise InputError(f"w8a8 of --backend coreml has weights of 8 bits, the recipe says {bits}")
