"""The child of `trial`: `python -m ppexport.backends.coreml.trial_child FOLDER`, on a Mac with coremltools.

FOLDER holds `request.json` and `inputs.npz`; `outputs.npz` and `plan.json` are written beside them. Never run on a Mac
so far: see the check list in models/pp_atd_light_x2/APPLE.md.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.describing import capacity_function
from ppexport.picture import to_input, to_uint8

Arrays = dict[str, NDArray[Any]]
Predict = Callable[[Arrays], Arrays]


def opened(package: str, unit: str, function: str | None) -> Predict:
    """coremltools' `predict` of one *function*, None for the only one, on one compute *unit*; *lr* may be a picture.

    This is all of coremltools that a trial computes with.
    """
    import coremltools as ct
    from PIL import Image

    model = ct.models.MLModel(package, compute_units=getattr(ct.ComputeUnit, unit), function_name=function)
    pictures = any(i.type.WhichOneof("Type") == "imageType" for i in model.get_spec().description.input)

    def predict(fed: Arrays) -> Arrays:
        given: dict[str, Any] = dict(fed)
        if pictures:
            given["lr"] = Image.fromarray(to_uint8(fed["lr"]))
        found = dict(model.predict(given))
        if pictures:
            found["sr"] = to_input(np.asarray(found["sr"].convert("RGB")))
        return found

    return predict


def compute_plan(package: str, unit: str, function: str | None) -> dict[str, Any]:
    """Where Core ML would run every operation of a *function*."""
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    compiled = ct.models.utils.compile_model(package)
    plan = MLComputePlan.load_from_path(str(compiled), compute_units=getattr(ct.ComputeUnit, unit))
    functions = plan.model_structure.program.functions
    chosen = functions[function or next(iter(functions))]
    devices = []
    for operation in chosen.block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            name = operation.outputs[0].name if operation.outputs else operation.operator_name
            devices.append((name, type(usage.preferred_compute_device).__name__))
    return summary(devices)


def summary(devices: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """(operation, device) in the order of the program -> counts, crossings, and every operation's device."""
    kinds = [device for _, device in devices]
    return {
        "operations": dict(Counter(kinds)),
        "crossings": sum(a != b for a, b in pairwise(kinds)),
        "devices": dict(devices),
    }


def function_of(fed: Arrays) -> str | None:
    """The function that the length of `slots` chooses, which is taken out of *fed*."""
    slots = fed.pop("slots", None)
    return None if slots is None else capacity_function(slots.shape[1])


def run(folder: Path, open_function: Callable[[str, str, str | None], Predict] = opened) -> set[str | None]:
    """Run all inputs in *folder* and write their outputs. Returns the functions that ran."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    fed: list[Arrays] = [{} for _ in range(request["count"])]
    with np.load(folder / "inputs.npz", allow_pickle=False) as data:
        for key in data.files:
            number, _, name = key.partition(".")
            fed[int(number)][name] = data[key]
    functions: dict[str | None, Predict] = {}
    outputs: Arrays = {}
    for number, given in enumerate(fed):
        name = function_of(given)
        if name not in functions:
            functions[name] = open_function(request["package"], request["unit"], name)
        outputs.update({f"{number}.{key}": np.asarray(value) for key, value in functions[name](given).items()})
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    return set(functions)


def plans(folder: Path, functions: Iterable[str | None]) -> None:
    """Write the compute plan of one of the *functions*, or why there is none: the plan is extra, the numbers count."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        plan = compute_plan(request["package"], request["unit"], sorted(functions, key=str)[-1])
    except Exception as error:  # whatever coremltools raises; the outputs are kept
        plan = {"unknown": f"{type(error).__name__}: {error}"[:300]}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


if __name__ == "__main__":
    here = Path(sys.argv[1])
    plans(here, run(here))
