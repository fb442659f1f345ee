"""The options of `--backend tensorrt`, read without torch."""

from __future__ import annotations

from pydantic import Field

from ppexport.backends.options import OnnxGraphOptions


class TensorRTOptions(OnnxGraphOptions):
    """Options of `--backend tensorrt`."""

    pad_heads: bool = Field(default=True, description="attention heads of 16 channels in place of 12")
