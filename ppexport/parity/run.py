"""A parity run: inputs, columns, pairs, and the folder in which they are kept.

inputs.npz        the inputs and their ground truths
network.npz       one file per column: pictures, categories, gaps, masks
twin.npz
onnx-fp32.npz     or onnx-fp16, coreml-fp16, ...: the artefact's
report.json       gates and figures
worst.png         error map of the worst input of the artefact

A column that is filled in later, by `--against`, has a report and an error map of its own: report-onnx-fp32.json,
worst-onnx-fp32.png.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Manifest
from ppexport.device.mask import mask_from_labels, pixel_labels
from ppexport.device.runner import Runner
from ppexport.errors import present
from ppexport.files import write_text
from ppexport.folders import Run, is_json_of, run_folder
from ppexport.parity.artifact_column import ArtifactColumn, EngineColumn, artifact_column
from ppexport.parity.columns import Column, Sample, save_column, save_inputs
from ppexport.parity.compare import Means, Pair, Seen, compare_columns
from ppexport.parity.error_map import save_error_map
from ppexport.parity.gates import FLIP_MARGIN, NEAR_TIE, Gate, check_gates
from ppexport.parity.inputs import ParityInput, parity_inputs

FORMAT = "ppexport-parity"
VERSION = 2
"""Of report.json. Version 1 did not tell changes of PSNR-Y as it runs from those with the same routing."""
INPUTS = "inputs.npz"
REPORT = "report.json"
WORST = "worst.png"
TWIN_COLUMN = "twin"


def _begun(folder: Path) -> bool:
    """Whether *folder* holds a parity run: its report, or before that its inputs and no picture yet."""
    if (folder / REPORT).exists():
        return is_json_of(folder / REPORT, FORMAT)
    try:
        with zipfile.ZipFile(folder / INPUTS) as archive:
            ours = all(name.endswith((".lr.npy", ".hr.npy")) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return ours and not (folder / WORST).exists()


RUN = Run("parity run", (INPUTS, "*.npz", REPORT, "report-*.json", WORST, "worst-*.png"), _begun)

Progress = Callable[[str, int, int], None]
"""Told (what, done, total)."""


class Source(Protocol):
    """What computes a column."""

    name: str

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The entry for *item*, with *categories* injected if given."""

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> list[NDArray[np.float32]]:
        """The output of every layer."""


class Reference(Source, Protocol):
    """What computes a column that others are compared with."""

    layer_names: list[str]
    """The module names of what `layers` returns."""


@dataclass
class ParityReport:
    """The outcome of a run."""

    manifest: Manifest
    folder: Path
    pairs: list[Pair] = field(default_factory=list)
    host_mask_differs: list[str] = field(default_factory=list)
    """Inputs for which the NumPy mask is not the network's; must be empty."""

    units: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of a Core ML package on a Mac, by compute unit: where every operation would run, or why the trial failed."""
    over_capacity: list[str] = field(default_factory=list)
    """Inputs with more impure tokens than slots: there the twin is not the network by design, and is not compared."""
    continued: bool = False
    """Whether this is one column more of a run that was kept before, and leaves the report of that as it is."""

    @property
    def file(self) -> Path:
        """The report's file."""
        return self._named(REPORT)

    @property
    def error_map(self) -> Path:
        """The picture of the worst input's errors."""
        return self._named(WORST)

    def _named(self, name: str) -> Path:
        """*name* in the run's folder; with the column in it where that was filled in later."""
        stem, suffix = name.split(".")
        return self.folder / (f"{stem}-{self.pairs[-1].other}.{suffix}" if self.continued else name)

    @property
    def passed(self) -> bool:
        """Whether all gates hold."""
        failed = any("failed" in unit for unit in self.units.values())
        return not failed and not self.host_mask_differs and all(pair.passed for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        m = self.manifest
        return {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": m.name,
            "arch": m.arch,
            "scale": m.scale,
            "options": m.options,
            "backend": m.backend,
            "precision": m.precision,
            "flavour": m.flavour,
            "capacities": m.capacities,
            "size": m.size,
            "files": m.files,
            "weights": m.weights,
            "versions": m.versions,
            "passed": self.passed,
            "host_mask_differs": self.host_mask_differs,
            "over_capacity": self.over_capacity,
            "units": self.units,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def compute(source: Source | EngineColumn, inputs: list[ParityInput], progress: Progress) -> Column:
    """All entries of one column."""
    column: Column = {}
    for done, item in enumerate(inputs):
        progress(source.name, done, len(inputs))
        column[item.name] = source.sample(item)
    progress(source.name, len(inputs), len(inputs))
    return column


def compare_host_mask(manifest: Manifest, inputs: list[ParityInput], reference: Column) -> list[str]:
    """Names of the inputs for which the NumPy mask of devices differs from the reference's."""
    options, differs = manifest.options, []
    for item in inputs:
        expected = reference[item.name].pure
        if expected is None:
            continue
        labels = pixel_labels(np.ascontiguousarray(item.lr[0].transpose(1, 2, 0)), options["colors"])
        mask = mask_from_labels(labels, options["window"], options["csmf"])
        if not np.array_equal(mask.ravel(), expected):
            differs.append(item.name)
    return differs


def without_routing(column: Column) -> Column:
    """*column* with nothing but pictures and counts, to compare with an engine that tells no more."""
    return {k: replace(s, categories=None, gaps=None, pure=None, labels=None) for k, s in column.items()}


def compare_with_engine(
    names: tuple[str, str],
    inputs: list[ParityInput],
    reference: Column,
    engine: Column,
    gate: Gate,
    scale: int,
    flipped: Mapping[str, float] | None = None,
) -> Pair:
    """Compare the column of an *engine*, whose routing cannot be told, by pictures and counts.

    In fp16 near ties fall either way on every run of synthetic pictures full of them, such as noise, and nothing can
    tell that from a mistake: there such inputs are reported, and photographs are judged. An input in *flipped*,
    {input: dB}, passed in a run that could examine its flips, with that PSNR as it ran: here it may be `FLIP_MARGIN` dB
    further off, where that is below the gate. In fp32 near ties are few: any other input that has one fails with a
    reason that says so.
    """
    pair = compare_columns(names, inputs, without_routing(reference), engine, gate, scale)
    for row, item in zip(pair.rows, inputs, strict=True):
        there = (flipped or {}).get(row.name, math.inf)
        counted = reference[item.name].impure == engine[item.name].impure
        finite = math.isfinite(row.errors.max_abs)
        if row.passed or not (counted and finite):
            continue
        if gate.near_tie > NEAR_TIE and item.hr is None:
            row.passed, row.reason = True, f"not judged, {names[1]} does not tell its near ties ({row.reason})"
        elif row.errors.psnr >= there - FLIP_MARGIN:
            row.passed = True
            row.reason += (
                f"; {names[1]} does not tell its flips, and the saved run, whose flips passed, has {there:.1f} dB"
            )
        elif gate.near_tie <= NEAR_TIE and (ties := near_ties(reference[item.name])):
            row.reason += f"; {names[1]} does not tell whether one of the {ties} near ties of this input flipped"
    return pair


def near_ties(sample: Sample) -> int:
    """Choices of impure tokens in all layers that fp32 may make either way."""
    if sample.gaps is None:
        return 0
    impure = slice(None) if sample.pure is None else ~sample.pure
    return int((sample.gaps[:, impure] < NEAR_TIE).sum())


def means_for(reference: Source, other: Source) -> Means:
    """How flips between *reference* and *other* can be examined."""
    from ppexport.parity.asset_column import AssetColumn
    from ppexport.parity.compute import TwinColumn
    from ppexport.parity.package_column import PackageColumn
    from ppexport.parity.rechoose import rechoose, recorded

    if not (isinstance(reference, TwinColumn) and isinstance(other, (ArtifactColumn, AssetColumn, PackageColumn))):
        return Means(other.sample)

    def look(item: ParityInput, categories: NDArray[np.uint8]) -> Seen:
        own = recorded(reference.twin, item.lr, categories)
        return rechoose(reference.twin, own, other.chosen_from(item, categories))

    if isinstance(other, AssetColumn):
        return Means(follow=reference.sample, look=look)
    return Means(other.sample, look=look)


def compare_sources(
    reference: Reference,
    other: Source | EngineColumn,
    columns: tuple[Column, Column],
    inputs: list[ParityInput],
    gate: Gate,
    scale: int,
) -> Pair:
    """Compare two computed columns; a failed pair also names its first bad layer, if both can be opened."""
    names = (reference.name, other.name)
    if isinstance(other, EngineColumn):
        return compare_with_engine(names, inputs, *columns, gate, scale)
    pair = compare_columns(names, inputs, *columns, gate, scale, means_for(reference, other))
    if not pair.passed:
        item = next(item for item in inputs if item.name == pair.worst.name)
        samples = (columns[0][item.name], columns[1][item.name])
        # What fails only as it runs has no bad layer with the same categories.
        as_it_runs = pair.failed_tasks[:1] == ["task"] and all(row.passed for row in pair.rows)
        pair.first_bad_layer = find_bad_layer(reference, other, item, samples, gate.psnr, as_it_runs)
    return pair


def find_bad_layer(
    reference: Reference,
    other: Source,
    item: ParityInput,
    samples: tuple[Sample, Sample],
    gate_db: float,
    as_it_runs: bool = False,
) -> str:
    """The first layer of *other* off by more than *gate_db*, with the same categories in both or *as it runs*."""
    from ppexport.parity.asset_column import AssetColumn
    from ppexport.parity.compute import TwinColumn, first_bad_layer

    names = reference.layer_names
    if isinstance(other, AssetColumn) and isinstance(reference, TwinColumn):
        own = present(samples[0 if as_it_runs else 1].categories, "the categories of the asset or its reference")
        # What a layer is given comes from the one before it.
        return first_bad_layer(names[:-1], reference.layer_inputs(item, own)[1:], other.layers(item)[1:], gate_db)
    forced = samples[0].categories
    changed = other.layers(item, None if as_it_runs else forced)
    return first_bad_layer(names, reference.layers(item, forced), changed, gate_db)


def keep(report: ParityReport, inputs: list[ParityInput], columns: dict[str, Column]) -> None:
    """Write the report, its columns and the error map into the run's folder."""
    for name, column in columns.items():
        if not (report.continued and name == TWIN_COLUMN):
            save_column(report.folder / f"{name}.npz", column)
    # Before the picture: the report proves that the folder is ours.
    write_text(report.file, json.dumps(report.to_dict(), indent=2) + "\n")
    last = report.pairs[-1]
    worst = last.worst.name
    save_error_map(
        report.error_map,
        next(item for item in inputs if item.name == worst).lr,
        *(columns[name][worst].sr for name in (last.reference, last.other)),
    )


def run_parity(
    network: Any, runner: Runner, folder: Path, progress: Progress, units: Sequence[str] = ()
) -> ParityReport:
    """Compare *network*, its twin and the artefact behind *runner* on all inputs, and keep everything in *folder*.

    *units* are compute units of a Mac on which a Core ML package is compared as well. Raises InputError where *folder*
    holds anything but a parity run, or another process writes into it.
    """
    with run_folder(folder, RUN):
        return _run_parity(network, runner, folder, progress, units)


def _run_parity(network: Any, runner: Runner, folder: Path, progress: Progress, units: Sequence[str]) -> ParityReport:
    from ppexport.parity.asset_column import AssetColumn
    from ppexport.parity.compute import NetworkColumn, TwinColumn
    from ppexport.twin.twin import make_twin

    artifact = runner.artifact
    manifest = artifact.manifest
    # A gate that cannot be used is an error before any work is done.
    gates = check_gates(manifest)
    inputs = parity_inputs(artifact.size, artifact.scale)
    save_inputs(folder / INPUTS, inputs)
    twin = make_twin(network, artifact.size, manifest.capacities[-1], manifest.flavour)
    reference, static = NetworkColumn(network), TwinColumn(twin, manifest.capacities)
    shipped = AssetColumn(runner, twin, folder) if manifest.backend == "coreai" else artifact_column(runner)
    columns = {source.name: compute(source, inputs, progress) for source in (reference, static, shipped)}
    report = ParityReport(manifest, folder)
    report.host_mask_differs = compare_host_mask(manifest, inputs, columns["network"])
    over = [item for item in inputs if columns["network"][item.name].impure > manifest.capacities[-1]]
    report.over_capacity = [item.name for item in over]
    fitting = [item for item in inputs if item not in over]
    pairs: list[tuple[Reference, Source | EngineColumn, Gate, list[ParityInput]]] = [
        (reference, static, gates[0], fitting),
        (static, shipped, gates[1], inputs),
    ]
    for first, second, gate, judged in pairs:
        both = (columns[first.name], columns[second.name])
        report.pairs.append(compare_sources(first, second, both, judged, gate, artifact.scale))
    if units:
        from ppexport.parity.units import run_units

        columns.update(run_units(report, runner, units, inputs, columns["twin"]))
    keep(report, inputs, columns)
    if isinstance(shipped, AssetColumn):
        shipped.finish()
    return report
