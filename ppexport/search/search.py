"""Which groups of layers to put in int8: each one's cost in dB and benefit in time, then placements, then a choice.

PSNR-Y is measured on crops with ground truth and compared crop by crop with fp32; time on the chosen runtime, in turns
with fp32. Steps, each kept as soon as it is measured, so that a search that was killed goes on:

1. all groups, with every calibrator: the best calibrator is kept
2. every group alone
3. the similarity to the dictionary alone, which is never placed: what its flips would cost
4. placements: groups join in the order of what they save for what they cost
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from ppexport.backends.backend import Inside
from ppexport.backends.onnx import BACKEND
from ppexport.backends.onnx.collect import crop_inputs
from ppexport.backends.onnx.model_file import artifact_model
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.quantised import quantised
from ppexport.device.artifact import Artifact
from ppexport.device.picture import psnr_y, to_uint8
from ppexport.errors import InputError
from ppexport.files import sha256_text, write_text
from ppexport.folders import Run, is_artifact
from ppexport.networks.architecture import find_architecture
from ppexport.quantize.bundled import Quantisation
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.crops import Crop, pixel_hash
from ppexport.quantize.ranges import CALIBRATORS
from ppexport.quantize.recipe import GROUPS, ROUTING, Recipe
from ppexport.search.timing import Ratio, compare_times, open_in

BUDGET = 0.05
"""dB of PSNR-Y that a placement may cost on the search's crops, half of what the gate allows on an evaluation set."""
MARGIN = 1.645
"""Standard errors that are added to what a placement costs before it is compared with the budget: with 95 % confidence
it costs no more on pictures like these."""
FLOOR = 0.001
"""Costs below this many dB count as this much: crops differ by more."""
STATE = "search.json"
FP32 = "fp32"
RUN = Run(
    "search",
    (STATE, FP32, "artifact", "calibration.npz", "calibration.npz.partial", "recipe.yaml", "pareto.md", "pareto.png"),
    lambda folder: is_artifact(folder / FP32),
)
STATE_VERSION = 3
"""Of what that file holds."""
Progress = Callable[[str, int, int], None]


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
    time: Ratio
    """Against fp32, on the runtime."""

    @property
    def cost(self) -> float:
        """dB that it costs at most, with 95 % confidence: what the budget is for."""
        return MARGIN * self.error - self.change

    @property
    def placeable(self) -> bool:
        """Whether it may be chosen: routing stays in float."""
        return ROUTING not in self.groups


@dataclass(frozen=True)
class Wish:
    """What a search is asked for."""

    runtime: str
    threads: int
    rounds: int
    budget: float
    weight_bits: Literal[7, 8] = 8
    precision: str = "int8"
    """ "int8", or "mixed": every placement is measured with fp16 where the calibration allows it."""


@dataclass
class Outcome:
    """What a search found."""

    fp32_psnr: float
    fp32_bytes: int
    trials: list[Trial]
    chosen: Trial
    reason: str


class Search:
    """The measurements of one search, kept in *folder*."""

    def __init__(
        self, artifact: Artifact, calibration: Calibration, crops: Sequence[Crop], wish: Wish, folder: Path
    ) -> None:
        self.artifact, self.calibration, self.crops, self.wish, self.folder = artifact, calibration, crops, wish, folder
        self.model = artifact_model(artifact)
        self.architecture = find_architecture(artifact.manifest.arch)
        # A budget decides between placements, it does not change what they cost.
        asked = {name: value for name, value in asdict(wish).items() if name != "budget"}
        cut = [[c.name, pixel_hash(c.hr)] for c in crops]
        named = [STATE_VERSION, artifact.manifest.files, calibration.sha256, cut, asked]
        self.key = sha256_text(json.dumps(named))
        self.kept: dict[str, Any] = self._read()
        self.reference: list[tuple[float, Inside]] = []

    def _read(self) -> dict[str, Any]:
        """The measurements of the same search so far."""
        path = self.folder / STATE
        if path.is_file():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise InputError(f"{path} is damaged: remove it to search anew") from None
            if isinstance(data, dict) and data.get("key") == self.key and isinstance(data.get("trials"), dict):
                return dict(data["trials"])
        return {}

    def _pictures(self, debug: OnnxProbe) -> list[tuple[float, Inside]]:
        """PSNR-Y and routing of every crop."""
        found = []
        for crop in self.crops:
            inside = debug.run(crop_inputs(self.artifact, crop))
            if not np.isfinite(inside.sr).all():
                raise InputError(f"the graph returned NaN or infinite values for the crop {crop.name}")
            found.append((psnr_y(to_uint8(inside.sr), crop.hr, self.artifact.scale), inside))
        return found

    def prepare(self) -> None:
        """Measure fp32."""
        if not self.reference:
            self.reference = self._pictures(OnnxProbe(self.artifact.graph_file, self.architecture.routing, self.model))

    def measure(self, name: str, groups: Sequence[str], calibrator: str) -> Trial:
        """The trial *name*, measured now unless it was before."""
        if name not in self.kept:
            self.prepare()
            trial = self._measure(name, tuple(groups), calibrator)
            self.kept[name] = asdict(trial)
            write_text(self.folder / STATE, json.dumps({"key": self.key, "trials": self.kept}, indent=1) + "\n")
        data = dict(self.kept[name])
        return Trial(
            **{**data, "groups": tuple(data["groups"]), "agreement": tuple(data["agreement"])}
            | {"time": Ratio(**data["time"])}
        )

    def _measure(self, name: str, groups: tuple[str, ...], calibrator: str) -> Trial:
        recipe = Recipe(calibrator=calibrator, weight_bits=self.wish.weight_bits)
        model, _ = quantised(
            self.model, Quantisation(self.wish.precision, self.architecture, self.calibration, recipe), groups
        )
        # ONNX Runtime's CPU kernels would compute in fp32 what is fp16.
        rounds = self.wish.precision in BACKEND.rounded
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "trial.onnx"
            onnx.save(model, path)
            pictures = self._pictures(OnnxProbe(path, self.architecture.routing, rounds=rounds))
            run, base = (open_in(self.wish.runtime, p, self.wish.threads) for p in (path, self.artifact.graph_file))
        changes = np.array([b[0] - a[0] for a, b in zip(self.reference, pictures, strict=True)])
        agreement = np.mean([_agreement(a[1], b[1]) for a, b in zip(self.reference, pictures, strict=True)], axis=0)
        return Trial(
            name,
            groups,
            calibrator,
            float(changes.mean()),
            float(changes.std(ddof=1) / np.sqrt(changes.size)),
            float(changes.min()),
            tuple(float(a) for a in agreement),
            model.ByteSize(),
            compare_times(run, base, crop_inputs(self.artifact, self.crops[0]), self.wish.rounds),
        )


def _agreement(reference: Inside, other: Inside) -> NDArray[np.float64]:
    """(layers,): share of impure tokens whose category is equal."""
    impure = slice(None) if reference.pure is None else ~reference.pure
    equal = (reference.categories == other.categories)[:, impure]
    return np.asarray(equal.mean(axis=1) if equal.size else np.ones(len(equal)), np.float64)


def order_of(alone: Sequence[Trial], fp32_bytes: int) -> list[Trial]:
    """The groups' trials, best first: what they save, time before size, for what they cost."""

    def worth(trial: Trial) -> float:
        saved = max(1 - trial.time.median, 0.0) + 0.1 * max(1 - trial.bytes / fp32_bytes, 0.0)
        return saved / max(-trial.change, FLOOR)

    return sorted(alone, key=worth, reverse=True)


def choose(trials: Sequence[Trial], budget: float) -> tuple[Trial, str]:
    """The fastest placement within *budget* that is surely faster than fp32, else the smallest within it, and why.

    A placement is within the budget if its `cost` is. Raises InputError where none is.
    """
    fitting = [t for t in trials if t.placeable and t.cost <= budget]
    if not fitting:
        best = min((t for t in trials if t.placeable), key=lambda t: t.cost)
        raise InputError(
            f"no placement costs at most {budget:g} dB; the best, {best.name}, costs {-best.change:.3f} dB, and up to "
            f"{best.cost:.3f} dB within its margin of {MARGIN:g} standard errors: measure more crops (--crops), raise "
            "--budget, or calibrate on more pictures"
        )
    faster = [t for t in fitting if t.time.high < 1]
    if faster:
        return min(faster, key=lambda t: t.time.median), "the fastest within the budget"
    smallest = min(fitting, key=lambda t: (t.bytes, -t.change))
    return smallest, "none was surely faster than fp32, so the smallest within the budget"


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The placeable trials that no other beats in PSNR-Y, time and size at once, fastest first."""
    placeable = [t for t in trials if t.placeable]

    def beaten(t: Trial) -> bool:
        return any(
            o.change >= t.change and o.time.median <= t.time.median and o.bytes <= t.bytes and o is not t
            and (o.change, o.time.median, o.bytes) != (t.change, t.time.median, t.bytes)
            for o in placeable
        )  # fmt: skip

    return sorted((t for t in placeable if not beaten(t)), key=lambda t: t.time.median)


def run_search(search: Search, progress: Progress) -> Outcome:
    """All steps of *search*. Raises InputError where nothing is within the budget."""
    steps = len(CALIBRATORS) + len(GROUPS) + 1 + len(GROUPS) - 2
    done = 0

    def measured(name: str, groups: Sequence[str], calibrator: str) -> Trial:
        nonlocal done
        progress(f"{search.artifact.manifest.name}: placements", done, steps)
        trial = search.measure(name, groups, calibrator)
        done += 1
        progress(f"{search.artifact.manifest.name}: placements", done, steps)
        return trial

    whole = [measured(f"all, {c}", GROUPS, c) for c in CALIBRATORS]
    best = max(whole, key=lambda t: t.change)
    alone = [measured(f"{g} alone", (g,), best.calibrator) for g in GROUPS]
    routing = measured(f"{ROUTING} alone", (ROUTING,), best.calibrator)
    size = search.model.ByteSize()
    ordered = [t.groups[0] for t in order_of(alone, size)]
    joined = []
    for count in range(2, len(ordered)):
        groups = tuple(g for g in GROUPS if g in ordered[:count])
        joined.append(measured(f"{count} groups", groups, best.calibrator))
    trials = [*whole, *alone, routing, *joined]
    chosen, reason = choose(trials, search.wish.budget)
    search.prepare()
    return Outcome(float(np.mean([p for p, _ in search.reference])), size, trials, chosen, reason)
