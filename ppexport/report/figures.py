"""Plots as SVG texts that take the colour of the page's text, so that they fit a light and a dark page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppexport.errors import require
from ppexport.profile.by_layer import branches
from ppexport.profile.result import Profile
from ppexport.report.material import Material

TEXT = "#010203"
"""Stands for the colour of the page's text until the SVG is finished."""
COLORS = ("#3b82c4", "#d9822b", "#3f9f5f", "#b05fb0", "#c0504d", "#7f8c8d", "#8a7f2b", "#4aa3a3", "#999999")
SIZE = (4.8, 3.0)
"""Inches: legible on a phone, where it is shown a little smaller."""
BINS = 40
POINTS = 2000
"""Samples that a time series draws, at most."""


class Plot:
    """One figure; `svg()` finishes it."""

    def __init__(self, height: float = SIZE[1]) -> None:
        require("matplotlib", "report")
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        # Names in files are texts, never formulas; and the same page comes out of the same files.
        self._context = rc_context({"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "ppexport"})
        self._context.__enter__()
        self.figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        self.figure.patch.set_alpha(0)
        self.axes = self.figure.subplots()
        self.axes.set_facecolor("none")

    def legend_above(self, columns: int) -> None:
        """Put the legend outside, where nothing lies under it."""
        self.figure.legend(loc="outside upper center", ncols=columns, fontsize=7.5, frameon=False, labelcolor=TEXT)

    def medians(self, x: Any, entries: Sequence[dict[str, Any]], label: str, **style: Any) -> None:
        """Draw the median and the quartiles of every entry's "ms" over *x*."""
        low, ms, high = np.array([np.percentile(entry["ms"], (25, 50, 75)) for entry in entries]).T
        self.axes.errorbar(x, ms, (ms - low, high - ms), markersize=4, color=COLORS[0], elinewidth=0.8, **style)
        self.axes.set_xlabel(label)
        self.axes.set_ylabel("ms: median and quartiles")
        self.axes.set_ylim(bottom=0)

    def svg(self) -> str:
        """The SVG element."""
        for axes in self.figure.axes:
            axes.tick_params(colors=TEXT, labelsize=9)
            for spine in axes.spines.values():
                spine.set(color=TEXT, alpha=0.4)
            for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
                label.set(color=TEXT, fontsize=9)
            legend = axes.get_legend()
            if legend is not None:
                legend.get_frame().set_alpha(0)
                for entry in legend.get_texts():
                    entry.set_color(TEXT)
        out = io.StringIO()
        with warnings.catch_warnings():
            # Texts stay texts, which the browser draws in a font of its own.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        self._context.__exit__(None, None, None)
        text = out.getvalue()
        text = text[text.index("<svg") :].replace(TEXT, "currentColor")
        # Metadata names addresses, and a fixed size would not shrink.
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        return re.sub(r"<svg[^>]*>", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), text, count=1)


def _short(name: str, length: int = 44) -> str:
    """*name*, cut where it is too long for a legend."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _visible(ms: Sequence[Any]) -> float:
    """Milliseconds up to which a plot goes: one query that was held up for minutes would hide all others."""
    return max(min(float(np.percentile(values, 99)), 4 * float(np.median(values))) for values in ms) * 1.1


def distributions(profile: Profile) -> str:
    """Histograms of the latencies of every subject, with p50 and p90."""
    plot = Plot()
    ms = [columns["ns"] / 1e6 for columns in profile.samples]
    top = _visible(ms)
    low = min(float(values.min()) for values in ms) * 0.95
    edges = np.linspace(low, max(top, low + 1e-6), BINS).tolist()
    for index, (subject, values) in enumerate(zip(profile.subjects, ms, strict=True)):
        color = COLORS[index % len(COLORS)]
        plot.axes.hist(np.minimum(values, edges[-1]), edges, color=color, alpha=0.55, label=_short(subject["name"]))
        for figure, style in (("p50_ms", "-"), ("p90_ms", "--")):
            plot.axes.axvline(subject["summary"][figure], color=color, linestyle=style, linewidth=1.4)
    plot.axes.set_xlabel("ms a query: p50 solid, p90 dashed; the last bar holds all above")
    plot.axes.set_ylabel("queries")
    plot.axes.legend(fontsize=8)
    return plot.svg()


def time_series(profile: Profile) -> str:
    """Latency over time, and temperature where the machine shows it."""
    plot = Plot()
    top = _visible([columns["ns"] / 1e6 for columns in profile.samples])
    begin = min(int(columns["t_ns"][0]) for columns in profile.samples)
    for index, (subject, columns) in enumerate(zip(profile.subjects, profile.samples, strict=True)):
        step = -(-len(columns["ns"]) // POINTS)
        t, ms = (columns["t_ns"][::step] - begin) / 1e9, np.minimum(columns["ns"][::step] / 1e6, top)
        plot.axes.plot(t, ms, ".", markersize=2.5, color=COLORS[index % len(COLORS)], label=_short(subject["name"]))
    plot.axes.set_xlabel("s; what lies on the upper edge took longer")
    plot.axes.set_ylabel("ms a query")
    plot.axes.set_ylim(0, top * 1.05)
    plot.axes.legend(fontsize=8, loc="lower right")
    sensors = profile.data["sensors"]
    zones = [name for name in sensors if name.startswith("celsius.")]
    if zones:
        right = plot.axes.twinx()
        for zone in zones[:4]:
            pairs = [((t - begin) / 1e9, c) for t, c in zip(sensors["t"], sensors[zone], strict=False) if c is not None]
            right.plot(*zip(*pairs, strict=True), color="#c0504d", linewidth=1, alpha=0.8)
        right.set_ylabel("°C (lines)")
    return plot.svg()


def layer_bars(layers: Sequence[dict[str, Any]]) -> str:
    """Time by branch of every profile, one bar each, as shares."""
    plot = Plot(1.5 + 0.42 * len(layers))
    for row, data in enumerate(layers):
        left = 0.0
        for index, branch in enumerate(branches()):
            share = 100 * data["branches"].get(branch, 0.0) / max(data["total_ms"], 1e-12)
            label = branch if row == 0 else None
            plot.axes.barh(row, share, left=left, color=COLORS[index % len(COLORS)], label=label, height=0.65)
            if share > 6:
                style: Any = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
                plot.axes.text(left + share / 2, row, f"{share:.0f}", **style)
            left += share
    plot.axes.set_yticks(range(len(layers)), [_short(d["subject"]["name"], 26) for d in layers])
    plot.axes.invert_yaxis()
    plot.axes.set_xlim(0, 100)
    plot.axes.set_xlabel("% of the time of all operations")
    plot.legend_above(3)
    return plot.svg()


def block_bars(data: dict[str, Any]) -> str:
    """Time by block, split into branches."""
    plot = Plot()
    blocks = sorted(data["cells"])
    base = np.zeros(len(blocks))
    for index, branch in enumerate(branches()):
        values = np.array([data["cells"][block].get(branch, 0.0) for block in blocks])
        if values.any():
            plot.axes.bar(range(len(blocks)), values, bottom=base, color=COLORS[index % len(COLORS)], label=branch)
            base += values
    plot.axes.set_xticks(range(len(blocks)), [f"block {b}" if b.isdigit() else b for b in blocks], fontsize=8)
    plot.axes.set_ylabel("ms")
    plot.legend_above(3)
    return plot.svg()


def pure_share(data: dict[str, Any]) -> str:
    """Median latency of every image over its pure share, and the line."""
    plot = Plot()
    shares = np.array([image["pure_share"] for image in data["images"]], np.float64)
    if data["line"]:
        zero, slope = (data["line"][name]["middle"] for name in ("at_zero_ms", "slope_ms"))
        plot.axes.plot([0, 100], [zero, zero + slope], color=COLORS[1])
    plot.medians(100 * shares, data["images"], "% pure pixels", fmt="o")
    return plot.svg()


def capacities(data: dict[str, Any]) -> str:
    """Latency over the capacity."""
    plot = Plot()
    slots = [entry["capacity"] for entry in data["capacities"]]
    plot.medians(slots, data["capacities"], "slots of category attention", marker="o")
    return plot.svg()


def pareto_points(material: Material) -> list[dict[str, Any]]:
    """Every subject whose very file a parity run judged: its name, ms, dB, MB, and whether another one beats it."""
    quality: dict[str, float] = {}
    for parity in material.parities:
        if parity.psnr_y is not None:
            quality.update(dict.fromkeys(map(str, parity.data["files"].values()), parity.psnr_y))
    points = [
        {"name": subject["name"], "ms": subject["summary"]["p90_ms"], "db": decibel[0], "mb": subject["bytes"] / 1e6}
        for profile in material.profiles
        for subject in profile.subjects
        if (decibel := [quality[digest] for digest in subject["files"].values() if digest in quality])
    ]
    for point in points:
        own = (point["ms"], -point["db"], point["mb"])
        others = [(o["ms"], -o["db"], o["mb"]) for o in points]
        point["beaten"] = any(o != own and all(a <= b for a, b in zip(o, own, strict=True)) for o in others)
    return points


def pareto(points: Sequence[dict[str, Any]]) -> str:
    """dB over ms, the area of a point its size; a ring is round those that no other one beats."""
    plot = Plot()
    for index, point in enumerate(points):
        color = COLORS[index % len(COLORS)]
        plot.axes.scatter(point["ms"], point["db"], s=14 * point["mb"] + 10, color=color, alpha=0.7,
                          edgecolors="none" if point["beaten"] else TEXT, label=_short(point["name"]))  # fmt: skip
    plot.axes.set_xlabel("p90 in ms; area: MB; ringed: beaten by none")
    plot.axes.set_ylabel("PSNR-Y in dB")
    plot.axes.margins(0.25)
    plot.axes.ticklabel_format(axis="y", useOffset=False)
    # A legend's dots among the points would look like points.
    plot.legend_above(2)
    return plot.svg()
