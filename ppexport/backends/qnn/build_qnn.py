"""Twin -> model.onnx and what Qualcomm's compiler makes of it for every chip and capacity.

The graph is the portable one. In fp16 its floats are fp32 in the file, and fp16 on the NPU, which has nothing wider;
labels and counts are int32 there as everywhere. In int8 layers give int8, too, but those whose results are all that a
block adds to the sum through all blocks, which stay fp16. The compiler takes the whole graph or none of it:

    model.onnx -> context-SM8650.onnx        one node EPContext, which holds what was compiled, and no other node

A capacity set is one model.onnx with a symbolic number of slots, and a compiled file for every capacity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import BuildJob, Built
from ppexport.backends.onnx.build_onnx import MODEL, build_graph
from ppexport.backends.qnn.compile_context import compile_context
from ppexport.backends.qnn.run_context import context_name
from ppexport.backends.qnn.run_qnn import OUTPUTS, Session
from ppexport.backends.self_check import ramp_example, self_check
from ppexport.device.machine import versions

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
    details = build_graph(graph_job(job), twin)
    model, capacities = job.folder / MODEL, list(job.capacities) or [0]
    names = [MODEL]
    wanted = [(chip, capacity) for chip in chips for capacity in capacities]
    for number, (chip, capacity) in enumerate(wanted, 1):
        job.step(f"compiling for {chip}, {number} of {len(wanted)}")
        target = job.folder / context_name(chip, capacity, capacities)
        compile_context(model, target, chip, capacity if job.is_set else 0)
        names.append(target.name)
    job.step("comparing with the twin, in Qualcomm's emulator")

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
        lr=ramp_example(twin.size),
        full=False,
    )
    details["build"] = {"soc": chips, **versions(("onnxruntime-qnn",))}
    return Built(names, details=details)


def graph_job(job: BuildJob) -> BuildJob:
    """The job of the graph: in fp16 its floats stay fp32. The NPU takes an int8 layer only where its result is int8."""
    if job.quantisation is None:
        return replace(job, precision="fp32")
    recipe = job.quantisation.recipe
    groups = tuple(group for group in recipe.groups if group not in job.architecture.int8_summed)
    kept = recipe.model_copy(update={"groups": groups})
    return replace(job, quantisation=replace(job.quantisation, recipe=kept, results=True))
