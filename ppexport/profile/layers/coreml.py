"""Core ML's plan: what share of a prediction every operation is expected to take, and where it would run.

Weights are Core ML's estimate, not a measurement: times here are the measured latency divided by them. The plan comes
from `ppexport/backends/coreml/run_mac.py`, which is untested on hardware.
"""

from __future__ import annotations

from collections.abc import Iterable

from ppexport.backends.coreml.run_mac import Planned
from ppexport.errors import InputError
from ppexport.profile.layers.spans import Operation


def module_of(name: str) -> str | None:
    """The module in a name of a saved package: `layers__0___matmul_2` is of `layers.0`; None for other names."""
    path, found, _ = name.partition("___")
    return path.replace("__", ".") if found else None


def operations_of(plan: Iterable[Planned], latency_ms: float) -> list[Operation]:
    """The operations that *plan* estimates, their share of *latency_ms* as their time. Raises InputError for none."""
    found = [
        Operation(op.name, f"{op.operator} ({op.device})", op.cost * latency_ms, module=module_of(op.name))
        for op in plan
        if op.cost is not None
    ]
    if not found:
        raise InputError("the plan estimates no operation")
    return found
