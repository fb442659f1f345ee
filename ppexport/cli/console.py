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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ppexport.errors import EXIT_INTERRUPTED, InputError
from ppexport.files import check_file_target, finite, naming, write_text


def people(json_to: str | None) -> Console:
    """Where text for people goes: standard output, unless JSON is written there."""
    # No markup: paths may hold square brackets.
    return Console(stderr=json_to == "-", highlight=False, soft_wrap=True, markup=False)


def _standard_error() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


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
        return
    target = Path(json_to)
    if target.exists() and not target.is_file():
        with naming(target), target.open("w", encoding="utf-8") as stream:
            stream.write(text)
    else:
        write_text(target, text)


def check_json(json_to: str | None) -> str | None:
    """Raise InputError, before any work is done, where `emit_json` could not write."""
    if json_to not in (None, "-"):
        target = Path(str(json_to))
        if os.path.isdir(target):
            raise InputError(f"{target} is a folder, a file name is needed")
        if not target.parent.is_dir():
            raise InputError(f"{target} cannot be written: {target.parent} is not a folder")
        if not os.path.exists(target) or target.is_file():
            check_file_target(target)
    return json_to


@contextmanager
def continues_from(kept: Path) -> Iterator[None]:
    """After Ctrl-C in the block: say that the same command continues, if *kept* is there, and end the program."""
    try:
        yield
    except KeyboardInterrupt:
        if kept.exists():
            _standard_error().print(f"interrupted: the same command continues from what is kept in {kept}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, moved by calling (done, total); see `progress_bars`."""
    with progress_bars() as move:
        yield lambda done, total: move(what, done, total)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every new description, moved by calling (what, done, total), first before the first step is done.

    Terminals get bars with the time that has passed and the time that is left, log files and pipes get none. Work that
    will take long is announced by one line as well, so that these tell how long it takes, too.
    """
    console = _standard_error()
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, tuple[Any, Forecast]] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total), Forecast(what)
            task, forecast = tasks[what]
            bars.update(task, completed=done, total=total)
            line = forecast.after(done, total)
            if line is not None:
                console.print(line)

        yield move


class Forecast:
    """Tells once how long the rest of a work takes, from its first steps, if that is long."""

    LONG = 20.0
    """Seconds left that are worth a line."""
    PATIENCE = 2.0
    """Seconds to look at before anything is said."""

    def __init__(self, what: str) -> None:
        self.what, self._said = what, False
        self._before: int | None = None
        self._start: tuple[float, int] | None = None

    def after(self, done: int, total: int) -> str | None:
        """The line to print now that *done* of *total* steps are done, if it is time for it.

        Steps done before the first call, by an earlier process for example, say nothing about this one's speed; nor
        does the first step after it, which begins with loading or warming up.
        """
        now = time.monotonic()
        if self._before is None:
            self._before = done
        if done <= self._before or self._said:
            return None
        if self._start is None:
            self._start = (now, done)
        since, first = self._start
        if done == first or now - since < self.PATIENCE:
            return None
        self._said = True
        left = (now - since) / (done - first) * (total - done)
        return f"{self.what}: {done:,} of {total:,} done, about {duration(left)} left" if left >= self.LONG else None


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
    _standard_error().print(Text.assemble(("error:", "bold red"), f" {message}"))
