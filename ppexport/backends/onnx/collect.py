"""Runs crops through an fp32 artefact and records its tensors; a run that was killed goes on where it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ppexport.backends.onnx.half_audit import audit, rounding_db
from ppexport.backends.onnx.model_file import artifact_model
from ppexport.backends.onnx.run_onnxruntime import make_frugal_session
from ppexport.backends.onnx.tensors import Recorded, find_tensors, showing, sources_of
from ppexport.device.artifact import Artifact, read_artifact
from ppexport.device.runner import Prepared, feeds
from ppexport.errors import InputError
from ppexport.exporting import export, installed_versions
from ppexport.files import atomic_path, sha256_text
from ppexport.folders import work_beside
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import card_of
from ppexport.quantize.calibration import PERCENTILES, About, Calibration, load_arrays, save_calibration, summarise
from ppexport.quantize.crops import Crop, Source
from ppexport.quantize.histogram import Histograms
from ppexport.quantize.recipe import quantisable

Progress = Callable[[int, int], None]
PACKAGES = ("ppexport", "onnxruntime", "onnx", "numpy")


def used_pictures(sources: Sequence[Source], crops: Sequence[Crop]) -> list[dict[str, str]]:
    """Name and pixel hash of the pictures that *crops* were cut from, by name; of equal ones the last."""
    used = {c.source for c in crops}
    named = {s.sha256: {"name": s.name, "sha256": s.sha256} for s in sources if s.sha256 in used}
    return sorted(named.values(), key=lambda picture: picture["name"])


def images_hash(pictures: Sequence[Mapping[str, str]]) -> str:
    """SHA-256 of the sorted pixel hashes: of the pictures, whatever their names and order."""
    return sha256_text("\n".join(sorted(picture["sha256"] for picture in pictures)))


def check_artifact(artifact: Artifact) -> None:
    """Raise InputError unless *artifact* is one to calibrate: portable ONNX in fp32 at full capacity."""
    m = artifact.manifest
    if m.precision != "fp32":
        raise InputError(
            f"{artifact.path} is quantised already ({m.precision}): calibrate the model, or its fp32 artefact"
        )
    if m.backend != "onnx" or m.flavour != "portable":
        raise InputError(f"{artifact.path} is {m.backend}, flavour {m.flavour}: calibrate the model, or portable ONNX")
    if len(m.capacities) > 1 or m.capacities[-1] != m.tokens or m.mask == "input":
        raise InputError(f"{artifact.path} is a capacity set or takes its mask from outside: calibrate the model")


def state_path(out: Path) -> Path:
    """Where a run that writes the calibration file *out* keeps its state."""
    return out.with_name(f"{out.name}.partial")


class State:
    """What a run has recorded so far, in a file beside the result, replaced after every crop."""

    def __init__(self, path: Path, key: str, tensors: int) -> None:
        self.path, self.key = path, key
        self.done = 0
        self.histograms = Histograms.empty(tensors)
        if path.is_file():
            arrays = load_arrays(path, "the state of a calibration run")
            if str(arrays.get("key")) == key and arrays["counts"].shape == self.histograms.counts.shape:
                self.done = int(arrays["done"])
                self.histograms = Histograms(arrays["counts"], arrays["exponents"], arrays["figures"])

    def save(self) -> None:
        """Put the state in place of the last one."""
        arrays = {"key": np.array(self.key), "done": np.array(self.done), **self.histograms.to_arrays()}
        with atomic_path(self.path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]


def crop_inputs(artifact: Artifact, crop: Crop) -> dict[str, NDArray[Any]]:
    """The graph's inputs for *crop*."""
    return feeds(artifact.manifest, Prepared(crop.lr, None, artifact.manifest.capacities[-1]))


def record(artifact: Artifact, recorded: Recorded, crops: Sequence[Crop], state: State, progress: Progress) -> None:
    """Run the crops that *state* lacks, and save it after each."""
    model = artifact_model(artifact)
    shown = [(names, make_frugal_session(showing(model, names).SerializeToString(), "the calibrated graph"))
             for names in recorded.chunks]  # fmt: skip
    row = {name: i for i, name in enumerate(recorded.names)}
    progress(state.done, len(crops))
    for crop in crops[state.done :]:
        inputs = crop_inputs(artifact, crop)
        for names, session in shown:
            computed = [name for name in names if name not in inputs]
            values = {**inputs, **dict(zip(computed, session.run(computed, inputs), strict=True))}
            for name in names:
                state.histograms.add(row[name], values[name])
            del values
        state.done += 1
        state.save()
        progress(state.done, len(crops))


def check_finite(recorded: Recorded, histograms: Histograms) -> None:
    """Raise InputError naming the first tensor that held NaN or infinity: such a model cannot be calibrated."""
    for name, count in zip(recorded.names, histograms.figures[:, 6], strict=True):
        if count:
            raise InputError(f"tensor {name!r} held {int(count)} numbers that are not finite: the weights are damaged")


def calibrate(
    artifact: Artifact,
    sources: Sequence[Source],
    crops: Sequence[Crop],
    warnings: list[str],
    out: Path,
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Record the tensors of *artifact* on *crops* and write the calibration file *out*.

    `OUT.partial` holds the state of the run: the same call goes on with it. Raises InputError, also where another
    process writes *out*.
    """
    check_artifact(artifact)
    with work_beside(out.resolve(), "calibrate"):
        return _calibrate(artifact, sources, crops, warnings, out, progress)


def _calibrate(
    artifact: Artifact,
    sources: Sequence[Source],
    crops: Sequence[Crop],
    warnings: list[str],
    out: Path,
    progress: Progress,
) -> Calibration:
    recorded = find_tensors(artifact)
    m = artifact.manifest
    listed = used_pictures(sources, crops)
    pictures = images_hash(listed)
    named = [m.weights, m.options, m.size, [c.name for c in crops], pictures, recorded.names]
    key = sha256_text(json.dumps(named))
    state = State(state_path(out), key, len(recorded.names))
    record(artifact, recorded, crops, state, progress)
    check_finite(recorded, state.histograms)
    about = About(
        name=m.name,
        weights_sha256=m.weights["sha256"],
        options=m.options,
        scale=m.scale,
        size=list(m.size),
        crops=len(crops),
        images=listed,
        images_sha256=pictures,
        warnings=warnings,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=installed_versions(PACKAGES),
    )
    model = artifact_model(artifact)
    ends = [t for node in quantisable(model) for t in (node.input[0], node.output[0])]
    keep = frozenset(source for parts in sources_of(model, ends).values() for source in parts)
    calibration = summarise(about, recorded.names, state.histograms, keep)
    save_calibration(out, calibration)
    state.path.unlink(missing_ok=True)
    return calibration


def is_of(calibration: Calibration, artifact: Artifact, sources: Sequence[Source], crops: Sequence[Crop]) -> bool:
    """Whether *calibration* was measured in *artifact* on the pictures of *crops*, on as many crops of that size."""
    about, m = calibration.about, artifact.manifest
    measured = about.weights_sha256, about.options, about.images_sha256, about.crops, list(about.size)
    pictures = images_hash(used_pictures(sources, crops))
    return measured == (m.weights["sha256"], m.options, pictures, len(crops), m.size)


def fp32_artifact(network: nn.Module, size: tuple[int, int] | None, out: Path) -> Artifact:
    """The portable fp32 artefact of *network* for LR *size*, its card's default if None, made in *out*."""
    export(network, backend="onnx", size=size or card_of(network).default_size, out=out, force=True)
    return read_artifact(out)


# A calibration for people: how tokens grow from block to block, and what fp16 must not hold.


TOKENS = re.compile(r"^/layers\.(\d+)/residual_group/layers\.(\d+)/output/Add_output_0$")


def audit_rows(artifact: Artifact, calibration: Calibration) -> list[list[str]]:
    """[node, reason] of everything that fp16 is meant for and that the audit keeps in fp32."""
    findings = audit(artifact_model(artifact), calibration, find_architecture(artifact.manifest.arch))
    return [[f.node, f"{f.tensor} {f.reason}"] for f in findings]


def block_rows(calibration: Calibration) -> list[list[str]]:
    """[block, largest magnitude, 99.99 %, dB] of the tokens behind the last layer of every block."""
    last: dict[int, tuple[int, str]] = {}
    for name in calibration.names:
        if match := TOKENS.match(name):
            block, layer = int(match[1]), int(match[2])
            last[block] = max(last.get(block, (-1, "")), (layer, name))
    column = PERCENTILES.index(0.9999)
    return [
        [
            str(block),
            f"{calibration.largest(name):.4g}",
            f"{calibration.percentiles[calibration.row(name), column]:.4g}",
            f"{rounding_db(calibration, name):.1f}",
        ]
        for block, (_, name) in sorted(last.items())
    ]
