"""The ablation as Markdown, and its place in a model's README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from places import insert, markers

from ablating.datasets import DataSet
from ablating.measure import Figures, cost_at
from ablating.variants import Variant
from ppexport.cli.console import giga, percent
from ppexport.errors import InputError
from ppexport.files import write_text

PLACE = "ablation"
BEGIN, END = markers(PLACE)


@dataclass(frozen=True)
class Row:
    """A variant and its figures on one data set."""

    variant: Variant
    figures: Figures


def change(figures: Figures, default: Figures) -> str:
    """Mean difference to *default* in dB, and the smallest and largest over the pictures."""
    differences = np.subtract(figures.psnr_y, default.psnr_y)
    if not differences.any():
        return "0"
    return f"{differences.mean():+.3f} ({differences.min():+.3f} to {differences.max():+.3f})"


def render_set(data: DataSet, scale: int, rows: Sequence[Row]) -> str:
    """The table of one data set; the first of *rows* is the default that the others are compared with."""
    count = len(data.pairs)
    lines = [
        f"**{data.name}**, {count} picture{'s' if count != 1 else ''}, "
        f"LR {'as given' if data.pairs[0].lr else 'by bicubic'}:",
        "",
        "| variant | PSNR-Y dB | change dB, mean (range over pictures) | pure share | multiply-adds | saved |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pure = row.figures.mean_pure
        cost = cost_at(scale, pure, row.variant.options)
        cells = [
            row.variant.name,
            f"{row.figures.mean_psnr_y:.3f}",
            change(row.figures, rows[0].figures),
            percent(pure),
            giga(cost.actual.published),
            percent(cost.saving),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(weights_sha256: str, scale: int, sections: Sequence[tuple[DataSet, Sequence[Row]]]) -> str:
    """Every data set's table under one line that says what was measured."""
    head = (
        f"Written by `tools/ablation.py` for the weights with SHA-256 `{weights_sha256[:12]}…`. The pure share is the "
        f"mean over the LR pictures; multiply-adds, counted as published, are those of 1280x720 output at that share."
    )
    return "\n\n".join([head, *(render_set(data, scale, rows) for data, rows in sections)])


def insert_into(path: Path, table: str) -> None:
    """Write *table* between the markers of the file *path*, atomically. Raises InputError, also for no such file."""
    write_text(path, insert(read_place(path), PLACE, table, str(path)))


def read_place(path: Path) -> str:
    """The text of *path*, once it is sure that a table fits in. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    insert(text, PLACE, "", str(path))
    return text
