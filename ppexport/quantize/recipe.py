"""What becomes int8 and how its ranges are found: the choice of a user, or of `ppexport quantize-search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ppexport.cards import first_error
from ppexport.errors import InputError
from ppexport.files import write_text
from ppexport.quantize.groups import DEFAULT_GROUPS, check_groups
from ppexport.quantize.ranges import PERCENTILE, check_calibrator

MAX_BYTES = 1 << 20
"""A recipe lists the pictures that chose it, up to 4096."""
HEADER = "# Written by `ppexport quantize-search`; read by `ppexport export --recipe`.\n"


class Recipe(BaseModel):
    """Groups of layers in int8, and the calibrator of their activations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: tuple[str, ...] = DEFAULT_GROUPS
    calibrator: str = "percentile"
    percentile: float = PERCENTILE
    weight_bits: Literal[7, 8] = 8
    """7 for OpenVINO on CPUs without VNNI, whose products of 8 bits saturate (backends/openvino/saturation.py)."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the weights that it was found for; a bundled recipe is taken for these alone."""
    measured: dict[str, Any] = Field(default_factory=dict)
    """What the search measured for this choice; read by nobody but people."""

    @field_validator("groups")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return check_groups(value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("calibrator")
    @classmethod
    def _calibrator(cls, value: str) -> str:
        try:
            check_calibrator(value, PERCENTILE)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large to be a recipe")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Recipe.model_validate(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not a readable recipe: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise InputError(f"{path} is not a recipe: {first_error(error)}") from None


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write *recipe* to *path*, atomically."""
    write_text(path, HEADER + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
