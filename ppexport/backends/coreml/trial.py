"""Runs a package on a Mac with each compute unit, every trial in a child process with a limit of time and memory.

Core ML compiles while it loads, may take minutes or all memory for one unit, and may end the process: none of that may
take a parity run with it. The child is `python -m ppexport.backends.coreml.trial FOLDER`, where FOLDER holds
`request.json` and `inputs.npz`; it writes `outputs.npz` and `plan.json` beside them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from ppexport.backends.coreml.run_mac import UNITS, Opened, Planned, open_function
from ppexport.device.artifact import capacity_function
from ppexport.errors import PpexportError, first_line

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

CHILD = (sys.executable, "-m", "ppexport.backends.coreml.trial")
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

    outputs: list[Arrays]
    """One for every input, in order."""
    plan: dict[str, Any] = field(default_factory=dict)
    """operations by device, crossings, and the device of every operation; empty where coremltools tells none."""


def resident_megabytes(process: int) -> float:
    """Memory of a *process*, 0 where `ps` does not answer in time. Raises TrialError where it does not run."""
    look = ["ps", "-o", "rss=", "-p", str(process)]
    try:
        done = subprocess.run(look, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        # A Mac that is busy compiling; the next look tells, and the trial's own time is limited.
        return 0.0
    except OSError as error:
        raise TrialError(f"the memory of a trial cannot be watched: ps does not run ({error.strerror})") from None
    return int(done.stdout) / 1024 if done.stdout.strip().isdigit() else 0.0


def _save(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write the arrays of all *runs* to one file."""
    arrays = {f"{number}.{name}": value for number, run in enumerate(runs) for name, value in run.items()}
    np.savez(path, **arrays)


def _load(path: Path, count: int) -> list[Arrays]:
    """The arrays of *count* runs that `_save` wrote."""
    runs: list[Arrays] = [{} for _ in range(count)]
    with np.load(path, allow_pickle=False) as data:
        for key in data.files:
            number, _, name = key.partition(".")
            runs[int(number)][name] = data[key]
    return runs


def run_trial(
    package: Path,
    unit: str,
    inputs: Sequence[Arrays],
    *,
    seconds: float = SECONDS,
    megabytes: float = MEGABYTES,
    command: Sequence[str] = CHILD,
) -> Trial:
    """Run *package* in a child process.

    Args:
        package: the .mlpackage.
        unit: cpu, gpu, ne or all.
        inputs: of every run, as `Session.run` takes them.
        seconds: that the trial may take.
        megabytes: of memory that it may take.
        command: the child, which receives the folder of the request.

    Raises:
        TrialError: it failed, or exceeded a limit.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _save(folder / "inputs.npz", inputs)
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
        try:
            outputs = _load(folder / "outputs.npz", len(inputs))
            plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, IndexError, EOFError, BadZipFile) as error:
            raise TrialError(f"Core ML with {UNITS[unit]} left no result: {first_line(error)}") from None
    if any("sr" not in found for found in outputs):
        raise TrialError(f"Core ML with {UNITS[unit]} left no picture")
    return Trial(outputs, plan)


def _watch(child: subprocess.Popen[bytes], unit: str, deadline: float, megabytes: float) -> None:
    """Wait for the end of *child*. Raises TrialError beyond a limit."""
    while child.poll() is None:
        if time.monotonic() > deadline:
            raise TrialError(f"Core ML with {UNITS[unit]} did not end in time")
        used = resident_megabytes(child.pid)
        if used > megabytes:
            raise TrialError(f"Core ML with {UNITS[unit]} took {used:.0f} MB, more than {megabytes:.0f}")
        time.sleep(POLL)


def summary(operations: Sequence[Planned]) -> dict[str, Any]:
    """Counts, crossings, and every operation's device, for those that the plan tells one of."""
    placed = [op for op in operations if op.device]
    kinds = [op.device for op in placed]
    return {
        "operations": dict(Counter(kinds)),
        "crossings": sum(a != b for a, b in pairwise(kinds)),
        "devices": {op.name: op.device for op in placed},
    }


def run_child(folder: Path, opens: Callable[[str, str, str | None], Opened] = open_function) -> None:
    """Run all inputs in *folder*, and write their outputs and then the plan of the function with the most slots.

    The plan is extra, the numbers count: where there is none, its file says why.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    functions: dict[int, Opened] = {}
    outputs = []
    for fed in _load(folder / "inputs.npz", request["count"]):
        slots = fed.pop("slots", None)
        # The length of `slots` chooses the function; 0 is the only one.
        capacity = 0 if slots is None else slots.shape[1]
        if capacity not in functions:
            name = capacity_function(capacity) if capacity else None
            functions[capacity] = opens(request["package"], request["unit"], name)
        outputs.append(functions[capacity].predict(fed))
    _save(folder / "outputs.npz", outputs)
    try:
        plan = summary(functions[max(functions)].plan())
    except Exception as error:  # whatever coremltools raises; the outputs are kept
        plan = {"unknown": f"{type(error).__name__}: {error}"[:300]}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


if __name__ == "__main__":
    run_child(Path(sys.argv[1]))
