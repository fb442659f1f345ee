"""Twin -> model.onnx for TensorRT, with the precision written into it; `run_builder` makes the engine from it.

The file suits TensorRT 10.3 (JetPack 6): opset 17, no CumSum, no Gelu, no Attention; the linter enforces it, since
newer parsers would take more. Types are strong, as TensorRT 11 and TensorRT-RTX need them.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from ppexport.backends.backend import BuildJob, Built
from ppexport.backends.onnx.build_onnx import MODEL, build_graph
from ppexport.backends.onnx.export_onnx import SLOTS
from ppexport.backends.onnx.graph_view import GraphView, Origin
from ppexport.backends.onnx.model_file import read_model

BYTES: dict[int, int] = {onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT64: 8, onnx.TensorProto.BOOL: 1}
"""Of the element types that are not 4 bytes wide."""


def build_for_tensorrt(job: BuildJob) -> Built:
    """Write `model.onnx` in the job's precision, and estimate what a run takes. Raises as `build_graph`."""
    padded = job.options.pad_heads and "tensorrt" in job.architecture.flavours
    twin = job.twin(flavour="tensorrt" if padded else "portable")
    details = build_graph(job, twin)
    slots = job.capacities[-1] if job.is_set else 0
    return Built([MODEL], twin.flavour, {**details, "activation_bytes": activation_bytes(job.folder / MODEL, slots)})


def activation_bytes(path: Path, slots: int) -> int:
    """The most that the tensors of one run of the ONNX file *path* take at a time.

    *slots* are those of a capacity set, 0 without one. Estimated from shapes, in the order of the nodes. TensorRT,
    which runs branches side by side, takes two to three times as much (24 MB where this says 10, TensorRT-RTX 1.7 at
    32x32); where not even this fits, nothing will.
    """
    view = GraphView(read_model(path), {SLOTS: slots} if slots else {})
    nodes = [node for node in view.nodes if view.origin_of(node.proto.output[0]) is Origin.DATA]
    last = {name: number for number, node in enumerate(nodes) for name in node.proto.input}
    live = peak = 0
    for number, node in enumerate(nodes):
        live += sum(_bytes(view, name) for name in node.proto.output)
        peak = max(peak, live)
        ended = {name for name in node.proto.input if last[name] == number and name not in view.constants}
        ended |= {name for name in node.proto.output if name not in last}
        live -= sum(_bytes(view, name) for name in ended if view.origin_of(name) is Origin.DATA)
    return peak


def _bytes(view: GraphView, name: str) -> int:
    """Size of a tensor; what is not known counts nothing."""
    element, shape = view.type_of(name)
    if element is None or shape is None or not view.type_of(name).static:
        return 0
    return BYTES.get(element, 4) * math.prod(int(dim) for dim in shape if dim is not None)
