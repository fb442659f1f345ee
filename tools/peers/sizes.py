"""How time and memory grow with the size of the picture: every size and flavour in processes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peers.alone import Alone, run_alone
from peers.cache import Cache, Say
from peers.candidate import Image
from peers.child import free_bytes, in_child
from peers.figures import spread
from peers.in_onnxruntime import OurArtifact
from peers.in_torch import Source
from peers.machine import Machine
from peers.report import Table, milliseconds, range_of
from ppexport.artifact import FLAVOURS
from ppexport.errors import PpexportError

SIZES = ((64, 64), (128, 128), (256, 256), (512, 512))
RUNS = 5
BUDGET = 15.0
"""Seconds after which a process ends, whatever it has left to do."""
SHARE_OF_FREE = 0.8
"""Of the free memory an export may take; beyond that it fails instead of making the system end other processes."""


@dataclass
class SizeRow:
    """One flavour at one size."""

    flavour: str
    size: tuple[int, int]
    """(h, w) of the LR picture."""
    passes: list[Alone] = field(default_factory=list)
    failure: str | None = None

    @property
    def seconds(self) -> list[list[float]]:
        """Seconds of all runs, by process."""
        return [list(alone.seconds) for alone in self.passes]

    @property
    def median_ms(self) -> float:
        """Median of all runs."""
        return spread(self.seconds).median

    @property
    def us_per_pixel(self) -> float:
        """Microseconds per LR pixel."""
        return 1e3 * self.median_ms / (self.size[0] * self.size[1])

    @property
    def peak(self) -> int:
        """Median over the processes of the peak bytes of loading and all runs."""
        return int(np.median([alone.peak for alone in self.passes]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        row: dict[str, Any] = {"flavour": self.flavour, "lr_size": list(self.size), "failure": self.failure}
        if self.failure is None:
            row |= {
                "seconds": self.seconds,
                "median_ms": self.median_ms,
                "us_per_pixel": self.us_per_pixel,
                "peak_bytes": self.peak,
                "loaded_bytes": [alone.loaded for alone in self.passes],
            }
        return row


def export_alone(folder: Path, model: str, flavour: str, size: tuple[int, int]) -> Path:
    """The full-capacity artefact of *flavour* for *size*, exported in a process of limited memory unless it is there.

    Raises PpexportError, also where the memory does not suffice.
    """
    free = free_bytes()
    limit = None if free is None else int(SHARE_OF_FREE * free)
    return in_child(Cache(folder, model, size).artifact, Source(model, False), flavour, None, print, memory=limit)


def measure_sizes(
    folder: Path, model: str, sizes: Sequence[tuple[int, int]], pictures: Sequence[Image], threads: int, say: Say
) -> list[SizeRow]:
    """Every flavour at all *sizes*, on *pictures*: small to large, and once more from large to small."""
    jobs: list[tuple[SizeRow, OurArtifact]] = []
    rows = []
    for size, picture in zip(sizes, pictures, strict=True):
        for flavour in FLAVOURS:
            row = SizeRow(flavour, size)
            rows.append(row)
            what = f"{flavour} {size[0]}x{size[1]}"
            say(f"export of {what}, unless it is there")
            try:
                artifact = export_alone(folder, model, flavour, size)
            except PpexportError as error:
                row.failure = f"export: {error}"
            else:
                jobs.append((row, OurArtifact(what, what, picture, artifact, threads, None)))
    for row, candidate in (*jobs, *reversed(jobs)):
        if row.failure is None:
            say(f"running {candidate.name}")
            try:
                row.passes.append(in_child(run_alone, candidate, RUNS, BUDGET))
            except PpexportError as error:
                row.failure = str(error)
    return rows


def sizes_table(rows: Sequence[SizeRow]) -> Table:
    """Time and memory by size."""
    cells = []
    for row in rows:
        name = f"{row.flavour}, {row.size[0]}x{row.size[1]}"
        if row.failure is not None:
            cells.append([name, row.failure, "", "", ""])
            continue
        times = [milliseconds(row.median_ms), range_of(spread(row.seconds)), f"{row.us_per_pixel:.1f}"]
        cells.append([name, *times, f"{row.peak / 1e6:.0f}"])
    return Table(
        "Pure-Pass at full capacity, by size",
        ["flavour, LR size", "ms, median", "p10 to p90", "µs per LR pixel", "peak MB"],
        cells,
    )


def sizes_markdown(rows: Sequence[SizeRow], machine: Machine, threads: int) -> str:
    """The table and what it was measured on."""
    head = (
        f"Measured on {machine.sentence(threads)}. Every size and flavour runs in two processes of its own, without "
        f"torch, up to {RUNS} times each; the peak is the whole process's, Python and ONNX Runtime included."
    )
    return f"{head}\n\n{sizes_table(rows).markdown()}"
