"""Builds an ExecuTorch artifact: lowered, and compared with the twin where a runtime here computes it."""

from __future__ import annotations

import functools
from contextlib import closing
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from ppexport.backends.backend import BuildJob, Built
from ppexport.backends.executorch.lower import write_program
from ppexport.backends.executorch.run_executorch import Session
from ppexport.backends.self_check import self_check

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

MODEL = "model.pte"
LEAST_DB = 90.0
"""Below this the conversion is wrong."""


def build_for_executorch(job: BuildJob) -> Built:
    """Write `model.pte` into the job's folder, and say what it is.

    Raises:
        ExportError: a stage or the comparison with the twin failed.
    """
    twin, partitioner, target = job.twin(), job.options.partitioner, job.folder / MODEL
    write_program(target, twin, job.card, job, partitioner, step=job.step)
    built = {"partitioner": partitioner, "executorch": version("executorch"), "compared": partitioner == "xnnpack"}
    if partitioner != "xnnpack":
        return Built([MODEL], details={"build": built})
    job.step("comparing with the twin, in ExecuTorch's runtime")
    with closing(Session(target.read_bytes(), str(target))) as session:

        def compute(inputs: Arrays, _: Any) -> tuple[Any, int]:
            found = session.run(inputs)
            return found["sr"], int(found["impure_tokens"].reshape(-1)[0])

        check = functools.partial(self_check, compute, twin, job, backend="executorch", kind="program", least=LEAST_DB)
        check()
        # Nothing to route: the smallest capacity, which torch.export takes for a special case where it is one group.
        check(lr=torch.full((1, 3, *twin.size), 0.5), full=False)
    return Built([MODEL], details={"build": built})
