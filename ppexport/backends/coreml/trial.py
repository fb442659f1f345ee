"""Core ML on a Mac: the pictures of each compute unit, every trial in a child process, and the plan of operations.

The plan says where every operation would run, and which share of a prediction it is expected to take: Core ML's
estimate, not a measurement. Like `run_mac.py`, which asks for it, all of this is untested on hardware.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import Operation, UnitRun
from ppexport.backends.coreml.run_mac import UNITS, CoreMLMacRunner, MacSession, Planned, check_platform
from ppexport.backends.coreml.specification import decode
from ppexport.backends.unit_trial import SECONDS, answer, run_in_child
from ppexport.errors import InputError
from ppexport.files import module_command

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Arrays, Runner
    from ppexport.device.target import Target

CHILD = module_command("ppexport.backends.coreml.trial")
METHOD = "Core ML's plan: estimated weights times the measured p50 (read as documented, untested on hardware)"
ESTIMATES = True
"""The times of `layer_times` are shares of a run, of 1."""


def unit_runs(runner: Runner, names: Sequence[str]) -> dict[str, UnitRun]:
    """{compute unit: what runs the package of *runner* on it}, for this Mac.

    Raises InputError for an unknown unit, UnavailableError where this is no Mac.
    """
    unknown = [name for name in names if name not in UNITS]
    if unknown:
        raise InputError(f"compute units are {', '.join(UNITS)}, not {unknown[0]!r}")
    check_platform()
    return {name: partial(run_trial, runner.artifact.model_file, name) for name in names}


def run_trial(
    package: Path,
    unit: str,
    inputs: Sequence[Arrays],
    *,
    seconds: float = SECONDS,
    command: Sequence[str] = CHILD,
) -> tuple[list[Arrays], dict[str, Any]]:
    """Run *package* in a child process.

    Args:
        package: the .mlpackage.
        unit: cpu, gpu, ne or all.
        inputs: of every run, as `Session.run` takes them.
        seconds: that the trial may take.
        command: the child, which receives the folder of the request.

    Returns:
        The outputs of every run, in order, and the plan: operations by device, crossings, and the device of every
        operation; where coremltools gives no plan, the reason.

    Raises:
        TrialError: it failed or took too long.
    """
    request = {"package": str(package.resolve()), "unit": UNITS[unit]}
    return run_in_child(request, f"Core ML with {UNITS[unit]}", inputs, command, seconds)


def run_child(folder: Path) -> None:
    """Run all inputs in *folder*, and write their outputs and then the plan of the function with the most slots."""
    answer(
        folder,
        lambda request: MacSession(request["package"], request["unit"]),
        lambda session: summary(session.plan()),
    )


def summary(operations: Sequence[Planned]) -> dict[str, Any]:
    """Counts, crossings, and every operation's device, for those that the plan places."""
    placed = [op for op in operations if op.device]
    kinds = [op.device for op in placed]
    return {
        "operations": dict(Counter(kinds)),
        "crossings": sum(a != b for a, b in pairwise(kinds)),
        "devices": {op.name: op.device for op in placed},
    }


def layer_times(target: Target, artifact: Artifact, images: Any) -> list[Operation]:
    """The operations that Core ML plans for *artifact*, with shares of 1 as their times; no image is run.

    Raises UnavailableError anywhere but on a Mac, InputError for a plan without estimates.
    """
    return operations_of(CoreMLMacRunner(artifact, target.device).plan())


def operations_of(plan: Iterable[Planned]) -> list[Operation]:
    """The operations that *plan* estimates, in its order. Raises InputError if it estimates none."""
    found = []
    for op in plan:
        if op.cost is not None:
            found.append(Operation(op.name, f"{op.operator} ({op.device})", op.cost, module=decode(op.name)))
    if not found:
        raise InputError("Core ML's plan estimates no operation")
    return found


if __name__ == "__main__":
    run_child(Path(sys.argv[1]))
