"""Starts measuring processes on this machine, follows them, and collects what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

# Subscripted when the module is loaded, which the other Callable of Python 3.8 does not allow.
from typing import Callable

from ppexport.device.job import Job
from ppexport.device.journal import Journal, JournalError, Past, read_header, read_past
from ppexport.errors import EXIT_UNAVAILABLE, InputError, PpexportError, UnavailableError, present

INTERRUPTED = 130
"""Exit code of a process that was asked to end."""
POLL = 0.5
"""Seconds between two looks at the journal. A look costs the measuring machine next to nothing."""
Progress = Callable[[int, int], object]
"""Told (queries so far, queries at least)."""


def _start(action: str, job: Job, errors: Path, output: int) -> subprocess.Popen[bytes]:
    """The measuring process, its job on its standard input."""
    with errors.open("wb") as stream:
        # Its own session: Ctrl-C is for this program, which ends its child in order.
        child = subprocess.Popen(
            [sys.executable, "-m", "ppexport.device.child", action],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=stream,
            start_new_session=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
    stdin = present(child.stdin, "the input of the measuring process")
    # A child that ended at once says why itself.
    with suppress(BrokenPipeError), stdin:
        stdin.write(job.to_json().encode())
    return child


def _explain(code: int, errors: Path) -> PpexportError:
    """The error of a child that ended with *code*."""
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        return UnavailableError(f"the measuring process was ended by signal {-code}: what it measured is kept")
    said = lines[-1] if lines else f"the measuring process ended with exit code {code}"
    return UnavailableError(said) if code == EXIT_UNAVAILABLE else InputError(said)


def journal_of(path: Path, key: str, value: str, subjects: int) -> Past | None:
    """What the journal *path* holds already; None where there is none.

    Raises InputError where it is of another measurement, whose header has another *value* of *key*, or damaged.
    """
    if not path.exists():
        return None
    try:
        header = read_header(str(path))
        if header is None:
            return None
        if header.get(key) != value:
            raise InputError(
                f"{path.parent} holds another measurement (other artefact, runtime, device, settings, versions, images "
                "or protocol): name another folder"
            )
        return read_past(str(path), subjects)
    except JournalError as error:
        raise InputError(f"{error}: name another folder") from None


def known_part(job: Job) -> Past | None:
    """What the journal of *job* holds already, as `journal_of`."""
    return journal_of(job.journal, "identity", job.header["identity"], len(job.targets))


def run(job: Job, progress: Progress) -> bool:
    """Measure *job* on this machine, from where its journal ends; returns False where nothing was left to do.

    Raises PpexportError as the child does. KeyboardInterrupt ends the child; the journal stays, and the same job goes
    on from there.
    """
    past = known_part(job)
    if past is not None and past.complete:
        return False
    wanted = job.plan.queries * len(job.targets)
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        child = _start("measure", job, errors, subprocess.DEVNULL)
        try:
            _follow(child, job.journal, lambda count: progress(count, max(wanted, count)))
        finally:
            end(child)
        if child.returncode:
            if past is None:
                _forget_if_empty(job)
            raise _explain(child.returncode, errors)
    return True


def _forget_if_empty(job: Job) -> None:
    """Remove journal and pictures of a run that measured nothing: not even its versions count, others may be tried.

    A journal that another process measures into is left alone.
    """
    try:
        journal = Journal(str(job.journal))
    except JournalError:
        return
    try:
        if not any(read_past(str(job.journal), len(job.targets)).queries):
            job.journal.unlink()
            job.images.unlink()
    except FileNotFoundError:
        pass
    finally:
        journal.close()


def _follow(child: subprocess.Popen[bytes], journal: Path, told: Callable[[int], object]) -> None:
    """Count the queries in *journal* until *child* has ended."""
    offset, count = 0, 0
    while True:
        ended = child.poll() is not None
        if journal.exists():
            with journal.open("rb") as stream:
                stream.seek(offset)
                block = stream.read()
            whole = block.rfind(b"\n") + 1
            offset += whole
            count += sum(line.startswith(b'["q"') for line in block[:whole].splitlines())
            told(count)
        if ended:
            return
        time.sleep(POLL)


def end(child: subprocess.Popen[bytes]) -> None:
    """End *child* if it still runs: asked first, then killed."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def ask(action: str, job: Job) -> str:
    """What the child prints for *action*. Raises PpexportError as the child does."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        child = _start(action, job, errors, subprocess.PIPE)
        try:
            answer = present(child.stdout, "the output of the measuring process").read()
            child.wait()
        finally:
            end(child)
        if child.returncode or not answer.strip():
            raise _explain(child.returncode, errors)
    return answer.decode()


def memory_of(job: Job) -> tuple[int, int]:
    """Peak bytes of a process that opens the only target of *job* and runs it once: before opening it, and in all."""
    before, peak = ask("memory", job).split()
    return int(before), int(peak)
