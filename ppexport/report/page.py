"""One HTML file that needs no network: everything is inside, and nothing else may be loaded."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import ppexport
from ppexport.errors import InputError, require
from ppexport.files import write_text
from ppexport.profile.layers.result import why_sum_differs
from ppexport.profile.layers.spans import BRANCHES
from ppexport.report import figures
from ppexport.report.material import Material, Parity
from ppexport.report.pictures import slides

TEMPLATE, SCRIPT, STYLE = "page.html", "page.js", "page.css"
MODULES = 12
"""Modules that a table of layers names."""


def part(name: str) -> str:
    """A file that lies beside this one."""
    return (files("ppexport.report") / name).read_text(encoding="utf-8")


def matrix(parities: list[Parity]) -> dict[str, Any]:
    """Rows (model, size, backend, run) and precisions of the parity matrix."""
    precisions = sorted({parity.data["precision"] for parity in parities})
    rows = []
    for parity in parities:
        data, pair = parity.data, parity.judged
        known = [row["errors"]["psnr"] for row in pair["rows"] if row["errors"]["psnr"] is not None]
        flips = [sum(row["flips"]) for row in pair["rows"] if row.get("flips")]
        excused = sum(1 for row in pair["rows"] if row["passed"] and row.get("reason"))
        rows.append(
            {
                "model": data["model"],
                "size": "x".join(map(str, data["size"])),
                "backend": data["backend"],
                "run": parity.name,
                "precision": data["precision"],
                "passed": data["passed"],
                "excused": excused,
                "gate": pair["gate"]["psnr"],
                "worst": min(known) if known else None,
                "flips": sum(flips),
                "change": pair.get("psnr_y_change"),
                "change_same_routing": pair.get("psnr_y_change_same_routing"),
                "failed": [row["name"] for row in pair["rows"] if not row["passed"]],
                "inputs": len(pair["rows"]),
            }
        )
    return {"precisions": precisions, "rows": rows}


def layer_tables(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every profile by layer: its figures, its branches and its slowest modules."""
    made = []
    for data in layers:
        total = max(data["total_ms"], 1e-12)
        made.append(
            {
                "name": data["subject"]["name"],
                "method": data.get("method", ""),
                "total": data["total_ms"],
                "why": why_sum_differs(data),
                "by_name": 100 * data["found"].get("name", 0.0) / total,
                "by_place": 100 * data["found"].get("place", 0.0) / total,
                "branches": [(b, data["branches"][b], 100 * data["branches"][b] / total)
                             for b in BRANCHES if b in data["branches"]],
                "modules": list(data["modules"].items())[:MODULES],
                "plot": figures.block_bars(data),
            }
        )  # fmt: skip
    return made


def render(material: Material, title: str) -> str:
    """The page. Raises UnavailableError without jinja2 or matplotlib, InputError for damaged pictures and files."""
    require("jinja2", "report")
    require("matplotlib", "report")
    from jinja2 import UndefinedError

    try:
        return _render(material, title)
    except (UndefinedError, KeyError, TypeError) as error:
        # Files of this format that were edited, or that a program wrote which leaves something out.
        folders = [p.path.parent.name for p in material.profiles] + [p.name for p in material.parities]
        raise InputError(f"a file in {', '.join(folders)} lacks what a report draws: {error}") from None


def _render(material: Material, title: str) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script = part(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    points = figures.pareto_points(material)
    environment.filters["svg"] = Markup  # only for what `figures` drew, which escapes what it writes
    return environment.from_string(part(TEMPLATE)).render(
        title=title,
        created=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        version=ppexport.__version__,
        script=Markup(script),
        script_hash=digest,
        style=Markup(part(STYLE)),
        parity=matrix(material.parities),
        profiles=[
            {
                "data": p.data, "subjects": p.subjects, "folder": p.path.parent.name,
                "board": board_line(p.data["machine"]),
                "distributions": figures.distributions(p), "series": figures.time_series(p),
            }
            for p in material.profiles
        ],
        layers=layer_tables(material.layers),
        layer_plot=figures.layer_bars(material.layers) if material.layers else None,
        routing=[
            {"data": d, "plot": figures.pure_share(d), "slots": figures.capacities(d) if d["capacities"] else None}
            for d in material.routing
        ],
        frames=material.frames,
        points=points,
        pareto=figures.pareto(points) if points else None,
        slides=[(parity.name, slides(parity)) for parity in material.parities],
    )  # fmt: skip


def board_line(machine: dict[str, Any]) -> str:
    """What a Jetson or a phone says of itself, empty for any other machine."""
    jetson, phone = machine.get("jetson"), machine.get("phone")
    found = []
    if isinstance(jetson, dict):
        mode, clocks = jetson.get("power_mode"), jetson.get("clocks")
        found += [f"{name} {jetson[key]}" for name, key in (("L4T", "l4t"), ("JetPack", "jetpack")) if jetson.get(key)]
        if isinstance(mode, dict):
            found.append(f"power mode {mode.get('number')} ({mode.get('name')})")
        if isinstance(clocks, dict) and isinstance(clocks.get("locked"), bool):
            found.append("clocks locked" if clocks["locked"] else "clocks not locked")
    if isinstance(phone, dict):
        names = (("", "maker"), ("", "board"), ("SoC ", "soc"), ("Android ", "android"), ("build ", "build"))
        found += [f"{name}{phone[key]}" for name, key in names if phone.get(key)]
    return ", ".join(found)


def write_page(material: Material, out: Path) -> None:
    """Write the page to *out*, atomically."""
    write_text(out, render(material, "ppexport report"))
