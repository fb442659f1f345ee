"""Runs crops through an fp32 artifact and records its tensors; a run that was killed continues where it was.

What computes makes the tensors that are recorded; what only moves numbers has the range of its source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto

from ppexport.backends.onnx.model_file import artifact_model
from ppexport.backends.onnx.pattern import Graph, copied
from ppexport.backends.onnx.qdq import quantisable, sources_of
from ppexport.backends.onnx.run_onnxruntime import make_frugal_session
from ppexport.backends.tensorrt.half import MOVES
from ppexport.device.artifact import Artifact
from ppexport.device.machine import versions
from ppexport.errors import InputError
from ppexport.files import atomic_path, sha256_text
from ppexport.folders import work_beside
from ppexport.quantize.calibration import About, Calibration, load_arrays, save_calibration, summarise
from ppexport.quantize.crops import Crop, Source, images_hash, used_pictures
from ppexport.quantize.histogram import COLUMNS, Histograms

Progress = Callable[[int, int], None]
PACKAGES = ("ppexport", "onnxruntime", "onnx", "numpy")
CHUNK_BYTES = 512 << 20
"""Most bytes of tensors that one copy of the file shows at a time."""


def check_artifact(artifact: Artifact) -> None:
    """Raise InputError unless *artifact* is one to calibrate: portable ONNX in fp32 at full capacity."""
    m = artifact.manifest
    if m.precision != "fp32":
        raise InputError(
            f"{artifact.path} is quantised already ({m.precision}): calibrate the model, or its fp32 artifact"
        )
    if m.backend != "onnx" or m.flavour != "portable":
        raise InputError(f"{artifact.path} is {m.backend}, flavour {m.flavour}: calibrate the model, or portable ONNX")
    if len(m.capacities) > 1 or m.capacities[-1:] not in ([], [m.tokens]) or m.mask == "input":
        raise InputError(f"{artifact.path} is a capacity set or takes its mask from outside: calibrate the model")


def find_tensors(model: onnx.ModelProto) -> dict[str, int]:
    """{name: bytes} of the tensors of *model* to record: float32, dependent on the picture, and computed."""
    graph, found = Graph(model), [port.name for port in model.graph.input]
    dependent = set(found)
    for node in model.graph.node:
        # Shapes are static here, so that what reads a shape does not depend on the picture.
        if node.op_type not in ("Shape", "Size") and dependent.intersection(node.input):
            made = [name for name in node.output if name]
            dependent.update(made)
            found += [] if node.op_type in MOVES else made
    kinds = {name: info.type.tensor_type.elem_type for name, info in graph.known.items()}
    return {name: 4 * (graph.elements(name) or 1) for name in found if kinds.get(name) == TensorProto.FLOAT}


def state_path(out: Path) -> Path:
    """Where a run that writes the calibration file *out* keeps its state."""
    return out.with_name(f"{out.name}.partial")


class State:
    """What a run has recorded so far, in a file beside the result, replaced after every crop."""

    def __init__(self, path: Path, key: str, tensors: int) -> None:
        self.path, self.key, self.done = path, key, 0
        self.histograms = Histograms.empty(tensors)
        if path.is_file():
            arrays = load_arrays(path, "the state of a calibration run")
            if str(arrays.get("key")) == key and arrays["counts"].shape == self.histograms.counts.shape:
                self.done = int(arrays["done"])
                self.histograms = Histograms(arrays["counts"], arrays["exponents"], arrays["figures"])

    def save(self) -> None:
        """Put the state in place of the last one."""
        arrays = {"key": np.array(self.key), "done": np.array(self.done), **vars(self.histograms)}
        with atomic_path(self.path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)


def calibrate(
    artifact: Artifact,
    sources: Sequence[Source],
    crops: Sequence[Crop],
    warnings: list[str],
    out: Path,
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Record the tensors of an artifact and write a calibration file.

    `OUT.partial` holds the state of the run: the same call continues with it.

    Args:
        artifact: portable ONNX in fp32, see `check_artifact`.
        sources: all pictures.
        crops: what was cut from them, and is run.
        warnings: what is noted in the file about the pictures.
        out: the file to write.
        progress: called with (crops run, crops in all).

    Raises:
        InputError: the artifact cannot be calibrated, its weights are damaged, or another process writes *out*.
    """
    check_artifact(artifact)
    with work_beside(out.resolve(), "calibrate"):
        model, m = artifact_model(artifact), artifact.manifest
        tensors = find_tensors(model)
        names, pictures = tuple(tensors), used_pictures(sources, crops)
        named = [m.weights, m.options, m.size, [c.name for c in crops], images_hash(pictures), names]
        state = State(state_path(out), sha256_text(json.dumps(named)), len(names))
        _record(_sessions(model, tensors), names, crops, state, progress)
        about = About(
            name=m.name,
            weights_sha256=m.weights["sha256"],
            options=m.options,
            scale=m.scale,
            size=list(m.size),
            crops=len(crops),
            images=pictures,
            images_sha256=images_hash(pictures),
            warnings=warnings,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions(PACKAGES),
        )
        ends = [t for node, _ in quantisable(model) for t in (node.input[0], node.output[0])]
        keep = frozenset(source for parts in sources_of(model, ends).values() for source in parts)
        calibration = summarise(about, names, state.histograms, keep)
        save_calibration(out, calibration)
        state.path.unlink(missing_ok=True)
        return calibration


def _sessions(model: onnx.ModelProto, tensors: dict[str, int]) -> list[tuple[list[str], Any]]:
    """Sessions of copies of *model* whose outputs are the *tensors*, each at most CHUNK_BYTES of them."""
    chunks: dict[int, list[str]] = {}
    inputs, total = {port.name for port in model.graph.input}, 0
    for name, size in tensors.items():
        if name not in inputs:
            chunks.setdefault(total // CHUNK_BYTES, []).append(name)
            total += size
    sessions = []
    for names in chunks.values():
        copy = copied(model)
        del copy.graph.output[:]
        copy.graph.output.extend(ValueInfoProto(name=name) for name in names)
        sessions.append((names, make_frugal_session(copy.SerializeToString(), "the calibrated graph")))
    return sessions


def _record(
    sessions: list[tuple[list[str], Any]],
    names: tuple[str, ...],
    crops: Sequence[Crop],
    state: State,
    progress: Progress,
) -> None:
    """Run the crops that *state* lacks, and save it after each.

    Raises InputError naming the first tensor that held NaN or infinity: such a model cannot be calibrated.
    """
    row = {name: i for i, name in enumerate(names)}
    progress(state.done, len(crops))
    for crop in crops[state.done :]:
        inputs = {"lr": crop.lr}
        state.histograms.add(row["lr"], crop.lr)
        for shown, session in sessions:
            for name, value in zip(shown, session.run(shown, inputs), strict=True):
                state.histograms.add(row[name], value)
        state.done += 1
        state.save()
        progress(state.done, len(crops))
    for name, count in zip(names, state.histograms.figures[:, COLUMNS.index("not_finite")], strict=True):
        if count:
            raise InputError(f"tensor {name!r} held {int(count)} numbers that are not finite: the weights are damaged")


def is_of(calibration: Calibration, artifact: Artifact, sources: Sequence[Source], crops: Sequence[Crop]) -> bool:
    """Whether *calibration* was measured in *artifact* on the pictures of *crops*, on as many crops of that size."""
    about, m = calibration.about, artifact.manifest
    measured = about.weights_sha256, about.options, about.images_sha256, about.crops, list(about.size)
    pictures = images_hash(used_pictures(sources, crops))
    return measured == (m.weights["sha256"], m.options, pictures, len(crops), m.size)
