"""One HTML file that needs no network: everything is inside, and nothing else may be loaded."""

from __future__ import annotations

import base64
import hashlib
import io
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ppexport
from ppexport.device.mask import Layout
from ppexport.device.picture import to_uint8
from ppexport.errors import InputError, counted, require
from ppexport.files import is_plain_name, write_text
from ppexport.imaging.alpha import mask_overlay
from ppexport.imaging.bicubic import enlarge_bicubic
from ppexport.parity.columns import load_column, load_inputs
from ppexport.parity.contest import CLOCK, threads_of
from ppexport.parity.run import heat
from ppexport.profile.by_layer import branches, why_sum_differs
from ppexport.report import figures
from ppexport.report.material import Material, Parity

TEMPLATE, SCRIPT, STYLE = "page.html", "page.js", "page.css"
SHOWN = 320
"""Pixels of the longer side of a picture, at least."""
MOST = 6
"""Inputs that are shown: those with ground truth first, then the worst."""


def write_page(material: Material, out: Path, title: str = "ppexport report") -> None:
    """Write the page to *out*, atomically. Raises PpexportError as `render`."""
    write_text(out, render(material, title))


def check_installed() -> None:
    """Raise UnavailableError where what draws a page is missing."""
    require("jinja2", "report")
    require("matplotlib", "report")


def render(material: Material, title: str) -> str:
    """The page.

    Raises:
        UnavailableError: jinja2 or matplotlib is missing.
        InputError: Pictures or files are damaged.
    """
    check_installed()
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
            functions={
                **{"board": board_line, "judge": judge, "slides": slides, "why_sum_differs": why_sum_differs},
                **{"clock": CLOCK, "counted": counted, "threads": threads_of},
            },
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
    """What a Jetson, a phone or a browser says of itself, empty for any other machine."""
    jetson, phone, browser = machine.get("jetson"), machine.get("phone"), machine.get("browser")
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
    if isinstance(browser, dict):
        adapter = browser.get("adapter")
        where = f"wasm in {counted(browser.get('threads') or 1, 'thread')}"
        if browser.get("device") != "wasm":
            named = adapter if isinstance(adapter, dict) else {}
            where = "WebGPU " + " ".join(str(named[part]) for part in ("vendor", "architecture") if named.get(part))
        found += [where, f"onnxruntime-web {browser.get('ort')}"]
        found += ["isolated" if browser.get("isolated") else "not isolated"]
        found += [f"clock in steps of {browser['timer_step_ms']} ms"] if browser.get("timer_step_ms") else []
    return ", ".join(found)


def slides(parity: Parity) -> list[dict[str, Any]]:
    """The pictures of a run, fewer where its columns are not kept.

    Returns:
        For every input its name and verdict; data: addresses of "before" (bicubic enlargement), "after" (what the
        artifact made), "mask" (pure pixels over the input, None where they are not known) and "error" against the
        reference; the largest error, of peak 1; and the share of pure pixels, or None.

    Raises:
        InputError: A picture is damaged.
    """
    pair, folder = parity.judged, parity.path.parent
    names = (pair["reference"], pair["other"])
    kept = [folder / "inputs.npz", *(folder / f"{name}.npz" for name in names)]
    if not all(is_plain_name(f"{name}.npz") for name in names) or not all(file.is_file() for file in kept):
        return []
    h, w = parity.data["size"]
    padded = Layout(parity.data.get("multiple", 16)).padded((h, w))
    inputs = {item.name: item for item in load_inputs(kept[0], (h, w))}
    reference, other = load_column(kept[1]).samples, load_column(kept[2]).samples
    rows = [row for row in parity.rows if all(row["name"] in column for column in (inputs, reference, other))]
    rows.sort(key=lambda row: (not (row.get("task") or row.get("task_same_routing")), row["name"] != pair.get("worst")))
    found: list[dict[str, Any]] = []
    for row in rows:
        lr, first, second = to_uint8(inputs[row["name"]].lr), reference[row["name"]], other[row["name"]]
        whole = np.isfinite(first.sr).all() and np.isfinite(second.sr).all()
        if len(found) == MOST or first.sr.shape != second.sr.shape or second.sr.shape[2] % h or not whole:
            continue
        difference = np.abs(first.sr.astype(np.float64) - second.sr).max(axis=(0, 1))
        largest = float(difference.max())
        slide = {
            "name": row["name"],
            "verdict": "pass" if row["passed"] else "FAIL",
            "largest": largest,
            "before": _address(enlarge_bicubic(lr, second.sr.shape[2] // h)),
            "after": _address(to_uint8(second.sr)),
            "error": _address(np.asarray(heat(difference, max(largest, 1e-12)))),
            "mask": None,
            "pure": None,
        }
        if first.pure is not None and first.pure.size == padded[0] * padded[1]:
            slide["mask"] = _address(mask_overlay(lr, first.pure.reshape(padded)))
            slide["pure"] = float(first.pure.mean())
        found.append(slide)
    return found


def _address(rgb: NDArray[np.uint8]) -> str:
    """The picture (H, W, 3) as a data: address, enlarged in whole steps until it can be seen."""
    image = Image.fromarray(rgb)
    factor = max(1, -(-SHOWN // max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
