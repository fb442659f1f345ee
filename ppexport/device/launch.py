"""Starts measuring processes on this machine, follows them, and collects what they wrote.

A process that does nothing but measure is `python -m ppexport.device.launch ACTION`, the job on its input: its own, so
that neither a command line's libraries nor another runtime's threads disturb it, and so that its peak memory is the
runtime's. An expected failure is one sentence on standard error and its exit code.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

# Subscripted when the module is loaded, which the other Callable of Python 3.8 does not allow.
from typing import Any, Callable

import numpy as np

from ppexport.device.agent import ARCHIVE, event
from ppexport.device.jetson import clocks_locked, power_mode_set
from ppexport.device.job import IMAGES, JOURNAL, Job, complete_header, job_from
from ppexport.device.journal import Journal, JournalError, Past, read_header, read_past
from ppexport.device.machine import peak_memory
from ppexport.device.measure import ArtifactSubject, Loop, Plan
from ppexport.device.sensors import Reading, Sensor, board_sensors, system_reading
from ppexport.device.target import Target
from ppexport.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    InputError,
    PpexportError,
    UnavailableError,
    present,
)
from ppexport.files import naming, system_sentence

QUERIES = re.compile(rb"queries (\d+)\n")
"""A line of a measuring process, after every reading of the sensors."""
Progress = Callable[[int, int], object]
"""Receives (queries so far, queries at least)."""


@contextmanager
def _measuring(action: str, job: Job, output: int) -> Iterator[subprocess.Popen[bytes]]:
    """A measuring process that has the job on its standard input; an error in the block ends it.

    Raises PpexportError, as the process did, at the end of the block.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "ppexport.device.launch", action],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            # Its own session: Ctrl-C is for this program, which ends its child in order.
            start_new_session=True,
            # Before NumPy loads a BLAS: waiting threads that spin would be measured too.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        with child:
            try:
                # A child that ended at once says why itself.
                with suppress(BrokenPipeError), present(child.stdin, "the input of the measuring process") as stdin:
                    stdin.write(job.to_json().encode())
                yield child
                child.wait()
            finally:
                _end(child)
        if child.returncode:
            errors.seek(0)
            raise _explain(child.returncode, errors.read().decode("utf-8", "replace"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End *child* if it still runs: by SIGTERM, and after ten seconds by SIGKILL."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


def _explain(code: int, errors: str) -> PpexportError:
    """The error of a child that ended with *code*, *errors* its standard error."""
    if code < 0:
        return UnavailableError(f"the measuring process was ended by signal {-code}: what it measured is kept")
    said = (errors.strip().splitlines() or [f"the measuring process ended with exit code {code}"])[-1]
    return UnavailableError(said) if code == EXIT_UNAVAILABLE else InputError(said)


def journal_of(path: Path, key: str, value: str, subjects: int) -> Past | None:
    """What the journal *path* holds already; None where there is none, or one without a header yet.

    Raises InputError where it is damaged, or of another measurement, whose header has another *value* of *key*.
    """
    if not path.exists():
        return None
    try:
        header = read_header(str(path))
        if header is None:
            return None
        if header.get(key) == value:
            return read_past(str(path), subjects)
    except JournalError as error:
        raise InputError(f"{error}: name another folder") from None
    raise InputError(
        f"{path.parent} holds another measurement (other artifact, runtime, device, settings, versions, images or "
        "protocol): name another folder"
    )


def known_part(job: Job) -> Past | None:
    """What the journal of *job* holds already, as `journal_of`."""
    return journal_of(job.journal, "identity", job.header["identity"], len(job.targets))


def run(job: Job, progress: Progress) -> bool:
    """Measure *job* on this machine, from where its journal ends; returns False where nothing was left to do.

    Raises PpexportError as the measuring process does. KeyboardInterrupt ends that process; the journal stays, and the
    same job continues from there.
    """
    past = known_part(job)
    if past is not None and past.complete:
        return False
    wanted = job.plan.queries * len(job.targets)
    try:
        with _measuring("measure", job, subprocess.PIPE) as child:
            for line in present(child.stdout, "the output of the measuring process"):
                match = QUERIES.fullmatch(line)
                if match is not None:
                    progress(int(match[1]), max(wanted, int(match[1])))
    except PpexportError:
        if past is None:
            _forget_if_empty(job)
        raise
    return True


def _forget_if_empty(job: Job) -> None:
    """Remove journal and pictures of a run that measured nothing, so that other versions may be tried.

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


def ask(action: str, job: Job) -> Any:
    """What the function *action*, "MODULE:FUNCTION", returns for *job* in a measuring process, by way of JSON.

    Raises PpexportError as that process does.
    """
    with _measuring(action, job, subprocess.PIPE) as child:
        said = present(child.stdout, "the output of the measuring process").read()
    # A runtime may print as well.
    return json.loads(said.splitlines()[-1])


def memory_of(job: Job) -> tuple[int, int]:
    """Peak bytes of a process that opens the only target of *job* and runs it once: before opening it, and in all."""
    before, peak = ask("memory", job)
    return before, peak


# The job of the archive: a whole run on a device.


def _end_once(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt at the first signal; those that follow may not disturb what is restored.

    The job's leader and its process group are ended at the same time, so two signals come.
    """
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_request(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure on this device what `ppexport.profile.remote` asks for; returns {"memory": [before, peak] of each}.

    Raises PpexportError.
    """
    # Whoever removes the job ends its process group first; the power mode is restored then, too.
    signal.signal(signal.SIGTERM, _end_once)
    # The measuring processes find the archive as their first place to import from.
    theirs = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / ARCHIVE), *([theirs] if theirs else [])])
    if request["cores"]:
        # For this process and those that it starts.
        try:
            os.sched_setaffinity(0, request["cores"])
        except (OSError, AttributeError):
            raise UnavailableError(
                f"this device does not let a program run on all of the cores {request['cores']}: name others"
            ) from None
    targets = tuple(Target(**target) for target in request["targets"])

    def warn(text: str) -> None:
        event("notice", text=text)

    place = str(folder)
    with power_mode_set(request["power_mode"], place, warn), clocks_locked(request["lock_clocks"], place, warn):
        header = complete_header(request["wanted"])
        job = Job(targets, folder / IMAGES, Plan(**request["wanted"]["plan"]), folder / JOURNAL, header)
        try:
            known_part(job)
        except InputError:
            raise InputError(
                "the run that was begun on this device is of other versions or another system: remove it with --clean, "
                "and name another folder for the next"
            ) from None
        run(job, lambda done, wanted: event("progress", phase="queries", step=done, steps=wanted))
        return {"memory": [memory_of(replace(job, targets=(target,))) for target in targets]}


# What a measuring process does.


def _subjects_of(job: Job) -> list[ArtifactSubject]:
    """What the job measures, not loaded yet."""
    images = np.load(job.images, allow_pickle=False)
    return [ArtifactSubject(target, images) for target in job.targets]


def measure(job: Job) -> None:
    """Measure what the journal lacks. Raises PpexportError."""
    subjects = _subjects_of(job)
    journal = Journal(str(job.journal))
    try:
        past = known_part(job)
        if past is None:
            journal.write("header", job.header)
            past = Past(len(subjects))
        if not past.complete:
            with naming(job.journal), board_sensors() as board:
                sensors = [system_reading, *board, _end_with(os.getppid())]
                Loop(subjects, len(subjects[0].inputs), job.plan, journal, sensors, _tell).run(past)
    finally:
        journal.close()


def _tell(queries: int) -> None:
    # A process that was killed reads it no more.
    with suppress(OSError):
        print("queries", queries, flush=True)


def _end_with(parent: int) -> Sensor:
    """A sensor that shows nothing and ends this process once the one that started it is gone.

    Raises KeyboardInterrupt: a measurement that nobody waits for would disturb the next one.
    """

    def look() -> Reading:
        if os.getppid() != parent:
            raise KeyboardInterrupt
        return {}

    return look


def memory(job: Job) -> tuple[int, int]:
    """Load the only target and run it once; returns this process's peak in bytes before and after."""
    (subject,) = _subjects_of(job)
    before = peak_memory()
    subject.load()
    subject.query(0)
    return before or 0, peak_memory() or 0


def main() -> int:
    """Do what the first argument says, "measure", "memory" or MODULE:FUNCTION, and print what it returns as JSON.

    Returns the exit code.
    """
    module, _, name = sys.argv[1].rpartition(":")
    try:
        work = getattr(import_module(module or "ppexport.device.launch"), name)
        print(json.dumps(work(job_from(sys.stdin.read()))))
    except PpexportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{system_sentence(error)}; what was measured is kept", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    # Ctrl-C is for the process that started this one, which ends it with SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(import_module("ppexport.device.launch").main())
