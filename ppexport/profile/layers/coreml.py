"""Core ML's plan: what share of a prediction every operation is expected to take, and where it would run.

Written from the documented interface of `coremltools.models.compute_plan.MLComputePlan`, untested on hardware: for an
operation of the program's main function `get_estimated_cost_for_mlprogram_operation(op)` has `.weight`, a share of 1,
and `get_compute_device_usage_for_mlprogram_operation(op)` has `.preferred_compute_device`. Weights are Core ML's
estimate, not a measurement: times here are the measured latency divided by them.
"""

from __future__ import annotations

from typing import Any

from ppexport.errors import InputError
from ppexport.profile.layers.spans import Operation


def module_of(name: str) -> str | None:
    """The module in a name of a saved package: `layers__0___matmul_2` is of `layers.0`; None for other names."""
    path, found, _ = name.partition("___")
    return path.replace("__", ".") if found else None


def operations_of(plan: Any, latency_ms: float, function: str = "main") -> list[Operation]:
    """The operations of *function*, their share of *latency_ms* as their time. Raises InputError for other plans."""
    program = getattr(plan.model_structure, "program", None)
    if program is None or function not in program.functions:
        raise InputError(f"the plan is not one of an ML program with a function {function!r}")
    found = []
    for op in program.functions[function].block.operations:
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        if cost is None:
            continue
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        device = type(getattr(usage, "preferred_compute_device", None)).__name__
        name = op.outputs[0].name if op.outputs else op.operator_name
        found.append(
            Operation(
                str(name),
                f"{op.operator_name} ({device})",
                float(cost.weight) * latency_ms,
                module=module_of(str(name)),
            )
        )
    if not found:
        raise InputError("the plan estimates no operation")
    return found
