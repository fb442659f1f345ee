"""Calibrations and recipes that come with the bundled weights; the hash of the weights chooses them, never a name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ppexport.cards import Card
from ppexport.errors import InputError
from ppexport.quantize.calibration import Calibration, load_calibration
from ppexport.quantize.recipe import Recipe, read_recipe

BUNDLED, DEFAULT, GIVEN, FOREIGN = "bundled", "default", "given", "given, found for other weights"
"""Where a recipe comes from, as the manifest says it."""


def _data(folder: str, pattern: str) -> list[Path]:
    return sorted((Path(str(files("ppexport.calibration"))) / folder).glob(pattern))


def calibration_for(card: Card, path: Path | None) -> Calibration:
    """The calibration at *path*, or the bundled one of the weights of *card*. Raises InputError where there is none."""
    if path is not None:
        return load_calibration(path)
    assert card.weights is not None
    for bundled in map(load_calibration, _data("ranges", "*.npz")):
        if bundled.about.weights_sha256 == card.weights.sha256:
            return bundled
    raise InputError(
        f"no calibration is bundled for these weights ({card.weights.file}): run `ppexport calibrate` with the same "
        "model or checkpoint, and pass the file that it writes with --calibration"
    )


def recipe_for(card: Card, path: Path | None) -> tuple[Recipe, str]:
    """The recipe at *path*, or the bundled one of the weights of *card*, or the default; and which of these it is."""
    assert card.weights is not None
    if path is not None:
        recipe = read_recipe(path)
        return recipe, GIVEN if recipe.weights_sha256 in (None, card.weights.sha256) else FOREIGN
    for bundled in map(read_recipe, _data("recipes", "*.yaml")):
        if bundled.weights_sha256 == card.weights.sha256:
            return bundled, BUNDLED
    return Recipe(), DEFAULT
