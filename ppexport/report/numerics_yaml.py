"""Parity runs -> the part `parity` of `numerics.yaml` beside their models' cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppexport.errors import InputError
from ppexport.report.material import Parity
from ppexport.report.numerics import PARITY, key_of, model_folder, read_numerics, write_numerics


def entry_of(parity: Parity) -> dict[str, Any]:
    """What is recorded of a run: the pair of the artefact. A PSNR of null stands for equal pictures."""
    data, pair = parity.data, parity.judged
    rows = pair["rows"]
    as_run = [row["errors"]["psnr"] for row in rows if row["errors"]["psnr"] is not None]
    # A picture without flips is the same with the reference's categories.
    judged = [(row.get("injected") or row["errors"])["psnr"] for row in rows]
    alike = [psnr for psnr in judged if psnr is not None]
    agreement = pair.get("agreement")
    return {
        "date": str(data["created"])[:10],
        "passed": data["passed"],
        "gate_psnr": pair["gate"]["psnr"],
        "inputs": len(rows),
        "reference": pair["reference"],
        "psnr": round(min(as_run), 2) if as_run else None,
        "psnr_same_routing": round(min(alike), 2) if alike else None,
        "flips": sum(sum(row["flips"]) for row in rows if row.get("flips")),
        "equal_categories": None if agreement is None else round(min(agreement), 4),
        "psnr_y_change": _rounded(pair, "psnr_y_change", 4),
        "psnr_y_change_same_routing": _rounded(pair, "psnr_y_change_same_routing", 4),
        "ssim_y_change": _rounded(pair, "ssim_y_change", 6),
        "ssim_y_change_same_routing": _rounded(pair, "ssim_y_change_same_routing", 6),
        "files": data["files"],
        "weights_sha256": data["weights"]["sha256"],
        "versions": data["versions"],
    }


def _rounded(pair: dict[str, Any], name: str, digits: int) -> float | None:
    """The figure *name*, without a sign where it rounds to zero; None where it was not measured."""
    value = pair.get(name)
    return None if value is None else round(value, digits) + 0.0


def record(parities: list[Parity]) -> list[Path]:
    """Write *parities* into the `numerics.yaml` of their models, beside other artefacts' figures. Raises InputError.

    Everything that can be refused is refused before the first file is written.
    """
    found: dict[Path, dict[str, Any]] = {}
    for parity in parities:
        m = parity.data
        if not {"created", "flavour", "capacities"} <= set(m):
            raise InputError(f"{parity.path} is of an older ppexport and does not tell its flavour: run parity again")
        folder = model_folder(m["model"])
        data = found.setdefault(folder, read_numerics(folder))
        key = key_of(m["backend"], m["precision"], m["flavour"], m["capacities"], m["size"])
        data[PARITY][key] = entry_of(parity)
    return [write_numerics(folder, data) for folder, data in found.items()]
