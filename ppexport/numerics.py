"""`numerics.yaml` beside a model's card: measured quality, written by the tool and reviewed like code."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from ppexport.cards import Card, models_folder
from ppexport.errors import InputError
from ppexport.evaluate import Evaluation, Score
from ppexport.files import write_text
from ppexport.records import check_checkout, read_record

NUMERICS = "numerics.yaml"
HEADER = "# Written by `ppexport evaluate MODEL --hr DIR --record SET`; PSNR-Y in dB.\n"


def read_numerics(folder: Path) -> dict[str, Any]:
    """The figures recorded in *folder*, empty where there are none yet. Raises InputError for a damaged file."""
    return read_record(folder / NUMERICS, "data sets")


def _figures(score: Score) -> dict[str, float]:
    return {
        "psnr_y": round(score.psnr_y, 3),
        "ssim_y": round(score.ssim_y, 4),
        "bicubic_psnr_y": round(score.bicubic_psnr_y, 3),
        "bicubic_ssim_y": round(score.bicubic_ssim_y, 4),
    }


def check_record(folder: Path, name: str) -> None:
    """Raise InputError, before any work is done, where `record` would refuse."""
    if not name.isidentifier():
        raise InputError(f"a data set's name is letters, digits and underscores, such as set5, not {name!r}")
    if folder.parent == models_folder():
        check_checkout(folder.parent, "figures")
    read_numerics(folder)


def record(folder: Path, name: str, card: Card, result: Evaluation) -> Path:
    """Write *result* under the data set *name* into `numerics.yaml` in *folder*, beside those already there."""
    check_record(folder, name)
    assert card.weights is not None
    data = read_numerics(folder)
    data[name] = {
        "backend": "pytorch",
        "precision": "fp32",
        "weights_sha256": card.weights.sha256,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "pictures": len(result.scores),
        **_figures(result.mean),
    }
    if name in card.published:
        data[name]["published_psnr_y"] = card.published[name]
    path = folder / NUMERICS
    write_text(path, HEADER + yaml.safe_dump(data, sort_keys=True))
    return path
