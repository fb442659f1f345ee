"""What lies in the folders of a report, checked. Nothing in them is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppexport.errors import InputError
from ppexport.parity.contest import Contest
from ppexport.profile.by_layer import read_layers
from ppexport.profile.result import PROFILE, Profile, read_result

PARITY = "report.json"
CONTINUED = "report-*.json"
"""Of columns that were filled in later."""
FIELDS = ("model", "backend", "precision", "size", "files", "weights", "versions", "passed", "pairs")
CHANGES = ("psnr_y_change", "psnr_y_change_same_routing", "ssim_y_change", "ssim_y_change_same_routing")


@dataclass(frozen=True)
class Parity:
    """One parity run."""

    path: Path
    """Its report."""
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called: its folder, and the column if that was filled in later."""
        return self.path.parent.name + self.path.stem.removeprefix("report").replace("-", " ", 1)

    @property
    def judged(self) -> dict[str, Any]:
        """The pair of the artifact in its usual runtime, which those of `parity --units` come after."""
        return _own_pairs(self.data)[-1]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The inputs of that pair."""
        rows: list[dict[str, Any]] = self.judged["rows"]
        return rows

    @property
    def worst(self) -> float | None:
        """The lowest PSNR against the reference as the artifact runs, in dB; None where all pictures are equal."""
        return min((row["errors"]["psnr"] for row in self.rows if row["errors"]["psnr"] is not None), default=None)

    @property
    def worst_same_routing(self) -> float | None:
        """The same with the reference's categories wherever the artifact chose others."""
        # A picture without flips is the same with the reference's categories.
        found = [(row.get("injected") or row["errors"])["psnr"] for row in self.rows]
        return min((psnr for psnr in found if psnr is not None), default=None)

    @property
    def flips(self) -> int:
        """How many categories the artifact chose differently."""
        return sum(sum(row["flips"]) for row in self.rows if row.get("flips"))

    @property
    def psnr_y(self) -> float | None:
        """Mean PSNR-Y of the artifact against ground truth as it runs, in dB; None where no input has one."""
        known = [row["task"][1] for row in self.rows if row.get("task")]
        return sum(known) / len(known) if known else None


@dataclass
class Material:
    """Everything that a report draws from."""

    profiles: list[Profile] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    routing: list[dict[str, Any]] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    parities: list[Parity] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    """Several networks and artifacts that `ppexport evaluate` measured together."""


def _own_pairs(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of a parity run without those of compute units, which are called by the artifact and the unit."""
    endings = tuple(f"-{unit}" for unit in data.get("units", {}))
    return [pair for pair in data["pairs"] if not pair["other"].endswith(endings)]


def _read_parity(path: Path) -> Parity:
    data = read_result(path, "ppexport-parity", 2)
    try:
        valid = all(name in data for name in FIELDS) and len(_own_pairs(data)) > 0
        valid &= all(isinstance(data[name], str) for name in ("model", "backend", "precision"))
        valid &= isinstance(data["files"], dict) and [isinstance(side, int) for side in data["size"]] == [True, True]
        multiple = data.get("multiple", 16)
        valid &= isinstance(multiple, int) and multiple > 0
        numbers: list[Any] = []
        for pair in data["pairs"]:
            numbers += [float(pair["gate"]["psnr"]), *(pair.get(name) for name in CHANGES)]
            valid &= isinstance(pair["reference"], str) and isinstance(pair["other"], str)
            for row in pair["rows"]:
                valid &= isinstance(row["name"], str) and isinstance(row["passed"], bool)
                numbers += [row["errors"]["psnr"], (row.get("injected") or row["errors"])["psnr"]]
                numbers += [*(row.get("task") or ()), *(row.get("task_same_routing") or ())]
        valid &= all(number is None or isinstance(number, (int, float)) for number in numbers)
    except (AttributeError, KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(f"{path} does not hold what a parity run holds")
    return Parity(path, data)


def _read_further(folder: Path, kind: str, *names: str) -> list[dict[str, Any]]:
    """The files of *kind* in *folder*, which have a subject and the fields *names*."""
    found = []
    for path in sorted(folder.glob(f"{kind}*.json")):
        data = read_result(path, f"ppexport-{kind}", 1)
        subject = data.get("subject")
        if not set(names) <= set(data) or not isinstance(subject, dict) or not isinstance(subject.get("name"), str):
            raise InputError(f"{path} does not hold what a ppexport-{kind} file holds")
        found.append(data)
    return found


def gather(folders: Sequence[Path]) -> Material:
    """What lies in *folders*: runs of `profile` and of `parity`.

    Raises:
        InputError: A folder holds neither, or a file in it is damaged or of another version.
    """
    found = Material()
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        reports = [path for path in (folder / PARITY, *sorted(folder.glob(CONTINUED))) if path.is_file()]
        measured = (folder / PROFILE).is_file()
        if not reports and not measured:
            raise InputError(f"{folder} holds neither {PROFILE} nor a parity run's {PARITY}")
        found.profiles += [Profile(folder / PROFILE)] if measured else []
        found.parities += [_read_parity(path) for path in reports]
        found.layers += [read_layers(path) for path in sorted(folder.glob("layers*.json"))]
        found.routing += _read_further(folder, "routing", "images", "capacities", "line")
        found.frames += _read_further(folder, "frames", "ns", "deadlines", "sentence")
    return found
