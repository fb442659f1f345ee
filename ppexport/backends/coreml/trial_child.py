"""The child of `trial`: `python -m ppexport.backends.coreml.trial_child FOLDER`, on a Mac with coremltools.

FOLDER holds `request.json` and `inputs.npz`; `outputs.npz` and `plan.json` are written beside them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppexport.backends.coreml.run_mac import Opened, Planned, open_function
from ppexport.device.artifact import capacity_function

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

Open = Callable[[str, str, str | None], Opened]
"""As `device.open_function`."""


def summary(operations: Sequence[Planned]) -> dict[str, Any]:
    """Counts, crossings, and every operation's device, for those that one is told of."""
    placed = [op for op in operations if op.device]
    kinds = [op.device for op in placed]
    return {
        "operations": dict(Counter(kinds)),
        "crossings": sum(a != b for a, b in pairwise(kinds)),
        "devices": {op.name: op.device for op in placed},
    }


def function_of(fed: Arrays) -> str | None:
    """The function that the length of `slots` chooses, which is taken out of *fed*."""
    slots = fed.pop("slots", None)
    return None if slots is None else capacity_function(slots.shape[1])


def slots_of(function: str | None) -> int:
    """The slots of a *function*, 0 for the only one."""
    return 0 if function is None else int(function.rpartition("_")[2])


def run(folder: Path, opens: Open = open_function) -> None:
    """Run all inputs in *folder*, and write their outputs and then the plan of the function with the most slots.

    The plan is extra, the numbers count: where there is none, its file says why.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    fed: list[Arrays] = [{} for _ in range(request["count"])]
    with np.load(folder / "inputs.npz", allow_pickle=False) as data:
        for key in data.files:
            number, _, name = key.partition(".")
            fed[int(number)][name] = data[key]
    functions: dict[str | None, Opened] = {}
    outputs: Arrays = {}
    for number, given in enumerate(fed):
        name = function_of(given)
        if name not in functions:
            functions[name] = opens(request["package"], request["unit"], name)
        outputs.update({f"{number}.{key}": value for key, value in functions[name].predict(given).items()})
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    try:
        plan = summary(functions[max(functions, key=slots_of)].plan())
    except Exception as error:  # whatever coremltools raises; the outputs are kept
        plan = {"unknown": f"{type(error).__name__}: {error}"[:300]}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
