"""Fills in this machine's column of a saved parity run. NumPy and the artifact's runtime are enough.

Categories are compared where the artifact can be opened, an ONNX file by the package `onnx`; else pictures and counts.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppexport.device.artifact import Manifest
from ppexport.device.runner import Runner
from ppexport.errors import InputError
from ppexport.folders import MAX_JSON, run_folder
from ppexport.parity.columns import ArtifactColumn, load_column, load_inputs
from ppexport.parity.compare import Means, compare_columns, compare_pictures
from ppexport.parity.gates import artifact_gate, with_measured_tie
from ppexport.parity.run import INPUTS, REPORT, RUN, TWIN_COLUMN, VERSION, ParityReport, Progress, compute, keep

SAME = ("arch", "options", "scale", "size", "precision", "capacities")
"""What must be equal in the manifest and in the saved run, beside the weights."""
AGAIN = "run `ppexport parity` of this artifact's model again on the machine with torch, and copy its folder"


def read_run(folder: Path) -> dict[str, Any]:
    """The report of the run saved in *folder*. Raises InputError for a damaged one, or one of another version."""
    path = folder / REPORT
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(f"{path} is larger than {MAX_JSON} bytes: that is no report of a parity run")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not the folder of a parity run: {path} {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not readable JSON") from None
    if not isinstance(data, dict) or data.get("format") != "ppexport-parity":
        raise InputError(f"{path} is not the report of a parity run")
    if data.get("version") != VERSION:
        raise InputError(f"{folder} was saved by another version of ppexport: {AGAIN}")
    return data


def check_same(manifest: Manifest, saved: dict[str, Any], folder: Path) -> None:
    """Raise InputError unless the run *saved* in *folder* is of the weights, options and shapes of *manifest*."""
    weights = saved.get("weights")
    found = {"weights": weights.get("sha256") if isinstance(weights, dict) else None}
    expected = {"weights": manifest.weights["sha256"]}
    found.update({name: saved.get(name) for name in SAME})
    expected.update({name: getattr(manifest, name) for name in SAME})
    for name, own in expected.items():
        if found[name] != own:
            raise InputError(f"{folder} is a run of other {name}: {found[name]!r}, the artifact has {own!r}; {AGAIN}")


@dataclass(frozen=True)
class Examined:
    """What a saved run found of flips that it could examine, and that passed."""

    surest: float
    """By how much the twin led, at most."""
    flipped: dict[str, float]
    """{input: PSNR in dB, as it ran}."""


def examined(saved: dict[str, Any], folder: Path) -> Examined:
    """The flips of the *saved* run in *folder*. Raises InputError for a damaged report."""
    surest, flipped = 0.0, dict[str, float]()
    try:
        for row in (row for pair in saved["pairs"] if pair["reference"] == TWIN_COLUMN for row in pair["rows"]):
            if not row["passed"] or row["surest"] is None:
                continue
            # Equal pictures have no PSNR in JSON.
            gap, decibel = float(row["surest"]), float(row["errors"]["psnr"] or math.inf)
            if not math.isfinite(gap) or math.isnan(decibel):
                raise ValueError
            surest = max(surest, gap)
            flipped[str(row["name"])] = max(decibel, flipped.get(str(row["name"]), -math.inf))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / REPORT} does not hold what a parity run holds") from None
    return Examined(surest, flipped)


def run_against(runner: Runner, folder: Path, progress: Progress) -> ParityReport:
    """Fill in this machine's column of the run kept in *folder* and compare it with the saved twin. Needs no torch.

    Raises InputError where the run is damaged, or not of the artifact's weights, options, precision and capacities, or
    where another process writes into its folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not the folder of a parity run")
    with run_folder(folder, RUN):
        return _run_against(runner, folder, progress)


def _run_against(runner: Runner, folder: Path, progress: Progress) -> ParityReport:
    artifact = runner.artifact
    saved = read_run(folder)
    check_same(artifact.manifest, saved, folder)
    seen = examined(saved, folder)
    gate = with_measured_tie(artifact_gate(artifact.manifest), seen.surest)
    inputs = load_inputs(folder / INPUTS, artifact.size)
    file = folder / f"{TWIN_COLUMN}.npz"
    reference = load_column(file)
    missing = [item.name for item in inputs if item.name not in reference]
    if missing:
        raise InputError(f"{file} has no picture for input {missing[0]!r}")
    expected = (1, 3, *(side * artifact.scale for side in artifact.size))
    for name, sample in reference.items():
        if sample.sr.shape != expected:
            raise InputError(f"{folder} is a run of another scale: {name!r} is {sample.sr.shape}, not {expected}")
    source = ArtifactColumn(runner)
    column = compute(source, inputs, progress)
    report = ParityReport(artifact.manifest, folder, continued=True)
    names = (TWIN_COLUMN, source.name)
    if source.probe is None:
        pair = compare_pictures(names, inputs, reference, column, gate, artifact.scale, seen.flipped)
    else:
        pair = compare_columns(names, inputs, reference, column, gate, artifact.scale, Means(source.sample))
    source.close()
    report.pairs.append(pair)
    keep(report, inputs, {TWIN_COLUMN: reference, source.name: column})
    return report
