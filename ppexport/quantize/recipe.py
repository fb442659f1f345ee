"""The layers that int8 is for, in groups; everything else stays as it is.

Attention scores, softmax, norms, mask, routing and the sum through all layers are in no group, nor are the first and
the last convolution, 0.4 % of the work at the picture's own resolution. The similarity to the
dictionary, which chooses the categories, is a group of its own that is measured, to show what its flips cost, and never
placed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import onnx
import yaml
from onnx import NodeProto
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ppexport.errors import InputError
from ppexport.files import write_text
from ppexport.networks.card import first_error
from ppexport.quantize.ranges import PERCENTILE, check_calibrator

_LAYER = r"^/layers\.\d+/residual_group/layers\.\d+"
PATTERNS = {
    "qkv": re.compile(_LAYER + r"/wqkv/"),
    "window_proj": re.compile(_LAYER + r"/attn_win/proj/"),
    "category_proj": re.compile(_LAYER + r"/attn_aca/proj/"),
    "ffn_in": re.compile(_LAYER + r"/convffn/fc1/"),
    "ffn_depthwise": re.compile(_LAYER + r"/convffn/dwconv/"),
    "ffn_out": re.compile(_LAYER + r"/convffn/fc2/"),
    "block_conv": re.compile(r"^/layers\.\d+/conv/Conv"),
    "body_conv": re.compile(r"^/conv_after_body/Conv"),
    "similarity": re.compile(_LAYER + r"/attn_atd/wq/"),
}
"""Node names of every group."""
ROUTING = "similarity"
GROUPS = tuple(name for name in PATTERNS if name != ROUTING)
"""The groups that may be placed."""
DEFAULT_GROUPS = tuple(name for name in GROUPS if name != "body_conv")
"""Without a recipe. The convolution behind all blocks reads the largest tokens: of x2 it alone costs 0.126 dB (standard
error 0.022), no other group more than 0.001."""
OPERATORS = ("Gemm", "MatMul", "Conv")


def group_of(name: str) -> str | None:
    """The group of the node *name*, None where it is in none."""
    return next((group for group, pattern in PATTERNS.items() if pattern.match(name)), None)


def quantisable(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions and linear layers with stored weights that are in a group, those of the routing included."""
    stored = {value.name for value in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in OPERATORS and node.input[1] in stored and group_of(node.name) is not None
    ]


def check_groups(names: Iterable[str]) -> tuple[str, ...]:
    """*names* in the order of GROUPS. Raises InputError for one that is not known or is never quantised."""
    chosen = set(names)
    if ROUTING in chosen:
        raise InputError(f"{ROUTING} chooses the categories and stays in float: leave it out")
    unknown = sorted(chosen - set(GROUPS))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no group of layers; there are {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in chosen)


# What becomes int8 and how its ranges are found: the choice of a user, or of `ppexport quantize-search`.


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
    """7 for OpenVINO on CPUs without VNNI, whose products of 8 bits saturate (backends/openvino/run_openvino.py)."""
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
