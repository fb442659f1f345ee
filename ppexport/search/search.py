"""Which groups of layers to put in int8: each one's cost in dB and benefit in time, then placements, then a choice.

Steps, each kept as soon as it is measured, so that a search that was killed continues:

1. all groups, with every calibrator: the best calibrator is kept
2. every group alone
3. the similarity to the dictionary alone, which is never placed: what its flips would cost
4. placements: groups join in the order of what they save for what they cost
5. what looks fastest is timed again, in more rounds, until one that was is still surely faster, or none is

A search leaves a table, a plot, its figures as JSON, and the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ppexport.backends.onnx.collect import calibrate, is_of
from ppexport.device.artifact import Artifact, read_artifact
from ppexport.errors import InputError, change, counted
from ppexport.exporting import export
from ppexport.files import atomic_path, write_text
from ppexport.folders import Run, is_artifact
from ppexport.networks.card import Card
from ppexport.networks.load import card_of
from ppexport.quantize.calibration import load_calibration
from ppexport.quantize.crops import Crop, Source, used_pictures
from ppexport.quantize.recipe import CALIBRATORS, GROUPS, Recipe, write_recipe
from ppexport.search.trials import MARGIN, STATE, Search, Trial

FLOOR = 0.001
"""Costs below this many dB count as this much: crops differ by more."""
FP32, FOUND, CALIBRATION, RECIPE, TABLE, PICTURE = (
    "fp32", "artifact", "calibration.npz", "recipe.yaml", "pareto.md", "pareto.png",
)  # fmt: skip
RUN = Run(
    "search",
    (STATE, FP32, FOUND, CALIBRATION, f"{CALIBRATION}.partial", RECIPE, TABLE, PICTURE),
    lambda folder: is_artifact(folder / FP32),
)
COLUMNS = ["placement", "PSNR-Y change dB", "worst crop", "time of fp32's", "MB", "equal categories", "Pareto"]
Progress = Callable[[str, int, int], None]
"""Called with (what is done, steps done, steps in all)."""


@dataclass
class Outcome:
    """What a search found."""

    fp32_psnr: float
    fp32_bytes: int
    trials: list[Trial]
    chosen: Trial
    reason: str


def fp32_artifact(network: nn.Module, size: tuple[int, int], out: Path) -> Artifact:
    """The portable fp32 artifact of *network* for LR *size* (h, w) in the folder *out*, made unless it exists."""
    folder = out / FP32
    if is_artifact(folder):
        artifact = read_artifact(folder)
        if artifact.size == size and artifact.manifest.card_sha256 == card_of(network).hash():
            return artifact
    export(network, backend="onnx", size=size, out=folder, force=True)
    return read_artifact(folder)


def own_calibration(
    artifact: Artifact, sources: Sequence[Source], crops: Sequence[Crop], warnings: list[str], out: Path,
    progress: Progress,
) -> Path:  # fmt: skip
    """The calibration file in the folder *out*, measured on *crops* of *sources* unless it exists."""
    path = out / CALIBRATION
    if not (path.is_file() and is_of(load_calibration(path), artifact, sources, crops)):
        calibrate(artifact, sources, crops, warnings, path, lambda done, total: progress("calibration", done, total))
    return path


def order_of(alone: Sequence[Trial], fp32_bytes: int) -> list[Trial]:
    """The groups' trials, best first: what they save, time before size, for what they cost."""

    def worth(trial: Trial) -> float:
        saved = max(1 - trial.time.middle, 0.0) + 0.1 * max(1 - trial.bytes / fp32_bytes, 0.0)
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
        return min(faster, key=lambda t: t.time.middle), "the fastest within the budget"
    smallest = min(fitting, key=lambda t: (t.bytes, -t.change))
    return smallest, "none was surely faster than fp32, so the smallest within the budget"


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The placeable trials that no other beats in PSNR-Y, time and size at once, fastest first."""
    placeable = [((-t.change, t.time.middle, t.bytes), t) for t in trials if t.placeable]
    kept = [
        trial
        for own, trial in placeable
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other, _ in placeable)
    ]
    return sorted(kept, key=lambda t: t.time.middle)


def run_search(search: Search, progress: Progress) -> Outcome:
    """All steps of *search*. Raises InputError where nothing is within the budget."""
    # A file without a layer of the group would be fp32.
    groups = [name for name in GROUPS if name in search.architecture.int8_groups]
    stage, steps = f"{search.artifact.manifest.name}: placements", len(CALIBRATORS) + len(groups) + 1 + len(groups) - 2
    trials: list[Trial] = []

    def measured(name: str, placed: Sequence[str], calibrator: str) -> Trial:
        progress(stage, len(trials), steps)
        trials.append(search.measure(name, placed, calibrator))
        progress(stage, len(trials), steps)
        return trials[-1]

    whole = [measured(f"all, {c}", groups, c) for c in CALIBRATORS]
    best = max(whole, key=lambda t: t.change).calibrator
    alone = [measured(f"{g} alone", (g,), best) for g in groups]
    if routing := search.architecture.int8_routing:
        measured(f"{routing} alone", (routing,), best)
    size = search.model.ByteSize()
    ordered = [t.groups[0] for t in order_of(alone, size)]
    for count in range(2, len(ordered)):
        measured(f"{count} groups", [g for g in groups if g in ordered[:count]], best)
    chosen, reason = choose(trials, search.options.budget)
    sure: set[str] = set()
    while chosen.time.high < 1 and chosen.name not in sure:
        sure.add(chosen.name)
        trials[trials.index(chosen)] = search.timed_again(chosen)
        chosen, reason = choose(trials, search.options.budget)
    return Outcome(float(np.mean([p for p, _ in search.reference])), size, trials, chosen, reason)


def rows(outcome: Outcome) -> list[list[str]]:
    """One row for every trial, cells as in COLUMNS; the first is fp32."""
    best = {t.name for t in pareto(outcome.trials)}
    found = [["fp32", "0", "0", "1", f"{outcome.fp32_bytes / 1e6:.2f}", "100.0 %", ""]]
    for t in outcome.trials:
        time = f"{t.time.middle:.3f} ({t.time.low:.3f} to {t.time.high:.3f})"
        equal = f"{100 * np.mean(t.agreement):.1f} % (least {100 * min(t.agreement):.1f})"
        mark = "chosen" if t is outcome.chosen else "yes" if t.name in best else ""
        figures = f"{change(t.change, 4)} ± {t.error:.4f}", change(t.worst, 3), time, f"{t.bytes / 1e6:.2f}"
        found.append([t.name, *figures, equal, mark])
    return found


def summary(outcome: Outcome, search: Search, card: Card) -> str:
    """What was measured, in a few sentences above the table."""
    options, (height, width) = search.options, search.artifact.size
    return (
        f"{card.name} x{card.scale} in {options.precision}: PSNR-Y against fp32 ({outcome.fp32_psnr:.3f} dB) on "
        f"{counted(len(search.crops), 'crop')} of {height}x{width} LR pixels (HxW) from "
        f"{counted(len({c.source for c in search.crops}), 'picture')}, computed by ONNX Runtime; time on "
        f"{options.runtime}, {counted(options.threads, 'thread')}, {counted(options.rounds, 'round')} in turns with "
        f"fp32, median and bootstrap interval of 95 %; what looked fastest was timed again, in more. Within the "
        f"budget, {options.budget:g} dB, is what costs no more with {MARGIN:g} standard errors on top."
    )


def write_outcome(out: Path, outcome: Outcome, search: Search, card: Card, sources: Sequence[Source]) -> None:
    """Write the table, the plot and the recipe into the folder *out*."""
    write_text(out / TABLE, markdown(outcome, summary(outcome, search, card)))
    plot(out / PICTURE, outcome, f"{card.name}: {search.options.precision} on {search.options.runtime}")
    weights = None if card.weights is None else card.weights.sha256
    write_recipe(out / RECIPE, found_recipe(outcome, search, used_pictures(sources, search.crops), weights))


def markdown(outcome: Outcome, about: str) -> str:
    """The table in Markdown, with the sentences *about* above it."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows(outcome))
    chosen = f"Chosen: {', '.join(outcome.chosen.groups)} ({outcome.chosen.calibrator}), {outcome.reason}."
    return "\n\n".join([about, f"{head}\n{body}", chosen]) + "\n"


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """For JSON."""
    return {
        "fp32_psnr_y": outcome.fp32_psnr,
        "fp32_bytes": outcome.fp32_bytes,
        "chosen": outcome.chosen.name,
        "reason": outcome.reason,
        "pareto": [t.name for t in pareto(outcome.trials)],
        "trials": [asdict(t) for t in outcome.trials],
    }


def found_recipe(outcome: Outcome, search: Search, pictures: list[dict[str, str]], weights: str | None) -> Recipe:
    """The recipe that *search* found for *weights* (their hash), what was measured, and the *pictures* that chose."""
    chosen, options = outcome.chosen, search.options
    return Recipe(
        groups=chosen.groups,
        calibrator=chosen.calibrator,
        weight_bits=options.weight_bits,
        weights_sha256=weights,
        measured={
            "psnr_y_change_db": round(chosen.change, 4),
            "standard_error_db": round(chosen.error, 4),
            "precision": options.precision,
            "budget_db": options.budget,
            "crops": len(search.crops),
            "images": pictures,
            "runtime": options.runtime,
            "time_of_fp32s": [round(v, 3) for v in (chosen.time.middle, chosen.time.low, chosen.time.high)],
            "reason": outcome.reason,
            "calibration_sha256": search.calibration.sha256,
        },
    )


def plot(path: Path, outcome: Outcome, title: str) -> None:
    """Change of PSNR-Y against time and against size, the Pareto set in another colour, the choice ringed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    views: list[tuple[str, float, Callable[[Trial], float]]] = [
        ("time, fp32 = 1", 1.0, lambda t: t.time.middle),
        ("file, MB", outcome.fp32_bytes / 1e6, lambda t: t.bytes / 1e6),
    ]
    placeable = [t for t in outcome.trials if t.placeable]
    series: list[tuple[str, list[Trial], str, dict[str, Any]]] = [
        ("similarity, never placed", [t for t in outcome.trials if not t.placeable], "x", {"color": "tab:red"}),
        ("Pareto set", pareto(outcome.trials), "o", {"color": "tab:orange", "zorder": 4}),
        ("chosen", [outcome.chosen], "o", {"color": "tab:green", "markersize": 15, "fillstyle": "none"}),
    ]
    for axes, (label, fp32, value) in zip(figure.subplots(1, 2, sharey=True), views, strict=True):
        axes.axhline(0, color="0.8", linewidth=1)
        points = [value(t) for t in placeable], [t.change for t in placeable], [t.error for t in placeable]
        axes.errorbar(*points, fmt="o", color="tab:blue", ecolor="0.75", label="placement, ± standard error")
        axes.plot([fp32], [0], "s", color="black", label="fp32")
        for name, trials, marker, look in series:
            axes.plot([value(t) for t in trials], [t.change for t in trials], marker, label=name, **look)
        at = value(outcome.chosen), outcome.chosen.change
        axes.annotate(outcome.chosen.name, at, textcoords="offset points", xytext=(8, -14), fontsize=8)
        axes.set_xlabel(label)
    axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("change of PSNR-Y, dB")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
