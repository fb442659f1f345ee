"""Twin -> model.onnx and what Qualcomm's compiler makes of it for every chip and capacity.

The graph is the portable one. In fp16 its floats are fp32 in the file, and fp16 on the NPU, which has nothing wider;
labels and counts are int32 there as everywhere. The compiler takes the whole graph or none of it:

    model.onnx -> context-SM8650.onnx        one node EPContext, which holds what was compiled, and no other node

A capacity set is one model.onnx with a symbolic number of slots, and a compiled file for every capacity.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from ppexport.backends.backend import BuildJob, Built
from ppexport.backends.onnx.build_onnx import MODEL, build_graph
from ppexport.backends.qnn.run_qnn import OUTPUTS, Session, context_name
from ppexport.backends.self_check import self_check
from ppexport.device.machine import versions
from ppexport.errors import ExportError, PpexportError, counted

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

LEAST_DB = {"fp16": 30.0, "int8": 20.0}
"""Below this the compiler went wrong. Categories cannot be injected into what it makes, and near ties flip."""


def build_for_qnn(job: BuildJob, chips: list[str]) -> Built:
    """Write all files of a QNN artifact for *chips*, and compare one of them with the twin in the emulator.

    Raises:
        InputError: the calibration lacks a tensor of this graph.
        ExportError: a stage or a check failed, or the NPU does not take all of the graph.
        UnavailableError: Qualcomm's compiler does not start.
    """
    twin = job.twin()
    details = build_graph(replace(job, precision="fp32") if job.precision == "fp16" else job, twin)
    model, capacities = job.folder / MODEL, list(job.capacities) or [0]
    names = [MODEL]
    wanted = [(chip, capacity) for chip in chips for capacity in capacities]
    for number, (chip, capacity) in enumerate(wanted, 1):
        job.step(f"compiling for {chip}, {number} of {len(wanted)}")
        target = job.folder / context_name(chip, capacity, capacities)
        compile_context(model, target, chip, capacity if job.is_set else 0)
        names.append(target.name)
    job.step("comparing with the twin, in Qualcomm's emulator")
    h, w = twin.size
    # An even picture: in noise near ties flip in fp16.
    ramp = torch.linspace(0, 1, h * w).view(1, 1, h, w)

    def compute(inputs: Arrays, _: Any) -> tuple[Any, int]:
        slots = inputs.get("slots")
        capacity = capacities[-1] if slots is None else slots.shape[1]
        file = job.folder / context_name(chips[0], capacity, capacities)
        sr, impure = Session(file.read_bytes(), str(file), chips[0]).run(list(OUTPUTS), inputs)
        return sr, int(impure[0])

    self_check(
        compute,
        twin,
        job,
        backend="qnn",
        kind="context",
        least=LEAST_DB[job.precision],
        lr=torch.cat([ramp, ramp.flip(2), torch.full_like(ramp, 0.5)], dim=1),
        full=False,
    )
    details["build"] = {"soc": chips, **versions(("onnxruntime-qnn",))}
    return Built(names, details=details)


def compile_context(model: Path, target: Path, chip: str, slots: int) -> None:
    """Compile the ONNX file *model* for *chip* into *target*, with so many *slots* where their number is symbolic.

    In a child process, since a minute inside the compiler could not be interrupted, and its faults would end this one.

    Raises:
        ExportError: the NPU does not take all of the graph, or the compiler fails.
        UnavailableError: it does not start.
    """
    request = json.dumps({"model": str(model), "target": str(target), "chip": chip, "slots": slots})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        number = -done.returncode
        said = "memory may have run out" if number == signal.SIGKILL else "try a smaller size or another chip"
        raise ExportError(f"Qualcomm's compiler was ended by signal {number} while it compiled for {chip}: {said}")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ExportError(f"Qualcomm's compiler failed for {chip}: {last}") from None
    if answer:
        raise ERRORS[answer["kind"]](answer["said"])
    check_one_partition(target, chip)


ERRORS: dict[str, type[PpexportError]] = {kind.__name__: kind for kind in PpexportError.__subclasses__()}


def check_one_partition(target: Path, chip: str) -> None:
    """Raise ExportError unless the compiled file *target* is one node, of Qualcomm's, and nothing else."""
    nodes = [node.op_type for node in onnx.load(target, load_external_data=False).graph.node]
    if nodes != ["EPContext"]:
        raise ExportError(
            f"for {chip} the graph falls apart into {counted(len(nodes), 'part')} where it should be one: please "
            "report this model"
        )


def main() -> None:
    """Runs in the child: a request on standard input, an empty object or what failed on standard output."""
    request = json.load(sys.stdin)
    settings = {
        "ep__context_enable": "1",
        "ep__context_embed_mode": "1",
        "ep__context_file_path": request["target"],
    }
    model = Path(request["model"])
    answer = {}
    try:
        with closing(Session(model.read_bytes(), model.name, request["chip"], request["slots"], **settings)):
            pass
    except PpexportError as error:
        answer = {"kind": type(error).__name__, "said": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
