"""Calibrations and recipes that come with the bundled models."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ppexport.cards import Card
from ppexport.errors import InputError
from ppexport.quantize.calibration import Calibration, load_calibration
from ppexport.quantize.recipe import Recipe, read_recipe


def _data(folder: str, name: str) -> Path:
    return Path(str(files("ppexport.calibration"))) / folder / name


def calibration_for(card: Card, path: Path | None) -> Calibration:
    """The calibration at *path*, or the one bundled for the model of *card*. Raises InputError where there is none."""
    if path is not None:
        return load_calibration(path)
    bundled = _data("ranges", f"{card.name}.npz")
    if not bundled.is_file():
        raise InputError(
            f"{card.name} comes without a calibration: run `ppexport calibrate` and pass its file with --calibration"
        )
    return load_calibration(bundled)


def recipe_for(card: Card, path: Path | None) -> Recipe:
    """The recipe at *path*, or the one bundled for the model of *card*, or the default."""
    if path is not None:
        return read_recipe(path)
    bundled = _data("recipes", f"{card.name}.yaml")
    return read_recipe(bundled) if bundled.is_file() else Recipe()
