"""What `upscale` does with pictures, and what it says: of one, and of many at the end."""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from ppexport.cli.console import emit_json, fail, people, percent, progress_bar
from ppexport.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_INTERRUPTED, InputError, counted
from ppexport.imaging.outputs import Existing, check_replaced

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.imaging.many import Batch
    from ppexport.imaging.upscaling import Report, Settings

STANDARD = "-"
"""Standard input or output in place of a file."""
MOST_BYTES = 1 << 32
"""Of a picture on standard input."""


@dataclass(frozen=True)
class Opener:
    """Opens the artifact, once, and says in what it runs."""

    open: Callable[[], AbstractContextManager[Runner]]
    used: Mapping[str, Any] = field(default_factory=dict)
    """In what it runs, for JSON."""
    say: Callable[[], object] = lambda: None
    """The same for people."""

    def __call__(self) -> AbstractContextManager[Runner]:
        """The runner. Raises PpexportError."""
        runner = self.open()
        self.say()
        return runner


def left_as_it_is(source: Path, target: Path, existing: Existing | None, json: str | None) -> bool:
    """Whether *target* is there already and is to be skipped, which is said.

    Raises InputError where it is to be refused, or is *source* itself.
    """
    check_replaced(source, target)
    if existing in (None, Existing.overwrite) or not target.exists():
        return False
    if existing is Existing.refuse:
        raise InputError(f"{target} exists already: --existing overwrite replaces it")
    emit_json(json, {"output": str(target), "state": "skipped"})
    people(json).print(f"{target} exists already and is left as it is")
    return True


def upscale_one(
    about: Artifact,
    open_it: Opener,
    source: str,
    target: str,
    settings: Settings,
    existing: Existing | None,
    suffix: str,
    json: str | None,
) -> None:
    """Enlarge *source* into the file *target*; either may be `STANDARD`, then in the format of *suffix*."""
    from ppexport.imaging.upscaling import read_source, upscale_source

    console = people(STANDARD if target == STANDARD else json)
    if target == STANDARD:
        if json == STANDARD:
            raise InputError("--json - and the picture cannot both go to standard output: name a file for one of them")
        if sys.stdout.isatty():
            raise InputError("standard output is a terminal, which shows no picture: name a file, or use a pipe")
    elif left_as_it_is(Path(source), Path(target), existing, json):
        return
    given = _standard_input() if source == STANDARD else Path(source)
    wanted = sys.stdout.buffer if target == STANDARD else Path(target)
    # Before the model is opened, which may take minutes.
    read = read_source(given, wanted, about.scale, settings, suffix=suffix)
    (lr_height, lr_width), number = read.picture.size, read.tiles(about.size)
    if number > 1:
        console.print(
            f"{read.name}: {lr_width}x{lr_height} pixels are {number:,} runs, one for each tile of "
            f"{about.size[1]}x{about.size[0]}"
        )
    with (
        _ends_after_ctrl_c(f"interrupted: the same command makes {target} from the beginning"),
        open_it() as runner,
        progress_bar("tiles") as progress,
    ):
        report = upscale_source(runner, read, progress)
    emit_json(json, {"output": target, "opened": open_it.used, **_figures(report)})
    h, w = report.sr_size
    console.print(
        f"{target}: {w} pixels wide and {h} high, {counted(len(report.tiles), 'tile')}, {report.seconds_runtime:.1f} s "
        f"in the runtime of {report.seconds_total:.1f} s in all, overhead {percent(report.overhead)}"
    )
    _warn(report.notes)
    if report.warning:
        fail(report.warning)
        raise typer.Exit(EXIT_GATE_FAILED)


def _standard_input() -> IO[bytes]:
    """What standard input holds. Raises InputError for a terminal, and for more than any picture has."""
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: pipe a picture into the command, or name a file")
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"standard input holds more than {MOST_BYTES:,} bytes: name a file")
    return io.BytesIO(content)


def _warn(notes: Sequence[str]) -> None:
    """Print sentences about what was left out of a file, or assumed, on standard error."""
    for note in notes:
        people("-").print(f"note: {note}")


def upscale_all(about: Artifact, open_it: Opener, batch: Batch, json: str | None) -> None:
    """Enlarge all pictures of *batch*, and say at the end what became of each."""
    begin, seconds = None, 0.0
    if batch.works:
        pictures, runs = counted(len(batch.works), "picture"), counted(batch.tiles, "run")
        people(json).print(f"{pictures} to enlarge in {runs}, one for each tile of {about.size[1]}x{about.size[0]}")
    with _ends_after_ctrl_c("interrupted: the same command continues with --existing skip"):
        try:
            if batch.works:
                with open_it() as runner:
                    begin = time.perf_counter()
                    with progress_bar("tiles") as progress:
                        batch.run(runner, progress)
        finally:
            if begin is not None:
                seconds = time.perf_counter() - begin
            failed = _summarise(batch, seconds, open_it.used, json)
    if failed:
        raise typer.Exit(EXIT_GATE_FAILED if batch.works else EXIT_BAD_INPUT)


def _summarise(batch: Batch, seconds: float, used: Mapping[str, Any], json: str | None) -> bool:
    """Print and save what became of every input after *seconds*; whether anything is not as it should be."""
    outcomes = batch.outcomes
    states = Counter(outcome.state for outcome in outcomes)
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    runtime = sum(report.seconds_runtime for report in reports)
    # What failed took time as well, and how much of it in the runtime is not known.
    overhead = seconds / runtime - 1 if runtime and len(reports) == len(batch.works) else None
    files = [
        {
            "input": str(outcome.source),
            "output": None if outcome.target is None else str(outcome.target),
            "state": outcome.state,
            **({} if outcome.reason is None else {"reason": outcome.reason}),
            **({} if outcome.report is None else _figures(outcome.report, alone=False)),
        }
        for outcome in outcomes
    ]
    emit_json(
        json,
        {
            **{state.replace(" ", "_"): states[state] for state in ("done", "skipped", "failed", "not begun")},
            "opened": used,
            "tiles": sum(len(report.tiles) for report in reports),
            "seconds_runtime": runtime,
            "seconds_total": seconds,
            "overhead": overhead,
            "files": files,
        },
    )
    for report in reports:
        _warn(report.notes)
    for title, number in sorted(batch.without_quality.items()):
        _warn([f"{title} has no quality: {counted(number, 'picture')} written without --quality"])
    for outcome in outcomes:
        if outcome.reason is not None:
            fail(outcome.reason)
        elif outcome.report is not None and outcome.report.warning:
            fail(f"{outcome.target}: {outcome.report.warning}")
    said = [f"{counted(states['done'], 'picture')} enlarged"]
    said += [f"{states[state]:,} {state}" for state in ("skipped", "failed", "not begun") if states[state]]
    if overhead is not None:
        said.append(f"{runtime:.1f} s in the runtime of {seconds:.1f} s in all, overhead {percent(overhead)}")
    people(json).print(", ".join(said))
    return bool(states["failed"] or states["not begun"] or any(report.warning for report in reports))


def _figures(report: Report, alone: bool = True) -> dict[str, Any]:
    """*report* for JSON; the time that surrounds the runs only of a picture that was *alone*."""
    figures = {
        "lr_size": report.lr_size,
        "sr_size": report.sr_size,
        "tile": report.tile,
        "tiles": len(report.tiles),
        "tiles_over_capacity": len(report.over_capacity),
        "seconds_runtime": report.seconds_runtime,
        **({"notes": report.notes} if report.notes else {}),
    }
    return {**figures, "seconds_total": report.seconds_total, "overhead": report.overhead} if alone else figures


@contextmanager
def _ends_after_ctrl_c(sentence: str) -> Iterator[None]:
    """After Ctrl-C in the block, say *sentence* and end the program."""
    try:
        yield
    except KeyboardInterrupt:
        people("-").print(sentence)
        raise typer.Exit(EXIT_INTERRUPTED) from None
