"""Calibrations and recipes that come with the bundled weights; the hash of the weights chooses them, never a name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ppexport.errors import InputError, present
from ppexport.networks.architecture import Architecture
from ppexport.networks.card import Card
from ppexport.quantize.calibration import Calibration, load_calibration
from ppexport.quantize.recipe import Recipe, read_recipe

BUNDLED, DEFAULT, GIVEN, FOREIGN = "bundled", "default", "given", "given, found for other weights"
"""Where a recipe comes from, as the manifest says it."""


@dataclass(frozen=True)
class Quantisation:
    """A calibration and what is to be made of it."""

    precision: str
    architecture: Architecture
    calibration: Calibration
    recipe: Recipe
    recipe_from: str = GIVEN
    """Where the recipe comes from, as `recipe_for` says it."""


def _weights(card: Card) -> str:
    return present(card.weights, f"the weights of card {card.name}").sha256


def check_calibration(calibration: Calibration, card: Card) -> None:
    """Raise InputError unless *calibration* was measured on the network of *card*."""
    about = calibration.about
    options = card.options.model_dump() if card.options else {}
    if (about.weights_sha256, about.options, about.scale) != (_weights(card), options, card.scale):
        raise InputError(
            f"the calibration was measured on other weights or options ({about.name} x{about.scale}, "
            f"{about.weights_sha256[:12]}): run `ppexport calibrate` for this model"
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
