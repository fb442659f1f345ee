"""A parity run: inputs, columns, pairs, and the folder in which they are kept.

inputs.npz        the inputs and their ground truths
network.npz       one file per column: pictures, categories, gaps, masks
twin.npz
onnx-fp32.npz     or onnx-fp16, coreml-fp16, ...: the artifact's
report.json       gates and figures
worst.png         error map of the worst input of the artifact
.unfinished       what a slow artifact has computed, until the run is complete

A column that is filled in later, by `--against`, has a report and an error map of its own: report-onnx-fp32.json,
worst-onnx-fp32.png.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from ppexport.backends.backend import Gate, UnitRun
from ppexport.device.artifact import Manifest
from ppexport.device.mask import mask_from_labels, pixel_labels
from ppexport.device.picture import to_uint8
from ppexport.device.runner import Runner, feeds
from ppexport.errors import PpexportError
from ppexport.files import atomic_path, write_text
from ppexport.folders import Run, is_json_of, run_folder
from ppexport.networks.architecture import find_architecture
from ppexport.parity.columns import (
    ArtifactColumn,
    Categories,
    Column,
    Sample,
    Source,
    save_column,
    save_inputs,
)
from ppexport.parity.compare import ChosenAgain, Means, compare_columns, compare_pictures
from ppexport.parity.gates import check_gates
from ppexport.parity.inputs import ParityInput, parity_inputs
from ppexport.parity.pair import Pair

if TYPE_CHECKING:
    from ppexport.networks.network import Network
    from ppexport.parity.references import NetworkColumn, TwinColumn

FORMAT = "ppexport-parity"
VERSION = 2
"""Of report.json. Version 1 did not tell changes of PSNR-Y as it runs from those with the same routing."""
INPUTS = "inputs.npz"
REPORT = "report.json"
WORST = "worst.png"
TWIN_COLUMN = "twin"
UNFINISHED = ".unfinished"
"""A folder in that of a run."""


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
"""Receives (what, done, total)."""


@dataclass
class ParityReport:
    """The outcome of a run."""

    manifest: Manifest
    folder: Path
    pairs: list[Pair] = field(default_factory=list)
    host_mask_differs: list[str] = field(default_factory=list)
    """Inputs for which the NumPy mask is not the network's; must be empty."""
    units: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By compute unit that was asked for: where every operation would run, or why its run failed."""
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
    def routes(self) -> bool:
        """Whether the network routes tokens by their data; else there are no categories that could flip."""
        return find_architecture(self.manifest.arch).routing is not None

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


def compute(source: Source, inputs: list[ParityInput], progress: Progress) -> Column:
    """All entries of one column."""
    column: Column = {}
    for done, item in enumerate(inputs):
        progress(source.name, done, len(inputs))
        column[item.name] = source.sample(item)
    progress(source.name, len(inputs), len(inputs))
    return column


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
    network: Network, runner: Runner, folder: Path, progress: Progress, units: Mapping[str, UnitRun] | None = None
) -> ParityReport:
    """Compare a network, its twin and an artifact on all inputs, and keep everything.

    Args:
        network: that the artifact was made from.
        runner: of the artifact.
        folder: of the run; made, or that of an earlier run, which is replaced.
        progress: receives the name of a column, how many of its inputs are done, and how many there are.
        units: {name: what runs the artifact} of compute units on which it is compared as well.

    Raises:
        InputError: *folder* holds anything but a parity run, another process writes into it, or the model's card
            loosens a gate.
    """
    from ppexport.parity.references import NetworkColumn, TwinColumn
    from ppexport.twin.twin import make_twin

    manifest = runner.artifact.manifest
    with run_folder(folder, RUN):
        # A gate that cannot be used is an error before any work is done.
        gates = check_gates(manifest)
        inputs = parity_inputs(runner.size, runner.scale)
        save_inputs(folder / INPUTS, inputs)
        capacity = manifest.capacities[-1] if manifest.capacities else None
        twin = make_twin(network, runner.size, capacity, manifest.flavour)
        shipped = ArtifactColumn(runner, twin, folder / UNFINISHED)
        sources = (NetworkColumn(network), TwinColumn(twin, manifest.capacities), shipped)
        try:
            report = _compare_all(sources, inputs, gates, ParityReport(manifest, folder), progress, units or {})
        finally:
            shipped.close()
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return report


def _compare_all(
    sources: tuple[NetworkColumn, TwinColumn, ArtifactColumn],
    inputs: list[ParityInput],
    gates: tuple[Gate, Gate],
    report: ParityReport,
    progress: Progress,
    units: Mapping[str, UnitRun],
) -> ParityReport:
    network, twin, shipped = sources
    columns = {source.name: compute(source, inputs, progress) for source in sources}
    report.host_mask_differs = _compare_host_mask(report.manifest, inputs, columns[network.name])
    slots = max(report.manifest.capacities, default=math.inf)
    fitting = [item for item in inputs if columns[network.name][item.name].impure <= slots]
    report.over_capacity = [item.name for item in inputs if item not in fitting]

    def look(item: ParityInput, categories: Categories) -> ChosenAgain:
        return twin.choose_again(item, categories, shipped.chosen_from(item, categories))

    means = Means(shipped.sample, look=look) if shipped.injects else Means(follow=twin.sample, look=look)
    pairs: tuple[tuple[Source, Source, Gate, list[ParityInput], Means], ...] = (
        (network, twin, gates[0], fitting, Means(twin.sample)),
        (twin, shipped, gates[1], inputs, means),
    )
    scale = report.manifest.scale
    for reference, other, gate, judged, examined in pairs:
        names, both = (reference.name, other.name), (columns[reference.name], columns[other.name])
        if other is shipped and shipped.probe is None:
            report.pairs.append(compare_pictures(names, judged, *both, gate, scale))
            continue
        pair = compare_columns(names, judged, *both, gate, scale, examined)
        if not pair.passed:
            pair.first_bad_layer = _first_bad_module(pair, twin, reference, other, judged, both)
        report.pairs.append(pair)
    columns |= _run_units(report, shipped, units, inputs, columns[twin.name], gates[1])
    keep(report, inputs, columns)
    return report


def _first_bad_module(
    pair: Pair,
    twin: TwinColumn,
    reference: Source,
    other: Source,
    inputs: list[ParityInput],
    columns: tuple[Column, Column],
) -> str:
    """The first module of the failed *pair* whose result is off: the mask, or a layer of the worst input."""
    from ppexport.parity.references import find_bad_layer

    routing = find_architecture(twin.twin.network.arch).routing
    if routing is not None and any(row.masks_differ for row in pair.rows):
        return routing.mask
    item = next(item for item in inputs if item.name == pair.worst.name)
    samples = columns[0][item.name], columns[1][item.name]
    names = list(twin.twin.routed_layers())
    # What fails only as it runs has no bad layer with the same categories.
    return find_bad_layer(names, reference, other, item, samples, pair.gate.psnr, pair.fails_only_as_it_runs)


def _compare_host_mask(manifest: Manifest, inputs: list[ParityInput], reference: Column) -> list[str]:
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


def _run_units(
    report: ParityReport,
    shipped: ArtifactColumn,
    units: Mapping[str, UnitRun],
    inputs: list[ParityInput],
    reference: Column,
    gate: Gate,
) -> dict[str, Column]:
    """Add a pair to *report* for every unit, and return the columns. A unit that fails fails the run, not the rest."""
    columns: dict[str, Column] = {}
    for unit, run in units.items():
        name = f"{shipped.name}-{unit}"
        try:
            columns[name], report.units[unit] = unit_column(shipped.runner, run, inputs)
        except PpexportError as error:
            report.units[unit] = {"failed": str(error)}
            continue
        names = (TWIN_COLUMN, name)
        report.pairs.append(compare_pictures(names, inputs, reference, columns[name], gate, report.manifest.scale))
    return columns


def unit_column(runner: Runner, run: UnitRun, inputs: Sequence[ParityInput]) -> tuple[Column, dict[str, Any]]:
    """The column of the artifact of *runner* where *run* computes it, and where its operations ran."""
    prepared = [runner.prepare(item.lr) for item in inputs]
    outputs, plan = run([feeds(runner.artifact.manifest, given) for given in prepared])
    column = {
        item.name: Sample(
            sr=found["sr"].astype(np.float32),
            impure=int(found["impure_tokens"].reshape(-1)[0]),
            capacity=given.capacity,
        )
        for item, given, found in zip(inputs, prepared, outputs, strict=True)
    }
    return column, plan


MARGIN, CAPTION = 8, 16
"""Pixels around the panels of an error map, and above them for the captions."""
SHOWN = 256
"""Pixels of the longer side of every panel, at least."""


def heat(error: NDArray[np.float64], largest: float) -> Image.Image:
    """Error (H, W) as black (none) over red to yellow (*largest*)."""
    level = Image.fromarray(np.uint8(np.round(255 * np.clip(error / largest, 0, 1))))
    return ImageOps.colorize(level, "black", "yellow", mid="red")


def save_error_map(
    path: Path, lr: NDArray[np.float32], reference: NDArray[np.float32], other: NDArray[np.float32]
) -> None:
    """Write input, reference, other and their error, side by side, as a PNG. The caption states the error's scale."""
    difference = np.abs(reference.astype(np.float64) - other).max(axis=(0, 1))
    difference = np.where(np.isfinite(difference), difference, np.inf)
    finite = difference[np.isfinite(difference)]
    largest = max(float(finite.max()) if finite.size else 0.0, 1e-12)
    panels = [
        ("input", Image.fromarray(to_uint8(lr))),
        ("reference", Image.fromarray(to_uint8(reference))),
        ("artifact", Image.fromarray(to_uint8(np.nan_to_num(other)))),
        (f"error, yellow = {largest:.1e}", heat(difference, largest)),
    ]
    h, w = reference.shape[2:]
    factor = max(1, -(-SHOWN // max(h, w)))
    size = (w * factor, h * factor)
    width = len(panels) * (size[0] + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, size[1] + 2 * MARGIN + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels):
        left = MARGIN + i * (size[0] + MARGIN)
        sheet.paste(panel.resize(size, Image.Resampling.NEAREST), (left, MARGIN + CAPTION))
        draw.text((left, MARGIN // 2), caption, fill="black")
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
