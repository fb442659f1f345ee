"""Measures placements of int8: PSNR-Y on crops with ground truth, crop by crop against fp32, and time in turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import TypeAdapter

from ppexport.backends.backend import Inside
from ppexport.backends.onnx import BACKEND
from ppexport.backends.onnx.model_file import artifact_model
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.quantised import quantised
from ppexport.backends.onnx.run_onnxruntime import make_session
from ppexport.backends.openvino.run_openvino import Session
from ppexport.device.artifact import Artifact
from ppexport.device.picture import psnr_y, to_uint8
from ppexport.errors import InputError
from ppexport.files import sha256_text, write_text
from ppexport.networks.architecture import find_architecture
from ppexport.profile.statistics import Interval, median_interval
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.crops import Crop, pixel_hash
from ppexport.quantize.recipe import ROUTING, Quantisation, Recipe

MARGIN = 1.645
"""Standard errors that are added to what a placement costs before it is compared with the budget: with 95 % confidence
it costs no more on pictures like these."""
STATE, STATE_VERSION = "search.json", 4
"""The file of the measurements, and the version of what it holds."""
LEAST_AGAIN = 15
"""Rounds, at least, in which a placement that looked fastest is timed again: of many, measured in few rounds on a busy
machine, one always looks fast."""
PRECISIONS = ("int8", "mixed")
Inputs = Mapping[str, NDArray[Any]]
Run = Callable[[Inputs], NDArray[np.float32]]
"""Inputs -> `sr`."""


def _in_onnxruntime(model: Path, threads: int) -> Run:
    session = make_session(model.read_bytes(), str(model), threads)
    return lambda inputs: np.asarray(session.run(["sr"], dict(inputs))[0], np.float32)


def _in_openvino(model: Path, threads: int) -> Run:
    compiled = Session(model.read_bytes(), str(model), threads=threads)
    return lambda inputs: np.asarray(compiled.run(dict(inputs), ["sr"])["sr"], np.float32)


RUNTIMES = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}
"""What opens a model's file on this machine's CPU with a number of threads: in fp32 but for what Q/DQ says.

Raises UnavailableError where the runtime is not installed, ArtifactError where it refuses the file."""


@dataclass(frozen=True)
class SearchOptions:
    """What a search is asked for. Raises InputError for a runtime or a precision that it does not know."""

    runtime: str
    threads: int
    rounds: int
    budget: float
    """dB of PSNR-Y."""
    weight_bits: Literal[7, 8] = 8
    precision: str = "int8"
    """ "int8", or "mixed": every placement is measured with fp16 where the calibration allows it."""

    def __post_init__(self) -> None:
        for what, value, known in (("runtime", self.runtime, RUNTIMES), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise InputError(f"a {what} is one of {', '.join(known)}, not {value!r}")


@dataclass(frozen=True)
class Trial:
    """One placement, measured."""

    name: str
    groups: tuple[str, ...]
    calibrator: str
    change: float
    """Mean change of PSNR-Y against fp32, in dB."""
    error: float
    """Standard error of that mean, over the crops."""
    worst: float
    """The change of the worst crop."""
    agreement: tuple[float, ...]
    """Share of impure tokens of equal category, per layer."""
    bytes: int
    """Size of the file."""
    time: Interval
    """Against fp32, on the runtime."""

    @property
    def cost(self) -> float:
        """dB that it costs at most, with 95 % confidence: what the budget is for."""
        return MARGIN * self.error - self.change

    @property
    def placeable(self) -> bool:
        """Whether it may be chosen: routing stays in float."""
        return not ROUTING & set(self.groups)


class Search:
    """The measurements of one search, kept in *folder* so that a search that was killed continues."""

    def __init__(
        self, artifact: Artifact, calibration: Calibration, crops: Sequence[Crop], options: SearchOptions, folder: Path
    ) -> None:
        self.artifact, self.calibration, self.crops = artifact, calibration, crops
        self.options, self.folder = options, folder
        self.model, self.architecture = artifact_model(artifact), find_architecture(artifact.manifest.arch)
        # A budget decides between placements, it does not change what they cost.
        asked = {name: value for name, value in asdict(options).items() if name != "budget"}
        cut = [[c.name, pixel_hash(c.hr)] for c in crops]
        named = [STATE_VERSION, artifact.manifest.files, calibration.sha256, cut, asked]
        self.key = sha256_text(json.dumps(named))
        self.kept = self._read()

    def _read(self) -> dict[str, Any]:
        """The measurements of the same search so far."""
        path = self.folder / STATE
        if not path.is_file():
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(f"{path} is damaged: remove it to search anew") from None
        same = isinstance(data, dict) and data.get("key") == self.key and isinstance(data.get("trials"), dict)
        return dict(data["trials"]) if same else {}

    def _pictures(self, probe: OnnxProbe) -> list[tuple[float, Inside]]:
        """PSNR-Y and routing of every crop."""
        found = []
        for crop in self.crops:
            inside = probe.run({"lr": crop.lr})
            if not np.isfinite(inside.sr).all():
                raise InputError(f"the graph returned NaN or infinite values for the crop {crop.name}")
            found.append((psnr_y(to_uint8(inside.sr), crop.hr, self.artifact.scale), inside))
        return found

    @cached_property
    def reference(self) -> list[tuple[float, Inside]]:
        """PSNR-Y and routing of every crop in fp32."""
        return self._pictures(OnnxProbe(self.artifact.graph_file, self.architecture.routing, self.model))

    def measure(self, name: str, groups: Sequence[str], calibrator: str) -> Trial:
        """The trial *name*, measured now unless it was before."""
        if name not in self.kept:
            self._keep(name, self._measure(name, tuple(groups), calibrator))
        return self._trial(name)

    def timed_again(self, trial: Trial) -> Trial:
        """*trial* with a time of its own, from more rounds, measured now unless it was before."""
        name = f"{trial.name}, again"
        if name not in self.kept:
            rounds = max(LEAST_AGAIN, 3 * self.options.rounds)
            with self._file(trial.groups, trial.calibrator) as (path, _):
                self._keep(name, replace(trial, time=self._time(path, rounds)))
        return self._trial(name)

    def _keep(self, name: str, trial: Trial) -> None:
        self.kept[name] = asdict(trial)
        write_text(self.folder / STATE, json.dumps({"key": self.key, "trials": self.kept}, indent=1) + "\n")

    def _trial(self, name: str) -> Trial:
        return TypeAdapter(Trial).validate_python(self.kept[name])

    @contextmanager
    def _file(self, groups: tuple[str, ...], calibrator: str) -> Iterator[tuple[Path, int]]:
        """The file of a placement, and its bytes without what the disk adds."""
        recipe = Recipe(calibrator=calibrator, weight_bits=self.options.weight_bits)
        # Not checked, since the routing is measured too.
        recipe = recipe.model_copy(update={"groups": groups})
        request = Quantisation(self.options.precision, self.architecture, self.calibration, recipe)
        model, _ = quantised(self.model, request)
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "trial.onnx"
            onnx.save(model, path)
            yield path, model.ByteSize()

    def _time(self, path: Path, rounds: int) -> Interval:
        """The time of the file *path* over that of fp32."""
        files = path, self.artifact.graph_file
        run, base = (RUNTIMES[self.options.runtime](file, self.options.threads) for file in files)
        return compare_times(run, base, {"lr": self.crops[0].lr}, rounds)

    def _measure(self, name: str, groups: tuple[str, ...], calibrator: str) -> Trial:
        with self._file(groups, calibrator) as (path, size):
            # ONNX Runtime's CPU kernels would compute in fp32 what is fp16.
            rounds = self.options.precision in BACKEND.rounded
            pictures = self._pictures(OnnxProbe(path, self.architecture.routing, rounds=rounds))
            taken = self._time(path, self.options.rounds)
        pairs = [*zip(self.reference, pictures, strict=True)]
        changes = np.array([b[0] - a[0] for a, b in pairs])
        agreement = np.mean([_agreement(a[1], b[1]) for a, b in pairs], axis=0)
        return Trial(
            name=name,
            groups=groups,
            calibrator=calibrator,
            change=float(changes.mean()),
            error=float(changes.std(ddof=1) / np.sqrt(changes.size)),
            worst=float(changes.min()),
            agreement=tuple(float(share) for share in agreement),
            bytes=size,
            time=taken,
        )


def _agreement(reference: Inside, other: Inside) -> NDArray[np.float64]:
    """(layers,): share of impure tokens whose category is equal."""
    impure = slice(None) if reference.pure is None else ~reference.pure
    equal = (reference.categories == other.categories)[:, impure]
    return np.asarray(equal.mean(axis=1) if equal.size else np.ones(len(equal)), np.float64)


def compare_times(run: Run, base: Run, inputs: Inputs, rounds: int) -> Interval:
    """The time of *run* over that of *base*, which take turns, A B B A in every one of *rounds* rounds.

    Each is run twice and the second run timed, as caches are then its own.
    """
    ratios = []

    def timed(which: Run) -> float:
        which(inputs)
        begin = time.perf_counter()
        which(inputs)
        return time.perf_counter() - begin

    timed(run)
    for _ in range(rounds):
        first, second, third, fourth = timed(base), timed(run), timed(run), timed(base)
        ratios.append((second + third) / (first + fourth))
    return median_interval(ratios)
