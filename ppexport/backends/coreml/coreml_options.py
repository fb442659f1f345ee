"""The options of `--backend coreml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ppexport.backends.options import NoOptions


class CoreMLOptions(NoOptions):
    """Options of `--backend coreml`."""

    target: Literal["iOS16", "iOS17", "iOS18"] = Field(
        default="iOS18", description="deployment target; each also stands for the macOS of its year"
    )
    interface: Literal["tensor", "image"] = Field(
        default="tensor", description="image takes and gives an app's pictures, of 8 bits"
    )
