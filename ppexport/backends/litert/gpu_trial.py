"""The GPU of this machine as a compute unit of parity: `ppexport parity ARTIFACT --units gpu`.

A driver may end the process, so a child computes: `python -m ppexport.backends.litert.gpu_trial FOLDER`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import UnitRun
from ppexport.backends.litert.run_gpu import LOADER, GpuSession, has_gpu
from ppexport.backends.unit_trial import answer, run_in_child
from ppexport.errors import InputError, PpexportError, UnavailableError
from ppexport.files import module_command

if TYPE_CHECKING:
    from ppexport.device.runner import Runner

CHILD = module_command("ppexport.backends.litert.gpu_trial")
SECONDS = 7200.0
"""For all inputs; without a real GPU each takes a minute at 32x32."""
UNIT = "gpu"


def unit_runs(runner: Runner, names: Sequence[str]) -> dict[str, UnitRun]:
    """{"gpu": what runs the file of *runner* there}.

    Raises InputError for another unit, UnavailableError where this machine has no GPU driver.
    """
    unknown = [name for name in names if name != UNIT]
    if unknown:
        raise InputError(f"the compute unit of LiteRT is {UNIT}, not {unknown[0]!r}")
    if not has_gpu():
        raise UnavailableError(
            f"LiteRT's GPU accelerator finds no GPU here: it needs {LOADER} and a Vulkan driver, which VK_DRIVER_FILES "
            "can name"
        )
    request = {"file": str(runner.artifact.model_file.resolve())}
    return {UNIT: partial(run_in_child, request, "LiteRT on the GPU", command=CHILD, seconds=SECONDS)}


def opened(request: Mapping[str, Any]) -> GpuSession:
    """The session that *request* asks for."""
    file = Path(request["file"])
    return GpuSession(file.read_bytes(), str(file))


def planned(session: GpuSession) -> dict[str, Any]:
    """Where operators run: a session is open only if all of them run on the GPU, in fp32."""
    model = import_module("ai_edge_litert.schema_py_generated").Model.GetRootAs(session.content)
    count = max(model.Subgraphs(i).OperatorsLength() for i in range(model.SubgraphsLength()))
    return {"operations": {session.adapter: count}, "crossings": 0, "precision": "fp32"}


if __name__ == "__main__":
    try:
        answer(Path(sys.argv[1]), opened, planned)
    except PpexportError as error:
        print(error, file=sys.stderr, flush=True)
        # At once: the runtime's farewell would hide the sentence.
        os._exit(1)
