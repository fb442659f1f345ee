"""What a search leaves: the table, the plot, the figures as JSON, and the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ppexport.files import atomic_path
from ppexport.quantize.recipe import Recipe
from ppexport.search.search import Outcome, Search, Trial, pareto

COLUMNS = ["placement", "PSNR-Y change dB", "worst crop", "time of fp32's", "MB", "equal categories", "Pareto"]
TABLE, PICTURE = "pareto.md", "pareto.png"


def rows(outcome: Outcome) -> list[list[str]]:
    """One row for every trial, cells as in COLUMNS; the first is fp32."""
    best = {t.name for t in pareto(outcome.trials)}
    first = ["fp32", "0", "0", "1", f"{outcome.fp32_bytes / 1e6:.2f}", "100.0 %", ""]
    return [
        first,
        *(_row(t, "chosen" if t is outcome.chosen else "yes" if t.name in best else "") for t in outcome.trials),
    ]


def _row(t: Trial, verdict: str) -> list[str]:
    mean = sum(t.agreement) / len(t.agreement)
    return [
        t.name,
        f"{t.change:+.4f} ± {t.error:.4f}",
        f"{t.worst:+.3f}",
        f"{t.time.median:.3f} ({t.time.low:.3f} to {t.time.high:.3f})",
        f"{t.bytes / 1e6:.2f}",
        f"{100 * mean:.1f} % (least {100 * min(t.agreement):.1f})",
        verdict,
    ]


def markdown(outcome: Outcome, about: Sequence[str]) -> str:
    """The table in Markdown, with the sentences *about* above it."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows(outcome))
    chosen = f"Chosen: {', '.join(outcome.chosen.groups)} ({outcome.chosen.calibrator}), {outcome.reason}."
    return "\n\n".join([*about, f"{head}\n{body}", chosen]) + "\n"


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


def found_recipe(
    outcome: Outcome, search: Search, pictures: Sequence[Mapping[str, str]], weights: str | None
) -> Recipe:
    """The recipe that *search* found for *weights* (their hash), what was measured, and the *pictures* that chose."""
    chosen, wish = outcome.chosen, search.wish
    return Recipe(
        groups=chosen.groups,
        calibrator=chosen.calibrator,
        weight_bits=wish.weight_bits,
        weights_sha256=weights,
        measured={
            "psnr_y_change_db": round(chosen.change, 4),
            "standard_error_db": round(chosen.error, 4),
            "precision": wish.precision,
            "budget_db": wish.budget,
            "crops": len(search.crops),
            "images": [dict(picture) for picture in pictures],
            "runtime": wish.runtime,
            "time_of_fp32s": [round(v, 3) for v in (chosen.time.median, chosen.time.low, chosen.time.high)],
            "reason": outcome.reason,
            "calibration_sha256": search.calibration.sha256,
        },
    )


def plot(path: Path, outcome: Outcome, title: str) -> None:
    """Change of PSNR-Y against time and against size, the Pareto set joined, the choice ringed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    best = pareto(outcome.trials)
    placeable = [t for t in outcome.trials if t.placeable]
    routing = [t for t in outcome.trials if not t.placeable]
    views: list[tuple[str, float, Callable[[Trial], float]]] = [
        ("time, fp32 = 1", 1.0, lambda t: t.time.median),
        ("file, MB", outcome.fp32_bytes / 1e6, lambda t: t.bytes / 1e6),
    ]
    for axes, (label, fp32, value) in zip(figure.subplots(1, 2, sharey=True), views, strict=True):
        axes.axhline(0, color="0.8", linewidth=1)
        axes.errorbar(
            [value(t) for t in placeable], [t.change for t in placeable], [t.error for t in placeable],
            fmt="o", color="tab:blue", ecolor="0.75", label="placement, ± standard error",
        )  # fmt: skip
        axes.plot(
            [value(t) for t in routing],
            [t.change for t in routing],
            "x",
            color="tab:red",
            label="similarity, never placed",
        )
        line = sorted(best, key=value)
        axes.plot(
            [value(t) for t in line], [t.change for t in line], "o", color="tab:orange", zorder=4, label="Pareto set"
        )
        axes.plot([fp32], [0], "s", color="black", label="fp32")
        chosen = outcome.chosen
        axes.plot(
            [value(chosen)], [chosen.change], "o", markersize=15, fillstyle="none", color="tab:green", label="chosen"
        )
        axes.annotate(
            chosen.name, (value(chosen), chosen.change), textcoords="offset points", xytext=(8, -14), fontsize=8
        )
        axes.set_xlabel(label)
    axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("change of PSNR-Y, dB")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
