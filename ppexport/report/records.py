"""Measured figures in YAML beside a model's card: written by the tool, reviewed like code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ppexport.errors import InputError


def read_record(path: Path, keys: str) -> dict[str, Any]:
    """What *path* holds by *keys*, such as "machines"; empty where it is not there. Raises InputError if damaged."""
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a mapping of {keys}")
    return data


def check_checkout(models: Path, what: str) -> None:
    """Raise InputError where *models* are those of an installed copy, to which *what*, such as "figures", never go."""
    if not (models.parent / "setup.cfg").is_file():
        raise InputError(f"{what} of bundled models are recorded in a checkout of ppexport only: leave --record out")
