"""The options of `--backend onnx`, read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ppexport.backends.backend import Request
from ppexport.backends.onnx import ort_format
from ppexport.backends.options import OnnxGraphOptions
from ppexport.errors import InputError


class OnnxOptions(OnnxGraphOptions):
    """Options of `--backend onnx`."""

    flavour: Literal["portable", "ort"] = Field(
        default="portable",
        description="portable is for every runtime; ort is faster on a CPU, for ONNX Runtime 1.23 or newer",
    )
    format: Literal["onnx", "ort"] = Field(
        default="onnx", description="ort also writes model.ort, which ONNX Runtime Mobile reads"
    )


def check_request(request: Request) -> None:
    """Raise InputError for flavours and formats that this precision is not written in."""
    options, precision = request.options, request.precision
    if options.flavour not in request.architecture.flavours:
        raise InputError(f"{request.architecture.name} has no flavour {options.flavour}: leave the flavour out")
    if precision != "fp32" and options.flavour == "ort":
        raise InputError(f"{precision} is written into flavour portable: leave --flavour out")
    if options.format == "ort" and precision not in ort_format.PRECISIONS:
        raise InputError(
            f"--format ort is for --precision {' or '.join(ort_format.PRECISIONS)}: in its own format ONNX Runtime "
            "writes fp16 back to fp32"
        )
