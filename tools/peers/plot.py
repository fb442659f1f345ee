"""The comparison as a picture: bars of all programs, and time over slots."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peers.lineup import BOUND, PEERS
from peers.report import milliseconds
from peers.result import Comparison
from ppexport.device.artifact import ONNX_FLAVOURS
from ppexport.errors import UnavailableError
from ppexport.files import atomic_path
from ppexport.networks.atd.cost import count_macs

COLORS = {"ours": "#1f77b4", "plain": "#7f7f7f", "torch": "#d9822b", "openvino": "#6a51a3", BOUND: "#2ca02c"}
FLAVOUR_COLORS = dict(zip(ONNX_FLAVOURS, ("#6baed6", "#08519c"), strict=False))


def require_matplotlib() -> None:
    """Raise UnavailableError, before anything is measured, where no plot can be drawn."""
    if find_spec("matplotlib") is None:
        raise UnavailableError("matplotlib is not installed: pip install 'ppexport[test]'")


def color_of(key: str) -> str:
    """The colour of a bar."""
    family = key.partition("-")[0]
    return COLORS.get("ours" if family in ONNX_FLAVOURS else family, "#333333")


def draw_bars(axes: Any, result: Comparison) -> None:
    """Median, p10 and p90 of all programs, the first on top."""
    keys = result.peers()
    spreads = [result.outcome.spread(PEERS, key) for key in keys]
    for i, (key, spread) in enumerate(zip(keys, spreads, strict=True)):
        axes.barh(i, spread.median, color=color_of(key), height=0.7)
        axes.plot([spread.p10, spread.p90], [i, i], color="black", linewidth=1.2)
        axes.text(max(spread.p90, spread.median), i, f"  {milliseconds(spread.median)}", va="center", fontsize=9)
    axes.set_yticks(range(len(keys)), [result.outcome.names[key] for key in keys], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms per picture: median, and p10 to p90 as a line")
    h, w = result.size
    axes.set_title(f"{result.model}, LR {h}x{w}, {result.threads} threads", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def draw_capacities(axes: Any, result: Comparison) -> None:
    """Time over slots, as a share of the dense artefact's, beside the multiply-adds."""
    scale, slots = result.scale, []
    for flavour in ONNX_FLAVOURS:
        points = result.capacities(flavour)
        slots += [count for count, _ in points]
        intervals = [result.outcome.relative(flavour, key) for _, key in points]
        middle = [100 * i.middle for i in intervals if i is not None]
        errors = [
            [100 * (i.middle - i.low) for i in intervals if i],
            [100 * (i.high - i.middle) for i in intervals if i],
        ]
        if points:
            counts = [count for count, _ in points]
            color = FLAVOUR_COLORS.get(flavour, "black")
            axes.errorbar(counts, middle, errors, marker="o", capsize=3, color=color, label=f"time, {flavour}")
    dense = count_macs(scale, result.size).pure
    counts = sorted(set(slots))
    axes.plot(
        counts,
        [100 * count_macs(scale, result.size, count).pure / dense for count in counts],
        linestyle="--",
        color=COLORS[BOUND],
        label="multiply-adds",
    )
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_xlabel("slots of category attention")
    axes.set_ylabel("% of dense ATD-light of the same flavour")
    axes.set_title("Capacity set", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def plot(result: Comparison, target: Path) -> None:
    """Draw *result* into the PNG *target*, atomically."""
    require_matplotlib()
    from matplotlib.figure import Figure

    with_sets = any(result.capacities(flavour) for flavour in ONNX_FLAVOURS)
    height = 1.6 + 0.36 * len(result.peers())
    figure = Figure(figsize=(14 if with_sets else 9, max(height, 4.5)), layout="constrained", facecolor="white")
    if with_sets:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        draw_capacities(right, result)
    else:
        left = figure.subplots()
    draw_bars(left, result)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
