"""What the command line prints: tables, progress bars, JSON. People read standard error, machines standard output."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppexport.errors import EXIT_INTERRUPTED, InputError
from ppexport.files import check_file_target, finite, naming, write_text

LONG = 20.0
"""Seconds left that are worth a line."""
PATIENCE = 2.0
"""Seconds to look at before anything is said."""


def people(json_to: str | None) -> Console:
    """Where text for people goes: standard output, or standard error for "-", when JSON is written to the former."""
    # No markup: paths may hold square brackets.
    return Console(stderr=json_to == "-", highlight=False, soft_wrap=True, markup=False)


def show_every_character() -> None:
    """Have standard output and error escape what their encoding lacks, as in \\xe9, so that printing never fails.

    File names may hold any bytes, and the encoding is that of the terminal, a pipe or PYTHONIOENCODING.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def emit_json(json_to: str | None, data: Any) -> None:
    """Write *data* to the file *json_to*, atomically, or to standard output for "-".

    A device or a pipe, such as /dev/null, is written to and not replaced.
    """
    if json_to is None:
        return
    text = json.dumps(finite(data), indent=2, allow_nan=False) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
    elif _is_special(json_to):
        with naming(Path(json_to)), open(json_to, "w", encoding="utf-8") as stream:
            stream.write(text)
    else:
        write_text(Path(json_to), text)


def check_json(json_to: str | None) -> str | None:
    """Raise InputError, before any work is done, where `emit_json` could not write."""
    if json_to not in (None, "-") and not _is_special(json_to):
        check_result_target(Path(json_to), ".json")
    return json_to


def check_result_target(target: Path, suffix: str) -> None:
    """Raise InputError where a result of the kind *suffix* cannot be written to *target*, or would replace a file of
    another kind, such as a checkpoint that was meant as input."""
    check_file_target(target)
    if target.is_file() and target.suffix.lower() != suffix:
        raise InputError(f"{target} exists and is no {suffix} file: name another file for the result")


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def continues_from(kept: Path) -> Iterator[None]:
    """After Ctrl-C in the block: say whether the same command continues, which *kept* is for, and end the program."""
    try:
        yield
    except KeyboardInterrupt:
        continues = f"the same command continues from what is kept in {kept}"
        anew = "nothing is kept yet, so the same command begins anew"
        people("-").print(f"interrupted: {continues if kept.exists() else anew}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


class Speed(progress.ProgressColumn):
    """How many steps a second are done, in a unit such as fps."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: progress.Task) -> Text:
        """The speed of *task*, empty before it is known."""
        return Text(speed_of(task, self.unit))


def speed_of(task: progress.Task, unit: str) -> str:
    """Such as "12.50 fps"; empty without a unit, or before it is known."""
    return f"{task.speed:.2f} {unit}" if unit and task.speed else ""


@contextmanager
def progress_bar(what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, moved by calling (done, total); see `progress_bars`."""
    with progress_bars(unit) as move:
        yield lambda done, total: move(what, done, total)


@contextmanager
def progress_bars(unit: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every new description, moved by calling (what, done, total), first before the first step is done.

    With a *unit*, such as fps, bars tell how many steps a second are done.

    Terminals get bars with the time that has passed and the time that is left, log files and pipes get none. Work that
    will take long is announced by one line as well, so that these tell how long it takes, too.
    """
    console = people("-")
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=20), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TimeRemainingColumn(), progress.TextColumn("left"),
        *([Speed(unit)] if unit else []),
    )  # fmt: skip
    silent, day = not console.is_terminal, 86400.0
    with progress.Progress(
        *columns, console=console, disable=silent, get_time=time.monotonic, speed_estimate_period=day
    ) as bars:
        tasks: dict[str, progress.TaskID] = {}
        announced = set()

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                # Steps that an earlier process did say nothing about this one's speed; nor does the first step of this
                # one, which loads and warms up: rich measures from its end.
                tasks[what] = bars.add_task(what, total=total, completed=done)
            bars.update(tasks[what], completed=done, total=total)
            task = bars.tasks[tasks[what]]
            left = task.time_remaining or 0.0
            if what not in announced and left >= LONG and (task.elapsed or 0.0) >= PATIENCE:
                announced.add(what)
                speed = speed_of(task, unit)
                console.print(
                    f"{what}: {done:,} of {total:,} done{f', {speed}' if speed else ''}, about {duration(left)} left"
                )

        yield move


def duration(seconds: float) -> str:
    """*seconds* as people say them: 40 s, 6 min, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if not hours else f"{hours} h {rest} min" if rest else f"{hours} h"


@contextmanager
def stages(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error; calling what is yielded with the name of a stage shows it."""
    with Console(stderr=True).status(what) as status:
        yield lambda stage: status.update(f"{what}: {stage}")


def table(title: str, columns: list[str], rows: list[list[str]], numbers: int = 1) -> Table:
    """A table whose columns from *numbers* on are aligned right."""
    made = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < numbers else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def giga(count: int) -> str:
    """Multiply-adds in G."""
    return f"{count / 1e9:.2f} G"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.2f} %"


def decibel(value: float) -> str:
    """dB, or "equal" for infinite."""
    return "equal" if value == float("inf") else f"{value:.2f}"


def fail(message: str) -> None:
    """One red sentence on standard error."""
    people("-").print(Text.assemble(("error:", "bold red"), f" {message}"))
