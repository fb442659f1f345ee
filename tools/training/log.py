"""The log of a run, one JSON object a line, and a picture of it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppexport.files import atomic_path, write_text

Entry = dict[str, Any]


def read_log(path: Path) -> list[Entry]:
    """All entries; a last line cut off by a kill is left out."""
    entries: list[Entry] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return entries


def rewind_log(path: Path, step: int) -> None:
    """Drop the entries after *step*: they were made after the state that a resumed run goes on from."""
    kept = [entry for entry in read_log(path) if entry.get("step", 0) <= step]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def append_log(path: Path, entry: Entry) -> None:
    """Add one line."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def plot_log(path: Path, target: Path) -> bool:
    """Draw loss, learning rate and validation PSNR-Y over the steps; returns False where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    entries = read_log(path)
    train = [e for e in entries if e.get("kind") == "train"]
    check = [e for e in entries if e.get("kind") == "validation"]
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot([e["step"] for e in train], [e["loss"] for e in train], linewidth=0.8)
    top.set_ylabel("L1 loss")
    top.set_yscale("log")
    rate = top.twinx()
    rate.plot([e["step"] for e in train], [e["lr"] for e in train], color="tab:gray", linestyle=":")
    rate.set_ylabel("learning rate")
    bottom.plot([e["step"] for e in check], [e["psnr_y"] for e in check], marker="o", markersize=3)
    bottom.set_ylabel("validation PSNR-Y (dB)")
    bottom.set_xlabel("step")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True
