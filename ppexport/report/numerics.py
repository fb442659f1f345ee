"""`numerics.yaml` beside a model's card: measured quality and parity, written by the tool and reviewed like code.

evaluation:                 # PSNR-Y and SSIM-Y on a data set, by `ppexport evaluate TARGET --hr DIR --record SET`
  set5:
    pytorch-fp32: {...}     # the network
    onnx-int8-portable-full-64x64: {...}
parity:                     # against the twin, by `ppexport report DIR --record`
  onnx-fp32-ort-set-64x64: {...}
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from ppexport.device.artifact import Manifest
from ppexport.errors import InputError, present
from ppexport.files import write_text
from ppexport.networks.card import Card, find_card, models_folder, read_card
from ppexport.parity.evaluate import Evaluation, Score
from ppexport.report.records import check_checkout, read_record

NUMERICS = "numerics.yaml"
HEADER = "# Written by `ppexport evaluate ... --record SET` and `ppexport report ... --record`; PSNR in dB.\n"
EVALUATION, PARITY = "evaluation", "parity"
NETWORK = "pytorch-fp32"
"""What the entries of the network itself are called."""


def key_of(backend: str, precision: str, flavour: str, capacities: Sequence[int], size: Sequence[int]) -> str:
    """What an artefact's entries are called: backend, precision, flavour, full capacity or a set, and LR size."""
    slots = "set" if len(capacities) > 1 else "full"
    return f"{backend}-{precision}-{flavour}-{slots}-{size[0]}x{size[1]}"


def half_in_single(m: Manifest) -> bool:
    """Whether the artefact's half precision is computed in fp32, as ONNX Runtime's CPU kernels do."""
    return m.backend == "onnx" and m.precision in ("fp16", "mixed")


def artifact_key(m: Manifest) -> str:
    """`key_of` the artefact of *m* as its runner computes it: "fp16-weights" where only the weights are rounded."""
    precision = f"{m.precision}-weights" if half_in_single(m) else m.precision
    return key_of(m.backend, precision, m.flavour, m.capacities, m.size)


def read_numerics(folder: Path) -> dict[str, Any]:
    """{"evaluation": {set: {key: figures}}, "parity": {key: figures}} of *folder*, empty where there is nothing yet.

    Raises InputError for a damaged file.
    """
    path = folder / NUMERICS
    data = read_record(path, "figures")
    if not set(data) <= {EVALUATION, PARITY} or not all(isinstance(part, dict) for part in data.values()):
        raise InputError(f"{path} does not hold {EVALUATION} and {PARITY}: remove it to record anew")
    return {EVALUATION: data.get(EVALUATION, {}), PARITY: data.get(PARITY, {})}


def write_numerics(folder: Path, data: dict[str, Any]) -> Path:
    """Write what `read_numerics` reads; parts without an entry are left out."""
    path = folder / NUMERICS
    kept = {name: part for name, part in data.items() if part}
    write_text(path, HEADER + yaml.safe_dump(kept, sort_keys=True, allow_unicode=True))
    return path


def model_folder(name: str) -> Path:
    """The folder of the bundled model *name*. Raises InputError outside a checkout, or for any other model."""
    root = models_folder()
    check_checkout(root, "figures")
    card, folder = find_card(name)
    if folder.parent != root or card.name != name:
        raise InputError(f"{name!r} is no bundled model: leave --record out")
    return folder


def card_of_artifact(m: Manifest) -> tuple[Card, Path]:
    """The bundled model that the artefact of *m* is of, and its folder. Raises InputError where its weights differ."""
    folder = model_folder(m.name)
    card = read_card(folder)
    if card.weights is None or card.weights.sha256 != m.weights["sha256"]:
        raise InputError(f"the artefact was not made from the weights of {m.name}: leave --record out")
    return card, folder


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


def record(folder: Path, name: str, card: Card, result: Evaluation, key: str = NETWORK) -> Path:
    """Write *result* under the data set *name* and *key* into `numerics.yaml` in *folder*, beside what is there."""
    check_record(folder, name)
    weights = present(card.weights, f"the weights of card {card.name}")
    data = read_numerics(folder)
    entry: dict[str, Any] = {
        "weights_sha256": weights.sha256,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "pictures": len(result.scores),
        **_figures(result.mean),
    }
    if name in card.published:
        entry["published_psnr_y"] = card.published[name]
    data[EVALUATION].setdefault(name, {})[key] = entry
    return write_numerics(folder, data)
