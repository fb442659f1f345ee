"""Core ML's plan: which share of a prediction every operation is expected to take, and where it would run.

The shares are Core ML's estimate, not a measurement. Like `run_mac.py`, which asks for the plan, this is untested on
hardware.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import Operation
from ppexport.backends.coreml.run_mac import CoreMLMacRunner, Planned
from ppexport.errors import InputError

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.target import Target

METHOD = "Core ML's plan: estimated weights times the measured p50 (read as documented, untested on hardware)"
ESTIMATES = True
"""The times are shares of a run, of 1."""


def layer_times(target: Target, artifact: Artifact, images: Any) -> list[Operation]:
    """The operations that Core ML plans for *artifact*, with shares of 1 as their times; no image is run.

    Raises UnavailableError anywhere but on a Mac, InputError for a plan without estimates.
    """
    return operations_of(CoreMLMacRunner(artifact, target.device).plan())


def operations_of(plan: Iterable[Planned]) -> list[Operation]:
    """The operations that *plan* estimates, in its order. Raises InputError where there are none."""
    found = []
    for op in plan:
        if op.cost is not None:
            # A saved package calls the results of module `layers.0` such as `layers__0___matmul_2`.
            path, told, _ = op.name.partition("___")
            module = path.replace("__", ".") if told else None
            found.append(Operation(op.name, f"{op.operator} ({op.device})", op.cost, module=module))
    if not found:
        raise InputError("Core ML's plan estimates no operation")
    return found
