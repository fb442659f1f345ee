"""Core ML itself, which only a Mac has: one function opens a package, predicts with it, and asks for its plan.

All that touches coremltools' `predict` and `MLComputePlan` is here. Untested on hardware: written from the
documentation of coremltools 9.0, tested with a stand-in; docs/apple.md has the check list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppexport.device.artifact import Artifact
from ppexport.device.capacities import capacity_function
from ppexport.device.picture import to_input, to_uint8
from ppexport.device.runner import SessionRunner
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
    """That of its first result, which contains the module (`specification`)."""
    operator: str
    """ "ios18.matmul"."""
    device: str
    """ "MLNeuralEngineComputeDevice"; "" where the plan names none, as for constants."""
    cost: float | None
    """Estimated share of a prediction, of 1."""


class Opened(NamedTuple):
    """One function of a package on one compute unit."""

    predict: Callable[[Arrays], Arrays]
    """Outputs for `lr` and, where it is an input, `mask`; `lr` and `sr` are float32 (1, 3, h, w) in [0, 1] also where
    the package takes pictures."""
    plan: Callable[[], list[Planned]]
    """Every operation in the order of the program. Raises what coremltools raises."""
    facts: dict[str, str]
    """The package's own metadata."""


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
    spec = model.get_spec()
    pictures = takes_pictures(spec)

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

    return Opened(predict, plan, dict(spec.description.metadata.userDefined))


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


class MacSession:
    """A package on one compute unit, whose functions are opened when they are first needed."""

    def __init__(self, package: str, unit: str) -> None:
        self._package, self._unit = package, unit
        self._functions: dict[int, Opened] = {}

    @property
    def facts(self) -> dict[str, str]:
        """The package's own metadata."""
        return self._largest().facts

    def function(self, capacity: int) -> Opened:
        """The function for *capacity* slots of a set; 0 is the only one of another package."""
        if capacity not in self._functions:
            name = capacity_function(capacity) if capacity else None
            self._functions[capacity] = open_function(self._package, self._unit, name)
        return self._functions[capacity]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs for *inputs* as the ONNX graph takes them; the length of `slots` (1, C) chooses the function."""
        fed = dict(inputs)
        slots = fed.pop("slots", None)
        return self.function(0 if slots is None else slots.shape[1]).predict(fed)

    def plan(self) -> list[Planned]:
        """Core ML's plan of the function with the most slots that was opened."""
        return self._largest().plan()

    def _largest(self) -> Opened:
        return self._functions[max(self._functions)]

    def close(self) -> None:
        """Release the functions."""
        self._functions.clear()


class CoreMLMacRunner(SessionRunner):
    """A Core ML artifact on this Mac, on the compute units *units*."""

    def __init__(self, artifact: Artifact, units: str = "ALL") -> None:
        """Raises UnavailableError anywhere but on a Mac, InputError for unknown units."""
        if units not in UNITS.values():
            raise InputError(f"compute units are {', '.join(UNITS.values())}, not {units}")
        check_platform()
        self._mac, capacities = MacSession(str(artifact.model_file), units), artifact.manifest.capacities
        self._mac.function(capacities[-1] if len(capacities) > 1 else 0)
        super().__init__(artifact, self._mac)

    def plan(self) -> list[Planned]:
        """Core ML's plan of the largest capacity."""
        return self._mac.plan()

    def _close(self) -> None:
        self._mac.close()


RUNTIME = Runtime(
    "coreml",
    "coreml",
    ("coremltools",),
    "ALL",
    lambda artifact, target: CoreMLMacRunner(artifact, target.device),
    lambda: ["ALL"] if sys.platform == "darwin" else [],
    # Any: the runner refuses what are no compute units.
    str,
    times="ppexport.backends.coreml.trial",
)
