"""What runs on a device: the main program of the archive that `ppexport.profile.archive` packs.

It reads `request.json` in its folder, has a process of its own measure into `latency.jsonl`, another measure memory,
and writes `outcome.json`. What it does it prints as events, one JSON object a line, which `ppexport.remote.output`
reads: {"event": "progress", "phase", "step", "steps"}, {"event": "notice", "text"} for people, and {"event": "failed",
"kind", "message"}.

Python 3.8 and NumPy; the measuring process needs the runtime, too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppexport.device.board import complete_header
from ppexport.device.jetson import Refused, clocks_locked, power_mode_set
from ppexport.device.job import ARCHIVE, IMAGES, JOURNAL, OUTCOME, REQUEST, Job
from ppexport.device.launch import INTERRUPTED, known_part, memory_of, run
from ppexport.device.measure import plan_from
from ppexport.device.target import Target
from ppexport.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, InputError, PpexportError
from ppexport.files import system_sentence

TOLD = 2.0
"""Seconds between two events of progress."""


def event(name: str, **fields: Any) -> None:
    """Print one event."""
    # A full disk takes no output; the journal has its own way to say so.
    with suppress(OSError):
        print(json.dumps({"event": name, **fields}), flush=True)


class Progress:
    """Tells how many queries are done, now and then."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, wanted: int) -> None:
        """*done* of *wanted* at least."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + TOLD
            event("progress", phase="queries", step=done, steps=wanted)


def measure(request: dict[str, Any], folder: Path) -> None:
    """Measure what *request* says in *folder*. Raises PpexportError, Refused."""
    if request["cores"]:
        # For this process and those that it starts.
        try:
            os.sched_setaffinity(0, request["cores"])
        except (OSError, AttributeError):
            raise Refused(f"not all of the cores {request['cores']} are there and free to use") from None
    targets = tuple(Target(**target) for target in request["targets"])

    def warn(text: str) -> None:
        event("notice", text=text)

    place = str(folder)
    with power_mode_set(request["power_mode"], place, warn), clocks_locked(request["lock_clocks"], place, warn):
        header = complete_header(request["wanted"])
        job = Job(targets, folder / IMAGES, plan_from(request["wanted"]["plan"]), folder / JOURNAL, header)
        try:
            known_part(job)
        except InputError:
            raise InputError(
                "the run that was begun here is of other versions or another system: remove it with --clean, and name "
                "another folder for the next"
            ) from None
        run(job, Progress())
        memory = [memory_of(replace(job, targets=(target,))) for target in targets]
    outcome = folder / OUTCOME
    new = folder / (OUTCOME + ".new")
    new.write_text(json.dumps({"memory": memory}), encoding="utf-8")
    os.replace(new, outcome)


def end_once(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt at the first signal; those that follow may not disturb what is put back.

    The job's leader and its process group are ended at the same time, so there are two.
    """
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Do what the folder's request says; returns the exit code."""
    # Whoever removes the job ends its process group first; the power mode is put back then, too.
    signal.signal(signal.SIGTERM, end_once)
    folder = Path.cwd()
    # The measuring processes find this archive as their first place to import from.
    theirs = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / ARCHIVE), *([theirs] if theirs else [])])
    try:
        measure(json.loads((folder / REQUEST).read_text(encoding="utf-8")), folder)
    except Refused as error:
        event("failed", kind="refused", message=str(error))
        return EXIT_UNAVAILABLE
    except PpexportError as error:
        event("failed", kind="measuring", message=str(error))
        return error.exit_code
    except OSError as error:
        event("failed", kind="system", message=system_sentence(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        event("failed", kind="ended", message="the run was ended from outside")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
