"""Runs a package on a Mac with each compute unit, every trial in a child process with a limit of time and memory.

Core ML compiles while it loads, may take minutes or all memory for one unit, and may end the process: none of that may
take a parity run with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.run_mac import UNITS
from ppexport.errors import PpexportError, first_line

CHILD = (sys.executable, "-m", "ppexport.backends.coreml.trial_child")
SECONDS, MEGABYTES = 900.0, 8192
"""What a trial may take."""
POLL = 0.2
"""Seconds between two looks at a child."""


class TrialError(PpexportError):
    """A trial that failed, took too long, or took too much memory."""

    exit_code = 1


@dataclass(frozen=True)
class Trial:
    """What one compute unit computed."""

    outputs: list[dict[str, NDArray[Any]]]
    """One for every input, in order."""
    plan: dict[str, Any] = field(default_factory=dict)
    """operations by device, crossings, and the device of every operation; empty where coremltools tells none."""


def resident_megabytes(process: int) -> float:
    """Memory of a *process*, 0 where it cannot be told this time. Raises TrialError where it never can."""
    look = ["ps", "-o", "rss=", "-p", str(process)]
    try:
        done = subprocess.run(look, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        # A Mac that is busy compiling; the next look tells, and the trial's own time is limited.
        return 0.0
    except OSError as error:
        raise TrialError(f"the memory of a trial cannot be watched: ps does not run ({error.strerror})") from None
    return int(done.stdout) / 1024 if done.stdout.strip().isdigit() else 0.0


def run_trial(
    package: Path,
    unit: str,
    inputs: Sequence[Mapping[str, NDArray[Any]]],
    *,
    seconds: float = SECONDS,
    megabytes: float = MEGABYTES,
    command: Sequence[str] = CHILD,
) -> Trial:
    """Run *package* on all *inputs*, as `Session.run` takes them, with the compute *unit*.

    *command* is the child, told the request's file. Raises TrialError, which says what went wrong.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {f"{number}.{key}": value for number, fed in enumerate(inputs) for key, value in fed.items()}
        np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
        request = {"package": str(package.resolve()), "unit": UNITS[unit], "count": len(inputs)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen([*command, str(folder)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                _watch(child, unit, time.monotonic() + seconds, megabytes)
            finally:
                if child.poll() is None:
                    child.kill()
                child.wait()
        if child.returncode:
            lines = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1][:300] if lines else "it said nothing"
            raise TrialError(f"Core ML with {UNITS[unit]} ended with {child.returncode}: {said}")
        return _read(folder, len(inputs), unit)


def _watch(child: subprocess.Popen[bytes], unit: str, deadline: float, megabytes: float) -> None:
    """Wait for the end of *child*. Raises TrialError beyond a limit."""
    while child.poll() is None:
        if time.monotonic() > deadline:
            raise TrialError(f"Core ML with {UNITS[unit]} did not end in time")
        used = resident_megabytes(child.pid)
        if used > megabytes:
            raise TrialError(f"Core ML with {UNITS[unit]} took {used:.0f} MB, more than {megabytes:.0f}")
        time.sleep(POLL)


def _read(folder: Path, count: int, unit: str) -> Trial:
    """The child's results. Raises TrialError for incomplete ones."""
    try:
        with np.load(folder / "outputs.npz", allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise TrialError(f"Core ML with {UNITS[unit]} left no result: {first_line(error)}") from None
    outputs: list[dict[str, NDArray[Any]]] = [{} for _ in range(count)]
    for key, value in arrays.items():
        number, _, name = key.partition(".")
        outputs[int(number)][name] = value
    if any("sr" not in found for found in outputs):
        raise TrialError(f"Core ML with {UNITS[unit]} left no picture")
    return Trial(outputs, plan)
