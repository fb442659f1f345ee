"""Fills in this machine's column of a saved parity run. NumPy and the artifact's runtime are enough.

Categories are compared where the artifact can be opened, an ONNX file by the package `onnx`; else pictures and counts.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppexport.backends.backend import NEAR_TIE, Gate
from ppexport.device.artifact import Artifact, Manifest
from ppexport.device.runner import Runner
from ppexport.errors import InputError
from ppexport.files import read_limited_json
from ppexport.folders import MAX_JSON, run_folder
from ppexport.parity.columns import ArtifactColumn, Column, Sample, load_column, load_inputs
from ppexport.parity.compare import compare_columns, compare_pictures
from ppexport.parity.inputs import ParityInput
from ppexport.parity.pair import Pair
from ppexport.parity.run import (
    FORMAT,
    INPUTS,
    REPORT,
    RUN,
    TWIN_COLUMN,
    VERSION,
    ParityReport,
    Progress,
    check_gates,
    compute,
    keep,
)

TIE_MARGIN = 2.0
"""Another machine rounds by as much, but not the same numbers: how much surer its surest flip may be than that of the
saved run."""
SAME = ("arch", "options", "scale", "size", "precision", "capacities")
"""What must be equal in the manifest and in the saved run, beside the weights."""
AGAIN = "run `ppexport parity` of this artifact's model again on the machine with torch, and copy its folder"


def read_run(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The report of the run saved in *folder*.

    Raises InputError for a damaged one, one of another version, or one of other weights, options or shapes than those
    of *manifest*.
    """
    path = folder / REPORT
    saved = read_limited_json(path, MAX_JSON, "the report of a parity run")
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise InputError(f"{path} is not the report of a parity run")
    if saved.get("version") != VERSION:
        raise InputError(f"{folder} was saved by another version of ppexport: {AGAIN}")
    weights = saved.get("weights")
    pairs = {name: (saved.get(name), getattr(manifest, name)) for name in SAME}
    pairs["weights"] = (weights.get("sha256") if isinstance(weights, dict) else None, manifest.weights["sha256"])
    for name, (found, own) in pairs.items():
        if found != own:
            raise InputError(f"{folder} is a run of other {name}: {found!r}, the artifact has {own!r}; {AGAIN}")
    return saved


def examined(saved: dict[str, Any], folder: Path) -> tuple[float, dict[str, float]]:
    """What the *saved* run in *folder* found of flips that it could examine, and that passed.

    Returns by how much the twin led, at most, and {input: PSNR in dB, as it ran}. Raises InputError for a damaged
    report.
    """
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
    return surest, flipped


@dataclass(frozen=True)
class Saved:
    """What a saved run holds for another column."""

    inputs: list[ParityInput]
    twin: Column
    gate: Gate
    """Between the twin and the artifact."""
    flipped: dict[str, float]
    """As `examined` returns it."""
    passed: bool
    """Whether all of its own pairs did."""


def read_saved(folder: Path, artifact: Artifact) -> Saved:
    """What the run in *folder* holds for a column of *artifact*. Raises InputError as `read_run`."""
    saved = read_run(folder, artifact.manifest)
    surest, flipped = examined(saved, folder)
    _, gate = check_gates(artifact.manifest)
    if gate.near_tie > NEAR_TIE and not gate.flips_count:
        # Half precision: the saved run could see what a choice was made from, and its surest flip is a rounding.
        gate = replace(gate, near_tie=max(gate.near_tie, TIE_MARGIN * surest))
    inputs, twin = load_inputs(folder / INPUTS, artifact.size), load_column(folder / f"{TWIN_COLUMN}.npz")
    expected = (1, 3, *(side * artifact.scale for side in artifact.size))
    for item in inputs:
        sample = twin.samples.get(item.name)
        if sample is None or sample.sr.shape != expected:
            raise InputError(f"{folder / TWIN_COLUMN}.npz has no picture {expected} for input {item.name!r}")
    return Saved(inputs, twin, gate, flipped, saved.get("passed") is True)


def _existing(folder: Path) -> Path:
    """*folder*, if it is one. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not the folder of a parity run")
    return folder


def run_against(runner: Runner, folder: Path, progress: Progress) -> ParityReport:
    """Fill in this machine's column of the run kept in *folder* and compare it with the saved twin. Needs no torch.

    Raises InputError where the run is damaged, or not of the artifact's weights, options, precision and capacities, or
    where another process writes into its folder.
    """
    with run_folder(_existing(folder), RUN):
        saved = read_saved(folder, runner.artifact)
        with closing(ArtifactColumn(runner)) as column:
            compute(column, saved.inputs, progress)
            if column.probe is None:
                pair = compare_pictures(saved.twin, column, saved.inputs, saved.gate, saved.flipped)
            else:
                pair = compare_columns(saved.twin, column, saved.inputs, saved.gate)
        report = ParityReport(runner.artifact.manifest, folder, [pair], continued=True)
        keep(report, saved.inputs, [saved.twin, column])
    return report


def judge_pictures(runner: Runner, folder: Path) -> Pair:
    """Compare what *runner* computes as it is opened, by pictures and counts, with the twin of the run in *folder*.

    Unlike `run_against` it looks at nothing but the runner, whichever runtime that is of, and writes nothing. Raises
    InputError as that does.
    """
    saved, column = read_saved(_existing(folder), runner.artifact), Column(runner.artifact.path.name)
    for item in saved.inputs:
        sr, impure, capacity = runner.run_unchecked(runner.prepare(item.lr))
        column.samples[item.name] = Sample(sr, impure, capacity=capacity or None)
    return compare_pictures(saved.twin, column, saved.inputs, saved.gate, saved.flipped)
