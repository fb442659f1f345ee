"""Plots as SVG texts that take the colour of the page's text, so that they fit a light and a dark page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np

from ppexport.parity.contest import Contest, Measured
from ppexport.profile.by_layer import branches
from ppexport.profile.result import Profile
from ppexport.report.material import Material

P = ParamSpec("P")
TEXT = "#010203"
"""Stands for the colour of the page's text until the SVG is finished."""
COLORS = ("#3b82c4", "#d9822b", "#3f9f5f", "#b05fb0", "#c0504d", "#7f8c8d", "#8a7f2b", "#4aa3a3", "#999999")
SIZE = (4.8, 3.0)
"""Inches: legible on a phone, where it is shown a little smaller."""
LOOK: Any = {
    # Names in files are texts, never formulas; and the same page comes out of the same files.
    **{"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "ppexport"},
    **{"figure.constrained_layout.use": True, "figure.facecolor": "none", "axes.facecolor": "none"},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
    **{"axes.edgecolor": f"{TEXT}66", "legend.fontsize": 8, "legend.framealpha": 0},
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize"), 9),
}
BINS = 40
POINTS = 2000
"""Samples that a time series draws, at most."""


def drawn(draw: Callable[Concatenate[Any, P], None]) -> Callable[P, str]:
    """Make a function that returns an SVG element of *draw*, which draws into the axes that it is given first."""

    @wraps(draw)
    def plot(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        out = io.StringIO()
        with rc_context(LOOK), warnings.catch_warnings():
            figure = Figure(figsize=SIZE)
            draw(figure.subplots(), *args, **kwargs)
            # Texts stay texts, which the browser draws in a font of its own.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        text = text[text.index("<svg") :].replace(TEXT, "currentColor")
        # Metadata names addresses, and a fixed size would not shrink.
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        return re.sub(r"<svg[^>]*>", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), text, count=1)

    return plot


def _legend_above(axes: Any, columns: int) -> None:
    """Put the legend outside, where nothing lies under it."""
    axes.figure.legend(loc="outside upper center", ncols=columns, fontsize=7.5, frameon=False)


def _draw_medians(axes: Any, x: Any, entries: Sequence[dict[str, Any]], label: str, **style: Any) -> None:
    """Draw the median and the quartiles of every entry's "ms" over *x*."""
    low, ms, high = np.array([np.percentile(entry["ms"], (25, 50, 75)) for entry in entries]).T
    axes.errorbar(x, ms, (ms - low, high - ms), markersize=4, color=COLORS[0], elinewidth=0.8, **style)
    axes.set_xlabel(label)
    axes.set_ylabel("ms: median and quartiles")
    axes.set_ylim(bottom=0)


def _short(name: str, length: int = 44) -> str:
    """*name*, cut where it is too long for a legend."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _visible(ms: Sequence[Any]) -> float:
    """Milliseconds up to which a plot goes: one query that was held up for minutes would hide all others."""
    return max(min(float(np.percentile(values, 99)), 4 * float(np.median(values))) for values in ms) * 1.1


@drawn
def distributions(axes: Any, profile: Profile) -> None:
    """Histograms of the latencies of every subject, with p50 and p90."""
    ms = [columns["ns"] / 1e6 for columns in profile.samples]
    low = min(float(values.min()) for values in ms) * 0.95
    edges = np.linspace(low, max(_visible(ms), low + 1e-6), BINS).tolist()
    for index, (subject, values) in enumerate(zip(profile.subjects, ms, strict=True)):
        color = COLORS[index % len(COLORS)]
        axes.hist(np.minimum(values, edges[-1]), edges, color=color, alpha=0.55, label=_short(subject["name"]))
        for figure, style in (("p50_ms", "-"), ("p90_ms", "--")):
            axes.axvline(subject["summary"][figure], color=color, linestyle=style, linewidth=1.4)
    axes.set_xlabel("ms a query: p50 solid, p90 dashed; the last bar holds all above")
    axes.set_ylabel("queries")
    axes.legend()


@drawn
def time_series(axes: Any, profile: Profile) -> None:
    """Latency over time, and temperature where the machine shows it."""
    top = _visible([columns["ns"] / 1e6 for columns in profile.samples])
    begin = min(int(columns["t_ns"][0]) for columns in profile.samples)
    for index, (subject, columns) in enumerate(zip(profile.subjects, profile.samples, strict=True)):
        step = -(-len(columns["ns"]) // POINTS)
        t, ms = (columns["t_ns"][::step] - begin) / 1e9, np.minimum(columns["ns"][::step] / 1e6, top)
        axes.plot(t, ms, ".", markersize=2.5, color=COLORS[index % len(COLORS)], label=_short(subject["name"]))
    axes.set_xlabel("s; what lies on the upper edge took longer")
    axes.set_ylabel("ms a query")
    axes.set_ylim(0, top * 1.05)
    axes.legend(loc="lower right")
    sensors = profile.data["sensors"]
    zones = [name for name in sensors if name.startswith("celsius.")]
    if zones:
        right = axes.twinx()
        for zone in zones[:4]:
            pairs = [((t - begin) / 1e9, c) for t, c in zip(sensors["t"], sensors[zone], strict=False) if c is not None]
            right.plot(*zip(*pairs, strict=True), color="#c0504d", linewidth=1, alpha=0.8)
        right.set_ylabel("°C (lines)")


@drawn
def layer_bars(axes: Any, layers: Sequence[dict[str, Any]]) -> None:
    """Time by branch of every profile, one bar each, as shares."""
    axes.figure.set_figheight(1.5 + 0.42 * len(layers))
    for row, data in enumerate(layers):
        left = 0.0
        for index, branch in enumerate(branches()):
            share = 100 * data["branches"].get(branch, 0.0) / max(data["total_ms"], 1e-12)
            label = branch if row == 0 else None
            axes.barh(row, share, left=left, color=COLORS[index % len(COLORS)], label=label, height=0.65)
            if share > 6:
                axes.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color="white")
            left += share
    axes.set_yticks(range(len(layers)), [_short(d["subject"]["name"], 26) for d in layers])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time of all operations")
    _legend_above(axes, 3)


@drawn
def block_bars(axes: Any, data: dict[str, Any]) -> None:
    """Time by block, split into branches."""
    blocks = sorted(data["cells"])
    base = np.zeros(len(blocks))
    for index, branch in enumerate(branches()):
        values = np.array([data["cells"][block].get(branch, 0.0) for block in blocks])
        if values.any():
            axes.bar(range(len(blocks)), values, bottom=base, color=COLORS[index % len(COLORS)], label=branch)
            base += values
    axes.set_xticks(range(len(blocks)), [f"block {b}" if b.isdigit() else b for b in blocks])
    axes.set_ylabel("ms")
    _legend_above(axes, 3)


@drawn
def pure_share(axes: Any, data: dict[str, Any]) -> None:
    """Median latency of every image over its pure share, and the line."""
    shares = np.array([image["pure_share"] for image in data["images"]], np.float64)
    if data["line"]:
        zero, slope = (data["line"][name]["middle"] for name in ("at_zero_ms", "slope_ms"))
        axes.plot([0, 100], [zero, zero + slope], color=COLORS[1])
    _draw_medians(axes, 100 * shares, data["images"], "% pure pixels", fmt="o")


@drawn
def capacities(axes: Any, data: dict[str, Any]) -> None:
    """Latency over the capacity."""
    slots = [entry["capacity"] for entry in data["capacities"]]
    _draw_medians(axes, slots, data["capacities"], "slots of category attention", marker="o")


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
    figures = [(point["ms"], -point["db"], point["mb"]) for point in points]
    for point, own in zip(points, figures, strict=True):
        point["beaten"] = any(o != own and all(a <= b for a, b in zip(o, own, strict=True)) for o in figures)
    return points


@drawn
def pareto(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    """dB over ms, the area of a point its size; a ring is round those that no other one beats."""
    for index, point in enumerate(points):
        ring = "none" if point["beaten"] else TEXT
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "alpha": 0.7, "edgecolors": ring}
        axes.scatter(point["ms"], point["db"], s=14 * point["mb"] + 10, label=_short(point["name"]), **style)
    axes.set_xlabel("p90 in ms; area: MB; ringed: beaten by none")
    axes.set_ylabel("PSNR-Y in dB")
    axes.margins(0.25)
    axes.ticklabel_format(axis="y", useOffset=False)
    # A legend's dots among the points would look like points.
    _legend_above(axes, 2)


@drawn
def quality_against_time(axes: Any, contest: Contest) -> None:
    """Mean PSNR-Y of every subject over its seconds for a picture."""
    _draw_labelled(axes, [(m, m.median_seconds) for m in contest.measured], "s a picture, median")


@drawn
def quality_against_macs(axes: Any, contest: Contest) -> None:
    """Mean PSNR-Y over the multiply-adds for a picture, of every subject whose multiply-adds are known."""
    points = [(m, None if m.mean_macs is None else m.mean_macs / 1e9) for m in contest.measured]
    _draw_labelled(axes, points, "G multiply-adds a picture, mean")


FAR = 10.0
"""The largest figure over the smallest, from which an axis is logarithmic so that the small do not lie together."""
LETTERS = (34, 8, 0.62)
"""Of a name beside a point: how many, their height in points, and their width, of the height. The width is an estimate,
since the browser draws them in a font of its own."""
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 2.5), (0, -2.5), (0, 4), (0, -4))
"""Where the middle of a name may be, in halves of its own size from its point; the first four are beside it."""
Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""


def _draw_labelled(axes: Any, points: Sequence[tuple[Measured, float | None]], label: str) -> None:
    """Draw PSNR-Y over what is known of *points*: artifacts square, each name where it covers the least of others."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xlabel(label)
    axes.set_ylabel("PSNR-Y in dB")
    # Colours by all of them, so that a subject has the same one in both plots.
    known = [(COLORS[i % len(COLORS)], m, x) for i, (m, x) in enumerate(points) if x is not None]
    if not known:
        return
    xs, ys = [x for *_, x in known], [m.mean.psnr_y for _, m, _ in known]
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high, margin = min(ys), max(ys), max(max(ys) - min(ys), 0.02)
    axes.set_ylim(low - 0.25 * margin, high + 0.25 * margin)
    if max(xs) >= FAR * min(xs):
        axes.set_xscale("log")
        # Numbers, since the powers of ten that are usual there are formulas.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    else:
        axes.set_xlim(0, max(xs) * 1.15)
    axes.grid(alpha=0.2)
    axes.figure.draw_without_rendering()
    places: list[Any] = axes.transData.transform(list(zip(xs, ys, strict=True))).tolist()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    (most, size, width), pixels = LETTERS, axes.figure.dpi / 72
    for (color, measured, x), y, place in zip(known, ys, places, strict=True):
        text = _short(measured.contender.label, most)
        half = (width * size * pixels * len(text) / 2, 0.6 * size * pixels)
        box, beside = _place(place, half, axes.get_window_extent().extents, taken)
        taken.append(box)
        middle, edge = axes.transData.inverted().transform(
            [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), [np.clip(place[i], box[i], box[i + 2]) for i in (0, 1)]]
        )
        marker = "o" if measured.contender.facts.get("backend") is None else "s"
        axes.plot(x, y, marker, color=color, markersize=6)
        if not beside:
            # A name could be taken for another point's.
            axes.plot((x, edge[0]), (y, edge[1]), color=color, linewidth=0.8, zorder=1)
        axes.text(*middle, text, fontsize=size, ha="center", va="center", in_layout=False)


def _place(point: Sequence[float], half: tuple[float, float], frame: Box, taken: Sequence[Box]) -> tuple[Box, bool]:
    """The box of a name of twice *half* its size at *point*, inside *frame* if it can be; and whether it is beside."""
    found: list[tuple[float, Box, bool]] = []
    for index, (dx, dy) in enumerate(AROUND):
        x, y = point[0] + dx * (8 + half[0]), point[1] + dy * (5 + half[1])
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        outside = 4 * half[0] * half[1] - _shared(box, frame)
        # Rounded, so that of places that cover nothing the first is taken.
        found.append((round(outside + sum(_shared(box, other) for other in taken), 3), box, index < 4))
    _, box, beside = min(found, key=lambda place: place[0])
    return box, beside


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
