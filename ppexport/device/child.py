"""A process that does nothing but measure: `python -m ppexport.device.child ACTION`, the job on its input.

Its own, so that neither a command line's libraries nor another runtime's threads disturb it, and so that its peak
memory is the runtime's. An expected failure is one sentence on standard error and its exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

# Before NumPy loads a BLAS: waiting threads that spin would be measured too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from ppexport.device.board import board_sensors
from ppexport.device.job import Job, job_from
from ppexport.device.journal import Journal, JournalError, read_header, read_past
from ppexport.device.launch import INTERRUPTED
from ppexport.device.machine import peak_memory
from ppexport.device.measure import ArtifactSubject, Loop
from ppexport.device.sensors import Reading, Sensor, local_sensors
from ppexport.errors import EXIT_BAD_INPUT, InputError, PpexportError
from ppexport.files import naming, system_sentence


def subjects_of(job: Job) -> list[ArtifactSubject]:
    """What the job measures, not loaded yet."""
    images = np.load(job.images, allow_pickle=False)
    return [ArtifactSubject(target, images) for target in job.targets]


def measure(job: Job) -> None:
    """Measure what the journal lacks. Raises PpexportError."""
    path = str(job.journal)
    subjects = subjects_of(job)
    try:
        journal = Journal(path)
    except JournalError as error:
        raise InputError(str(error)) from None
    try:
        header = read_header(path)
        if header is None:
            journal.write("header", job.header)
        elif header.get("identity") != job.header["identity"]:
            raise InputError(f"{path} is of another measurement")
        past = read_past(path, len(subjects))
        if not past.complete:
            with naming(job.journal), board_sensors() as board:
                sensors = [*local_sensors(), *board, end_with(os.getppid())]
                Loop(subjects, len(subjects[0].inputs), job.plan, journal, sensors).run(past)
    except JournalError as error:
        raise InputError(str(error)) from None
    finally:
        journal.close()


def end_with(parent: int) -> Sensor:
    """A sensor that shows nothing and ends this process once the one that started it is gone.

    Raises KeyboardInterrupt: a measurement that nobody waits for would disturb the next one.
    """

    def look() -> Reading:
        if os.getppid() != parent:
            raise KeyboardInterrupt
        return {}

    return look


def memory(job: Job) -> None:
    """Load the only target, run once, and print this process's peak in bytes before and after."""
    (subject,) = subjects_of(job)
    before = peak_memory()
    subject.load()
    subject.query(0)
    print(before or 0, peak_memory() or 0)


def main() -> int:
    """Do what the first argument says: "measure", "memory" or MODULE:FUNCTION; returns the exit code."""
    module, _, name = sys.argv[1].rpartition(":")
    try:
        work = getattr(import_module(module or __name__), name)
        work(job_from(sys.stdin.read()))
    except PpexportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{system_sentence(error)}; what was measured is kept", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    # Ctrl-C is for the process that started this one, which ends it with SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
