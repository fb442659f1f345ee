"""What becomes int8 and how its ranges are found: the choice of a user, or of `ppexport quantize-search`.

A range is the magnitude that int8's 127 stands for, found in a histogram by ONNX Runtime's calibrators:

    max         the largest magnitude seen
    entropy     the cut with the least Kullback-Leibler divergence between the numbers and their int8 version
    percentile  a share of the numbers, 99.99 % unless the recipe says otherwise, is within

All are symmetric, since TensorRT takes no zero point.

Bundled weights have a calibration and a recipe; the hash of the weights chooses them, never a name.
"""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ppexport.errors import InputError, present
from ppexport.files import read_limited_text, write_text
from ppexport.networks.architecture import Architecture, architectures, place_of
from ppexport.networks.card import Card, first_error
from ppexport.quantize.calibration import Calibration, load_calibration
from ppexport.quantize.histogram import HALF

KNOWN = architectures().values()
ROUTING = frozenset(known.int8_routing for known in KNOWN)
"""The groups that choose categories, which are measured and never placed."""
GROUPS = tuple(dict.fromkeys(name for known in KNOWN for name in known.int8_groups if name not in ROUTING))
"""The groups that may be placed."""
DEFAULT_GROUPS = tuple(name for name in GROUPS if all(name not in known.int8_costly for known in KNOWN))
"""Without a recipe."""
CALIBRATORS = ("max", "entropy", "percentile")
PERCENTILE = 99.99
JOINED = 4
"""Bins that join before the search for the least divergence, whose time grows with their square."""
LEVELS = 127
MAX_BYTES = 1 << 20
"""A recipe lists the pictures that chose it, up to 4096."""
BUNDLED, DEFAULT, GIVEN, FOREIGN = "bundled", "default", "given", "given, found for other weights"
"""Where a recipe comes from, as the manifest says it."""
HEADER = "# Written by `ppexport quantize-search`; read by `ppexport export --recipe`.\n"


def group_of(module: str | None) -> str | None:
    """The group of the layer *module*, a dotted path; None where it is in none."""
    roles = ((name, role) for known in KNOWN for name, role in known.int8_groups.items())
    return next((name for name, role in roles if place_of(role, module) is not None), None)


class Recipe(BaseModel):
    """Groups of layers in int8, and the calibrator of their activations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: tuple[str, ...] = DEFAULT_GROUPS
    calibrator: str = "percentile"
    percentile: float = Field(default=PERCENTILE, gt=50, le=100)
    weight_bits: Literal[7, 8] = 8
    """7 for OpenVINO on CPUs without VNNI, whose products of 8 bits saturate (backends/openvino/run_openvino.py)."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the weights that it was found for; a bundled recipe is taken for these alone."""
    measured: dict[str, Any] = Field(default_factory=dict)
    """What the search measured for this choice; only people read it."""

    @field_validator("groups")
    @classmethod
    def _placeable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """*names* in the order of GROUPS."""
        for name in names:
            if name in ROUTING:
                raise ValueError(f"{name} chooses the categories and stays in float: leave it out")
            if name not in GROUPS:
                raise ValueError(f"{name!r} is not a group of layers; the groups are {', '.join(GROUPS)}")
        return tuple(group for group in GROUPS if group in names)

    @field_validator("calibrator")
    @classmethod
    def _known(cls, calibrator: str) -> str:
        if calibrator not in CALIBRATORS:
            raise ValueError(f"a calibrator is one of {', '.join(CALIBRATORS)}, not {calibrator!r}")
        return calibrator


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises InputError."""
    try:
        return Recipe.model_validate(yaml.safe_load(read_limited_text(path, MAX_BYTES, "a recipe")))
    except ValidationError as error:
        raise InputError(f"{path} is not a recipe: {first_error(error)}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not a readable recipe: {' '.join(str(error).split())}") from None


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write *recipe* to *path*, atomically."""
    write_text(path, HEADER + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def find_range(calibration: Calibration, name: str, calibrator: str, percentile: float = PERCENTILE) -> float:
    """The magnitude that 127 stands for in tensor *name*; above 0, and never above the largest seen.

    Args:
        calibration: what was measured.
        name: the tensor.
        calibrator: one of CALIBRATORS.
        percentile: for the calibrator of that name, above 50 and at most 100.

    Raises:
        InputError: the tensor was not recorded, has no histogram, or is always zero.
    """
    most = calibration.largest(name)
    if not most:
        raise InputError(f"tensor {name!r} was zero on all pictures: calibrate on others")
    if calibrator == "max":
        return most
    if name not in calibration.kept:
        raise InputError(f"the calibration of {calibration.about.name} has no histogram of {name!r}: calibrate again")
    row, kept = calibration.kept.index(name), calibration.histograms
    width = kept.width(row)
    if calibrator == "entropy":
        joined = kept.counts[row].reshape(-1, JOINED).sum(axis=1)
        cut = _computed("entropy", joined, -HALF // JOINED, width * JOINED, PERCENTILE)
    else:
        cut = max(_computed("percentile", kept.magnitudes(row), 0, width, percentile), width)
    return min(cut, most)


def _computed(method: str, counts: NDArray[np.int64], first: int, width: float, share: float) -> float:
    """The largest magnitude within the range that ONNX Runtime's calibrator finds in a histogram.

    Its bins have one *width*, and the lowest begins *first* widths from zero.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, counts.size, LEVELS + 1, share, "same")
    edges = ((np.arange(counts.size + 1) + first) * width).astype(np.float32)
    # Lowest number, highest number and, for a signed histogram, the largest magnitude.
    collector.histogram_dict = {"t": (counts, edges, -edges[-1], edges[-1], edges[-1])}
    # It prints to standard output, where JSON may go.
    with contextlib.redirect_stdout(io.StringIO()):
        low, high = collector.compute_collection_result()["t"][:2]
    return float(max(-low, high))


@dataclass(frozen=True)
class Quantisation:
    """A calibration and what is to be made of it."""

    precision: str
    architecture: Architecture
    calibration: Calibration
    recipe: Recipe
    recipe_from: str = GIVEN
    """Where the recipe comes from, as `recipe_for` says it."""
    results: bool = False
    """Whether what an int8 layer gives is int8 as well."""


def _weights(card: Card) -> str:
    return present(card.weights, f"the weights of card {card.name}").sha256


def check_calibration(calibration: Calibration, card: Card) -> None:
    """Raise InputError unless *calibration* was measured on the network of *card*."""
    about = calibration.about
    options = card.options.model_dump() if card.options else {}
    # An option that the network has had only since was then what its default is.
    fields = type(card.options).model_fields if card.options else {}
    measured = {name: field.default for name, field in fields.items() if not field.is_required()} | about.options
    # ATD-light, which has no options, has the weights of PP-ATD-light.
    another = bool(about.options) != bool(options)
    if another or (about.weights_sha256, measured, about.scale) != (_weights(card), options, card.scale):
        raise InputError(
            f"the calibration was measured on another network, or with other weights or options ({about.name} "
            f"x{about.scale}, {about.weights_sha256[:12]}): choose that one with --arch and --option, or run `ppexport "
            "calibrate` for this one"
        )


def _data(folder: str, pattern: str) -> list[Path]:
    return sorted((Path(str(files("ppexport.calibration"))) / folder).glob(pattern))


def calibration_for(card: Card, path: Path | None) -> Calibration:
    """The calibration at *path*, or the bundled one of the weights of *card*. Raises InputError where there is none."""
    if path is not None:
        return load_calibration(path)
    weights = _weights(card)
    for file in _data("ranges", "*.npz"):
        bundled = load_calibration(file)
        if bundled.about.weights_sha256 == weights:
            logging.getLogger("ppexport").debug("the calibration of %s is %s", card.name, file)
            return bundled
    raise InputError(
        "no calibration is bundled for these weights: run `ppexport calibrate` with the same "
        "model or checkpoint, and pass the file that it writes with --calibration"
    )


def recipe_for(card: Card, path: Path | None) -> tuple[Recipe, str]:
    """The recipe at *path*, or the bundled one of the weights of *card*, or the default; and which of these it is."""
    weights = _weights(card)
    if path is not None:
        recipe = read_recipe(path)
        return recipe, GIVEN if recipe.weights_sha256 in (None, weights) else FOREIGN
    for bundled in map(read_recipe, _data("recipes", "*.yaml")):
        if bundled.weights_sha256 == weights:
            return bundled, BUNDLED
    return Recipe(), DEFAULT
