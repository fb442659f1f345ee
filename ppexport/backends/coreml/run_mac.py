"""Core ML itself, which only a Mac has: one function opens a package, predicts with it, and asks for its plan.

All that touches coremltools' `predict` and `MLComputePlan` is here. Untested on hardware: written from the
documentation of coremltools 9.0, tested with a stand-in; models/pp_atd_light_x2/APPLE.md has the check list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppexport.device.artifact import Artifact, capacity_function
from ppexport.device.picture import to_input, to_uint8
from ppexport.device.runner import Prepared, Result, Runner, feeds
from ppexport.device.target import Runtime
from ppexport.errors import ArtifactError, InputError, UnavailableError, first_line, require

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ne": "CPU_AND_NE", "all": "ALL"}
"""Compute units, and coremltools' names of them."""
if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


class Planned(NamedTuple):
    """What Core ML plans for one operation."""

    name: str
    """Of its first result, which tells the module (`specification`)."""
    operator: str
    """ "ios18.matmul"."""
    device: str
    """ "MLNeuralEngineComputeDevice"; "" where the plan tells none, as for constants."""
    cost: float | None
    """Estimated share of a prediction, of 1."""


@dataclass(frozen=True)
class Opened:
    """One function of a package on one compute unit."""

    predict: Callable[[Arrays], Arrays]
    """Outputs for `lr` and, where it is an input, `mask`; `lr` and `sr` are float32 (1, 3, h, w) in [0, 1] also where
    the package takes pictures."""
    plan: Callable[[], list[Planned]]
    """Every operation in the order of the program. Raises what coremltools raises."""


def check_platform() -> None:
    """Raise UnavailableError where Core ML cannot run."""
    if sys.platform != "darwin":
        raise UnavailableError(
            "Core ML runs on a Mac only; `ppexport parity` without --units checks a package anywhere, in an evaluator "
            "whose time says nothing about a device"
        )


def open_function(package: str, unit: str, function: str | None) -> Opened:
    """The *function*, None for the only one, of the *package* on a *unit* as coremltools names it.

    Compiling takes a while. Raises ArtifactError where Core ML refuses, UnavailableError without coremltools.
    """
    require("coremltools", "coreml")
    # By name: a device without coremltools checks types, too.
    tools = import_module("coremltools")
    units = getattr(tools.ComputeUnit, unit)
    try:
        model = tools.models.MLModel(package, compute_units=units, function_name=function)
    except Exception as error:  # Core ML's errors arrive as RuntimeError
        raise ArtifactError(f"Core ML cannot load {package}: {first_line(error)}") from None
    pictures = takes_pictures(model.get_spec())

    def predict(fed: Arrays) -> Arrays:
        given: dict[str, Any] = dict(fed)
        if pictures:
            from PIL import Image

            given["lr"] = Image.fromarray(to_uint8(fed["lr"]))
        found = dict(model.predict(given))
        sr = to_input(np.asarray(found["sr"].convert("RGB"))) if pictures else np.asarray(found["sr"], np.float32)
        return {"sr": sr, "impure_tokens": np.asarray(found["impure_tokens"])}

    def plan() -> list[Planned]:
        plans = import_module("coremltools.models.compute_plan").MLComputePlan
        return planned(plans.load_from_path(str(model.get_compiled_model_path()), compute_units=units), function)

    return Opened(predict, plan)


def takes_pictures(spec: Any) -> bool:
    """Whether a package of this specification takes pictures; one of several functions describes each by itself."""
    described = (spec.description, *spec.description.functions)
    return any(i.type.WhichOneof("Type") == "imageType" for each in described for i in each.input)


def planned(plan: Any, function: str | None) -> list[Planned]:
    """Every operation of *function*, None for the only one, in coremltools' compute *plan*."""
    functions = plan.model_structure.program.functions
    found = []
    for op in functions[function or next(iter(functions))].block.operations:
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        found.append(
            Planned(
                str(op.outputs[0].name if op.outputs else op.operator_name),
                str(op.operator_name),
                "" if usage is None else type(usage.preferred_compute_device).__name__,
                None if cost is None else float(cost.weight),
            )
        )
    return found


class CoreMLMacRunner(Runner):
    """A Core ML artifact on this Mac, on the compute units *units*."""

    def __init__(self, artifact: Artifact, units: str = "ALL") -> None:
        """Raises UnavailableError anywhere but on a Mac, InputError for unknown units."""
        super().__init__(artifact)
        if units not in UNITS.values():
            raise InputError(f"compute units are {', '.join(UNITS.values())}, not {units}")
        check_platform()
        self._units = units
        self._functions: dict[int, Opened] = {}
        self._largest = max(artifact.manifest.capacities, default=0)
        self._function(self._largest)

    def _function(self, capacity: int) -> Opened:
        """The function for *capacity* slots, opened when it is first needed."""
        if capacity not in self._functions:
            name = capacity_function(capacity) if len(self.artifact.manifest.capacities) > 1 else None
            self._functions[capacity] = open_function(str(self.artifact.model_file), self._units, name)
        return self._functions[capacity]

    def plan(self) -> list[Planned]:
        """Core ML's plan of the largest capacity."""
        return self._function(self._largest).plan()

    def _close(self) -> None:
        self._functions.clear()

    def _run(self, prepared: Prepared) -> Result:
        inputs = feeds(self.artifact.manifest, prepared)
        # A function stands for the slots.
        inputs.pop("slots", None)
        found = self._function(prepared.capacity).predict(inputs)
        return Result(found["sr"], int(found["impure_tokens"].reshape(-1)[0]), prepared.capacity)


RUNTIME = Runtime(
    "coreml",
    "coreml",
    ("coremltools",),
    "ALL",
    lambda artifact, target: CoreMLMacRunner(artifact, target.device),
    lambda: ["ALL"] if sys.platform == "darwin" else [],
    times="ppexport.backends.coreml.planned_times",
)
