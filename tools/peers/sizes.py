"""How time and memory grow with the size of the picture: sizes of one flavour in turns, memory in processes apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.alone import peak_of_one_run
from peers.cache import Cache, Say
from peers.candidate import Image
from peers.child import free_bytes, in_child
from peers.figures import spread
from peers.in_onnxruntime import Repeated
from peers.in_torch import Source
from peers.machine import Machine
from peers.race import Heat, race
from peers.report import Table, milliseconds, range_of, times
from ppexport.errors import PpexportError
from ppexport.profile.statistics import Interval

SIZES = ((64, 64), (128, 128), (256, 256), (512, 512))
MOST = 4
"""Runs of a small picture for one of the largest, at most."""
SHARE_OF_FREE = 0.8
"""Of the free memory an export may take; beyond that it fails instead of making the system end other processes."""


@dataclass
class SizeRow:
    """One flavour at one size."""

    flavour: str
    size: tuple[int, int]
    """(h, w) of the LR picture."""
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of a run, by round."""
    relative: Interval | None = None
    """Time per pixel divided by that of the smallest size, by round."""
    peak: int | None = None
    """Peak bytes of a process that loads the artefact and runs once."""
    failure: str | None = None

    @property
    def pixels(self) -> int:
        """LR pixels."""
        return self.size[0] * self.size[1]

    @property
    def median_ms(self) -> float:
        """Median of all runs."""
        return spread(self.rounds).median

    @property
    def us_per_pixel(self) -> float:
        """Microseconds per LR pixel."""
        return 1e3 * self.median_ms / self.pixels

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        row: dict[str, Any] = {"flavour": self.flavour, "lr_size": list(self.size), "failure": self.failure}
        if self.failure is None:
            row |= {
                "seconds": self.rounds,
                "median_ms": self.median_ms,
                "us_per_pixel": self.us_per_pixel,
                "per_pixel_to_smallest": None if self.relative is None else asdict(self.relative),
                "peak_bytes": self.peak,
            }
        return row


def export_alone(folder: Path, model: str, flavour: str, size: tuple[int, int]) -> Path:
    """The full-capacity artefact of *flavour* for *size*, exported in a process of limited memory unless it is there.

    Raises PpexportError, also where the memory does not suffice.
    """
    free = free_bytes()
    limit = None if free is None else int(SHARE_OF_FREE * free)
    return in_child(Cache(folder, model, size).artifact, Source(model, False), flavour, None, print, memory=limit)


def prepare(
    row: SizeRow, folder: Path, model: str, picture: Image, threads: int, largest: int, say: Say
) -> Repeated | None:
    """Export what *row* is about, measure its memory, make its candidate; None where that fails, as *row* then says."""
    name = f"{row.flavour} {row.size[0]}x{row.size[1]}"
    say(f"export of {name}, unless it is there")
    try:
        artifact = export_alone(folder, model, row.flavour, row.size)
    except PpexportError as error:
        row.failure = f"export: {error}"
        return None
    candidate = Repeated(name, picture, artifact, threads, min(MOST, max(1, largest // row.pixels)))
    say(f"memory of {name}")
    try:
        row.peak = in_child(peak_of_one_run, candidate)
    except PpexportError as error:
        row.failure = str(error)
        return None
    return candidate


def measure_sizes(
    folder: Path,
    model: str,
    sizes: Sequence[tuple[int, int]],
    flavours: Sequence[str],
    pictures: Sequence[Image],
    threads: int,
    rounds: int,
    seconds: float,
    say: Say,
    progress: Callable[[int, int], None],
) -> list[SizeRow]:
    """Every one of *flavours* at all *sizes*, on *pictures*, in turns: small to large and back in every round.

    Flavours take *seconds* in equal parts; in its part no further round begins after that.
    """
    rows = [SizeRow(flavour, size) for size in sizes for flavour in flavours]
    of = dict(zip(sizes, pictures, strict=True))
    largest = max(h * w for h, w in sizes)
    made = {id(row): prepare(row, folder, model, of[row.size], threads, largest, say) for row in rows}
    for flavour in flavours:
        running = [(row, c) for row in rows if row.flavour == flavour and (c := made[id(row)]) is not None]
        if not running:
            continue
        heat = Heat(flavour, tuple(c for _, c in running))
        outcome = race([heat], [], rounds, seconds / len(flavours), say, progress)
        first = running[0][0]
        for row, candidate in running:
            row.rounds = outcome.times[flavour][candidate.key]
            relative = outcome.relative(flavour, candidate.key)
            row.relative = None if relative is None else relative.map(first.pixels / row.pixels)
    return rows


def sizes_table(rows: Sequence[SizeRow]) -> Table:
    """Time and memory by size."""
    cells = []
    for row in rows:
        name = f"{row.flavour}, {row.size[0]}x{row.size[1]}"
        if row.failure is not None or row.peak is None:
            cells.append([name, row.failure or "", "", "", "", ""])
            continue
        spent = [milliseconds(row.median_ms), range_of(spread(row.rounds)), f"{row.us_per_pixel:.1f}"]
        relative = "" if row.relative is None else times(row.relative)
        cells.append([name, *spent, relative, f"{row.peak / 1e6:.0f}"])
    columns = ["ms, median", "p10 to p90", "µs per LR pixel", "per pixel, to the smallest (95 %)", "peak MB"]
    return Table("Pure-Pass at full capacity, by size", ["flavour, LR size", *columns], cells)


def sizes_markdown(rows: Sequence[SizeRow], machine: Machine, threads: int) -> str:
    """The table and what it was measured on."""
    count = max((len(row.rounds) for row in rows), default=0)
    head = (
        f"Measured on {machine.sentence(threads)}. The sizes of a flavour take turns in one process, {count} rounds, "
        f"up to {MOST} runs of a small one for one of the largest, each time after as many untimed; time per pixel is "
        "compared by round. The peak is that of a process of its own that loads the artefact and runs once, without "
        "torch, Python and ONNX Runtime included."
    )
    return f"{head}\n\n{sizes_table(rows).markdown()}"
