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
from ppexport.profile.by_layer import branches, why_sum_differs
from ppexport.report import figures
from ppexport.report.material import Material, Parity
from ppexport.report.slides import slides

TEMPLATE, SCRIPT, STYLE = "page.html", "page.js", "page.css"


def write_page(material: Material, out: Path) -> None:
    """Write the page to *out*, atomically. Raises PpexportError as `render`."""
    write_text(out, render(material, "ppexport report"))


def render(material: Material, title: str) -> str:
    """The page. Raises UnavailableError without jinja2 or matplotlib, InputError for damaged pictures and files."""
    require("jinja2", "report")
    require("matplotlib", "report")
    from jinja2 import Environment, StrictUndefined, UndefinedError
    from markupsafe import Markup

    def part(name: str) -> str:
        return (files("ppexport.report") / name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = Markup  # only for what `figures` drew, which escapes what it writes
    script = part(SCRIPT)
    try:
        return environment.from_string(part(TEMPLATE)).render(
            title=title,
            created=datetime.now(timezone.utc).isoformat(timespec="minutes"),
            version=ppexport.__version__,
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            style=Markup(part(STYLE)),
            material=material,
            points=figures.pareto_points(material),
            branches=branches(),
            figures=figures,
            functions={"board": board_line, "judge": judge, "slides": slides, "why_sum_differs": why_sum_differs},
        )
    except (UndefinedError, KeyError, TypeError) as error:
        # Files of this format that were edited, or that a program wrote which leaves something out.
        folders = [p.path.parent.name for p in material.profiles] + [p.name for p in material.parities]
        raise InputError(f"a file in {', '.join(folders)} lacks what a report draws: {error}") from None


def judge(parity: Parity) -> tuple[str, str]:
    """The CSS class of a run's verdict, and the verdict in words: of accepted flips with the figure that was judged."""
    gate = f"gate {parity.judged['gate']['psnr']:g} dB"
    runs, same = ("equal" if db is None else f"{db:.1f} dB" for db in (parity.worst, parity.worst_same_routing))
    if not parity.data["passed"]:
        failed = ", ".join(row["name"] for row in parity.rows if not row["passed"])
        return "bad", f"FAIL: {runs}, {gate}" + (f"; failed: {failed}" if failed else "")
    excused = sum(1 for row in parity.rows if row["passed"] and row.get("reason"))
    if not excused:
        return "good", f"passes: {runs}, {gate}"
    flipped = f"categories flipped in {excused} of {len(parity.rows)} inputs"
    return "tie", f"passes: {same} once the same categories are injected, {gate}; as it runs {runs}, {flipped}"


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
