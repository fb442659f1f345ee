"""A parity run: gates, inputs, columns, pairs, and the folder in which they are kept.

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
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from ppexport.backends.backend import Gate, UnitRun, find_backend
from ppexport.device.artifact import Manifest
from ppexport.device.mask import mask_from_labels
from ppexport.device.picture import to_uint8
from ppexport.device.runner import Runner, feeds
from ppexport.errors import InputError, PpexportError
from ppexport.files import atomic_path, write_text
from ppexport.folders import Run, is_json_of, run_folder
from ppexport.networks.architecture import find_architecture
from ppexport.parity.columns import ArtifactColumn, Column, Sample, host_labels, save_entries
from ppexport.parity.compare import compare_columns, compare_pictures
from ppexport.parity.inputs import ParityInput, on_levels, parity_inputs
from ppexport.parity.pair import Pair

if TYPE_CHECKING:
    from ppexport.networks.network import Network

FORMAT = "ppexport-parity"
VERSION = 2
"""Of report.json. Version 1 did not tell changes of PSNR-Y as it runs from those with the same routing."""
INPUTS = "inputs.npz"
REPORT = "report.json"
WORST = "worst.png"
TWIN_COLUMN = "twin"
"""The column; a card calls the gate between network and twin so, too."""
TWIN_GATE = Gate(psnr=110.0, max_abs=2e-5)
UNFINISHED = ".unfinished"
"""A folder in that of a run."""
COPIED = (
    "arch", "scale", "options", "backend", "precision", "flavour", "capacities", "size", "multiple", "files", "weights",
    "versions",
)  # fmt: skip
"""Fields of the manifest that a report repeats."""
MARGIN, CAPTION = 8, 16
"""Pixels around the panels of an error map, and above them for the captions."""
SHOWN = 256
"""Pixels of the longer side of every panel, at least."""

Progress = Callable[[str, int, int], None]
"""Receives (what, done, total)."""


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


def tighten(gate: Gate, asked: Mapping[str, Any], what: str) -> Gate:
    """*gate* with the limits *asked* for instead, {"psnr", "max_abs", "task_change": number}.

    Raises InputError for a limit that is looser than the gate's, or is not a valid limit; *what* names it.
    """
    for name, value in asked.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in ("psnr", "max_abs", "task_change") or not number:
            raise InputError(
                f"{what}: {name}: {value!r} is not a valid limit; a gate has psnr, max_abs and task_change"
            )
        own = getattr(gate, name)
        # Written so that NaN is refused.
        if not (value >= own if name == "psnr" else value <= own):
            raise InputError(
                f"{what}: {name} {value:g} asks for less than ppexport's own gate, {own:g}: a card may only tighten "
                "a gate, leave it out"
            )
    return replace(gate, **{name: float(value) for name, value in asked.items()})


def check_gates(manifest: Manifest) -> tuple[Gate, Gate]:
    """The gates between network and twin, and between twin and artifact. Raises InputError where a card loosens one."""
    own = {TWIN_COLUMN: TWIN_GATE, **find_backend(manifest.backend).precisions}
    if manifest.precision not in own:
        raise InputError(f"no parity gate is known for precision {manifest.precision!r}")
    twin, artifact = (
        tighten(own[name], manifest.gates.get(name, {}), f"the gate {name!r} of {manifest.name}")
        for name in (TWIN_COLUMN, manifest.precision)
    )
    return twin, artifact


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
    left_out: list[str] = field(default_factory=list)
    """Inputs that are no pictures of 8 bits, of a backend that takes no others."""
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
        stem, suffix = name.split(".")
        return self.folder / (f"{stem}-{self.pairs[-1].other}.{suffix}" if self.continued else name)

    @property
    def routes(self) -> bool:
        """Whether the network routes tokens by their data; else there are no categories that could flip."""
        routing = find_architecture(self.manifest.arch).routing
        return routing is not None and bool(routing.choice)

    @property
    def passed(self) -> bool:
        """Whether all gates hold."""
        failed = any("failed" in unit for unit in self.units.values())
        return not failed and not self.host_mask_differs and all(pair.passed for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": self.manifest.name,
            **{name: getattr(self.manifest, name) for name in COPIED},
            "passed": self.passed,
            "host_mask_differs": self.host_mask_differs,
            "over_capacity": self.over_capacity,
            "left_out": self.left_out,
            "units": self.units,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def compute(column: Column, inputs: list[ParityInput], progress: Progress) -> None:
    """Compute all entries of one column."""
    for done, item in enumerate(inputs):
        progress(column.name, done, len(inputs))
        column.samples[item.name] = column.sample(item)
    progress(column.name, len(inputs), len(inputs))


def keep(report: ParityReport, inputs: list[ParityInput], columns: Sequence[Column]) -> None:
    """Write the report, its columns and the error map into the run's folder."""
    for column in columns:
        if not (report.continued and column.name == TWIN_COLUMN):
            save_entries(report.folder / f"{column.name}.npz", column.samples)
    # Before the picture: the report proves that the folder is ours.
    write_text(report.file, json.dumps(report.to_dict(), indent=2) + "\n")
    last = report.pairs[-1]
    worst = last.worst.name
    lr = next(item for item in inputs if item.name == worst).lr
    pictures = {column.name: column.samples[worst].sr for column in columns}
    save_error_map(report.error_map, lr, pictures[last.reference], pictures[last.other])


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
    # These need torch, which a machine lacks that only fills in its column.
    from ppexport.parity.references import NetworkColumn, TwinColumn, find_bad_module
    from ppexport.twin.twin import make_twin, twin_flavour

    manifest = runner.artifact.manifest
    with run_folder(folder, RUN):
        # A gate that cannot be used is an error before any work is done.
        twin_gate, gate = check_gates(manifest)
        inputs = parity_inputs(runner.size, runner.scale)
        levels_only = find_backend(manifest.backend).levels_only and manifest.mask == "graph"
        left_out = [item.name for item in inputs if levels_only and not on_levels(item.lr)]
        inputs = [item for item in inputs if item.name not in left_out]
        save_entries(folder / INPUTS, {item.name: item for item in inputs})
        slots = manifest.capacities[-1] if manifest.capacities else None
        static = make_twin(network, runner.size, slots, twin_flavour(network, manifest.flavour))
        original, twin = NetworkColumn(network), TwinColumn(static, manifest.capacities)
        with closing(ArtifactColumn(runner, static, folder / UNFINISHED)) as shipped:
            columns: list[Column] = [original, twin, shipped]
            for column in columns:
                compute(column, inputs, progress)

            def pair_of(reference: Column, other: Column, judged: list[ParityInput], gate: Gate) -> Pair:
                pair = compare_columns(reference, other, judged, gate)
                if not pair.passed:
                    pair.first_bad_layer = find_bad_module(pair, static, reference, other, judged)
                return pair

            fitting = [item for item in inputs if original.samples[item.name].impure <= (slots or math.inf)]
            pairs = [pair_of(original, twin, fitting, twin_gate)]
            if shipped.probe is None:
                pairs.append(compare_pictures(twin, shipped, inputs, gate))
            else:
                pairs.append(pair_of(twin, shipped, inputs, gate))
        report = ParityReport(
            manifest,
            folder,
            pairs,
            host_mask_differs=[item.name for item in inputs if _host_mask_differs(manifest, item, original)],
            over_capacity=[item.name for item in inputs if item not in fitting],
            left_out=left_out,
        )
        for unit, run in (units or {}).items():
            # A unit that fails fails the run, not the rest.
            try:
                column, report.units[unit] = unit_column(f"{shipped.name}-{unit}", runner, run, inputs)
            except PpexportError as error:
                report.units[unit] = {"failed": str(error)}
                continue
            columns.append(column)
            pairs.append(compare_pictures(twin, column, inputs, gate))
        keep(report, inputs, columns)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return report


def _host_mask_differs(manifest: Manifest, item: ParityInput, reference: Column) -> bool:
    """Whether the NumPy mask of devices differs from the reference's."""
    expected, options = reference.samples[item.name].pure, manifest.options
    if expected is None:
        return False
    mask = mask_from_labels(host_labels(manifest, item), options["window"], options["csmf"])
    return not np.array_equal(mask.ravel(), expected)


def unit_column(
    name: str, runner: Runner, run: UnitRun, inputs: Sequence[ParityInput]
) -> tuple[Column, dict[str, Any]]:
    """The column *name* of the artifact of *runner* where *run* computes it, and where its operations ran."""
    prepared = [runner.prepare(item.lr) for item in inputs]
    outputs, plan = run([feeds(runner.artifact.manifest, given) for given in prepared])
    samples = {
        item.name: Sample(
            sr=found["sr"].astype(np.float32),
            impure=int(found["impure_tokens"].reshape(-1)[0]),
            capacity=given.capacity,
        )
        for item, given, found in zip(inputs, prepared, outputs, strict=True)
    }
    return Column(name, samples), plan


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
    largest = max(float(difference[np.isfinite(difference)].max(initial=0.0)), 1e-12)
    panels = {
        "input": Image.fromarray(to_uint8(lr)),
        "reference": Image.fromarray(to_uint8(reference)),
        "artifact": Image.fromarray(to_uint8(np.nan_to_num(other))),
        f"error, yellow = {largest:.1e}": heat(difference, largest),
    }
    h, w = reference.shape[2:]
    factor = max(1, -(-SHOWN // max(h, w)))
    size = (w * factor, h * factor)
    width = len(panels) * (size[0] + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, size[1] + 2 * MARGIN + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels.items()):
        left = MARGIN + i * (size[0] + MARGIN)
        sheet.paste(panel.resize(size, Image.Resampling.NEAREST), (left, MARGIN + CAPTION))
        draw.text((left, MARGIN // 2), caption, fill="black")
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
