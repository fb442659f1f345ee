"""Measured figures beside a model's card, in YAML: written by the tool, reviewed like code.

numerics.yaml:
  evaluation:               # PSNR-Y and SSIM-Y on a data set, by `ppexport evaluate TARGET --hr DIR --record SET`
    set5:
      pytorch-fp32: {...}   # the network
      onnx-int8-portable-full-64x64: {...}
  parity:                   # against the twin, by `ppexport report DIR --record`
    onnx-fp32-ort-set-64x64: {...}
latency.yaml:               # by `ppexport report DIR --record`
  MACHINE:
    onnx-fp32-ort-set-64x64 onnxruntime:CPU: {...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from ppexport.backends.backend import find_backend
from ppexport.device.artifact import Manifest
from ppexport.errors import InputError, present
from ppexport.files import read_limited_text, write_text
from ppexport.networks.card import Card, find_card, models_folder, read_card
from ppexport.parity.evaluation import Evaluation
from ppexport.profile.result import Profile
from ppexport.report.material import CHANGES, Parity

NUMERICS, LATENCY = "numerics.yaml", "latency.yaml"
HEADERS = {
    NUMERICS: "# Written by `ppexport evaluate ... --record SET` and `ppexport report ... --record`; PSNR in dB.\n",
    LATENCY: "# Written by `ppexport report DIR --record`; ms of one query, see ppexport/profile/result.py.\n",
}
MAX_BYTES = 1 << 24
EVALUATION, PARITY = "evaluation", "parity"
NETWORK = "pytorch-fp32"
"""What the entries of the network itself are called."""
LATENCIES = ("p50_ms", "p90_ms", "p99_ms", "p90_ms_per_megapixel", "host_p50_ms")


def _read(path: Path) -> dict[str, Any]:
    """What *path* holds, empty where it does not exist."""
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(read_limited_text(path, MAX_BYTES, "a mapping of figures"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not all(isinstance(part, dict) for part in data.values()):
        raise InputError(f"{path} is not a mapping of figures")
    if path.name == NUMERICS and not set(data) <= {EVALUATION, PARITY}:
        raise InputError(f"{path} does not hold {EVALUATION} and {PARITY}: remove it to record anew")
    return data


def _write(path: Path, data: dict[str, Any]) -> Path:
    write_text(path, HEADERS[path.name] + yaml.safe_dump(data, sort_keys=True, allow_unicode=True))
    return path


def _record(file: str, entries: Mapping[tuple[str, str, str], dict[str, Any]]) -> list[Path]:
    """Write {(model, part of the file, key): entry} into *file* beside the cards, beside what it holds.

    Everything that can be refused is refused before the first file is written.
    """
    found: dict[Path, dict[str, Any]] = {}
    for (model, part, key), entry in entries.items():
        path = model_folder(model) / file
        found.setdefault(path, _read(path)).setdefault(part, {})[key] = entry
    return [_write(path, data) for path, data in found.items()]


def read_numerics(folder: Path) -> dict[str, Any]:
    """{"evaluation": {set: {key: figures}}, "parity": {key: figures}} of *folder*, empty where nothing is recorded.

    Raises InputError for a damaged file.
    """
    return {EVALUATION: {}, PARITY: {}, **_read(folder / NUMERICS)}


def _key_of(facts: Mapping[str, Any], precision: str | None = None) -> str:
    """What an artifact's entries are called: backend, precision, flavour, full capacity or a set, and LR size."""
    slots, (h, w) = "set" if len(facts["capacities"]) > 1 else "full", facts["size"]
    return f"{facts['backend']}-{precision or facts['precision']}-{facts['flavour']}-{slots}-{h}x{w}"


def half_in_single(m: Manifest) -> bool:
    """Whether the artifact's half precision is computed in fp32, as ONNX Runtime's CPU kernels do."""
    return m.precision in find_backend(m.backend).rounded


def artifact_key(m: Manifest) -> str:
    """What the entries of the artifact of *m* are called: "fp16-weights" where only the weights are rounded."""
    return _key_of(vars(m), f"{m.precision}-weights" if half_in_single(m) else None)


def _check_checkout(models: Path) -> None:
    """Raise InputError where *models* are those of an installed copy, which never receives figures."""
    if not (models.parent / "setup.cfg").is_file():
        raise InputError("figures of bundled models are recorded in a checkout of ppexport only: leave --record out")


def model_folder(name: str) -> Path:
    """The folder of the bundled model *name*. Raises InputError outside a checkout, or for any other model."""
    root = models_folder()
    _check_checkout(root)
    card, folder = find_card(name)
    if folder.parent != root or card.name != name:
        raise InputError(f"{name!r} is no bundled model: leave --record out")
    return folder


def card_of_artifact(m: Manifest) -> tuple[Card, Path]:
    """The bundled model that the artifact of *m* is of, and its folder. Raises InputError where its weights differ."""
    folder = model_folder(m.name)
    card = read_card(folder)
    if card.weights is None or card.weights.sha256 != m.weights["sha256"]:
        raise InputError(f"the artifact was not made from the weights of {m.name}: leave --record out")
    return card, folder


def check_record(folder: Path, name: str) -> None:
    """Raise InputError, before any work is done, where `record_evaluation` would refuse."""
    if not name.isidentifier():
        raise InputError(f"a data set's name is letters, digits and underscores, such as set5, not {name!r}")
    if folder.parent == models_folder():
        _check_checkout(folder.parent)
    read_numerics(folder)


def record_evaluation(folder: Path, name: str, card: Card, result: Evaluation, key: str = NETWORK) -> Path:
    """Write *result* under the data set *name* and *key* into `numerics.yaml` in *folder*, beside what it holds.

    Returns the file. Raises InputError as `check_record`.
    """
    check_record(folder, name)
    weights = present(card.weights, f"the weights of card {card.name}")
    data, mean = _read(folder / NUMERICS), result.mean
    entry: dict[str, Any] = {
        "weights_sha256": weights.sha256,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "pictures": len(result.scores),
        **{f"{kind}psnr_y": round(getattr(mean, f"{kind}psnr_y"), 3) for kind in ("", "bicubic_")},
        **{f"{kind}ssim_y": round(getattr(mean, f"{kind}ssim_y"), 4) for kind in ("", "bicubic_")},
    }
    if name in card.published:
        entry["published_psnr_y"] = card.published[name]
    data.setdefault(EVALUATION, {}).setdefault(name, {})[key] = entry
    return _write(folder / NUMERICS, data)


def record_parity(parities: Sequence[Parity]) -> list[Path]:
    """Write *parities* into the `numerics.yaml` of their models, beside other artifacts' figures.

    Returns the files. Raises InputError, before the first file is written.
    """
    for parity in parities:
        if not {"created", "flavour", "capacities"} <= set(parity.data):
            raise InputError(f"{parity.path} is of an older ppexport and does not tell its flavour: run parity again")
    return _record(NUMERICS, {(p.data["model"], PARITY, _key_of(p.data)): _parity_of(p) for p in parities})


def _model_of(files: Mapping[str, str]) -> dict[str, str]:
    """The model among an artifact's *files* and its hash: the first. The others, such as a page's, compute nothing."""
    return dict([next(iter(files.items()))])


def _parity_of(parity: Parity) -> dict[str, Any]:
    """What is recorded of a parity run: the pair of the artifact. A PSNR of null stands for equal pictures."""
    data, pair, agreement = parity.data, parity.judged, parity.judged.get("agreement")

    def rounded(value: float | None, digits: int) -> float | None:
        # Without a sign where it rounds to zero.
        return None if value is None else round(value, digits) + 0.0

    return {
        "date": str(data["created"])[:10],
        "passed": data["passed"],
        "gate_psnr": pair["gate"]["psnr"],
        "inputs": len(pair["rows"]),
        "reference": pair["reference"],
        "psnr": rounded(parity.worst, 2),
        "psnr_same_routing": rounded(parity.worst_same_routing, 2),
        "flips": parity.flips,
        "equal_categories": None if agreement is None else rounded(min(agreement), 4),
        **{name: rounded(pair.get(name), 4 if name.startswith("psnr") else 6) for name in CHANGES},
        "files": _model_of(data["files"]),
        "weights_sha256": data["weights"]["sha256"],
        "versions": data["versions"],
    }


def record_latency(profiles: Sequence[Profile]) -> list[Path]:
    """Write *profiles* into the `latency.yaml` of their models, beside other machines' figures.

    Returns the files. Raises InputError, before the first file is written.
    """
    found = {}
    for profile in profiles:
        machine = profile.data["machine"]
        mode = (machine.get("jetson") or {}).get("power_mode")
        # A board in another power mode is another machine.
        called = str(machine["cpu"]) + (f", {mode['name']}" if isinstance(mode, dict) and mode.get("name") else "")
        load = profile.data["protocol"]["plan"].get("load", 0)
        # So it is beside busy neighbours.
        beside = f" load {load}" if load else ""
        for subject in profile.subjects:
            key = f"{_key_of(subject)} {subject['runtime']}:{subject['runtime_device']}{beside}"
            found[subject["model"], called, key] = _latency_of(profile, subject)
    return _record(LATENCY, found)


def _latency_of(profile: Profile, subject: dict[str, Any]) -> dict[str, Any]:
    s, data = subject["summary"], profile.data
    return {
        "date": str(data["created"])[:10],
        "protocol": data["protocol"]["plan"]["name"],
        "order": data["protocol"]["order"],
        "queries": s["count"],
        **{name: round(float(s[name]), 3) for name in LATENCIES},
        "p90_interval_ms": [round(float(v), 3) for v in s["p90_interval_ms"]],
        "load_ms": round(float(subject["load_ms"]), 1),
        "first_ms": round(float(subject["first_ms"]), 1),
        "joules_per_image": None if s.get("energy") is None else round(float(s["energy"]["joules_per_image"]), 4),
        "peak_mb": None if subject["memory"] is None else round(subject["memory"]["peak"] / 1e6, 1),
        "system": data["machine"]["system"],
        "cores": data["machine"]["usable_cores"],
        "threads": subject["threads"],
        "runtime_versions": subject["runtime_versions"],
        "files": _model_of(subject["files"]),
        "weights_sha256": subject["weights_sha256"],
        "marks": [mark["text"] for mark in data["marks"]],
    }
