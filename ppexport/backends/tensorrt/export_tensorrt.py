"""Twin -> model.onnx for TensorRT, with the precision written into it; `run_builder` makes the engine from it.

The file suits TensorRT 10.3 (JetPack 6): opset 17, no CumSum, no Gelu, no Attention; the linter enforces it, since
newer parsers would take more. Types are strong, as TensorRT 11 and TensorRT-RTX want them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import torch

from ppexport.backends.backend import BuildJob, Built
from ppexport.backends.onnx.export_onnx import MODEL, SLOTS, Shape, build, build_rewritten, graph_inputs
from ppexport.backends.onnx.graph_view import GraphView, Origin
from ppexport.backends.onnx.model_file import read_model
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.tensorrt.half import write_half
from ppexport.device.picture import psnr
from ppexport.device.runner import way_out
from ppexport.errors import ExportError
from ppexport.networks.architecture import find_architecture
from ppexport.twin.twin import StaticTwin

HALF_DB = 55.0
"""Least PSNR of the fp16 file against the fp32 one, on the example, with equal routing."""
BYTES: dict[int, int] = {onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT64: 8, onnx.TensorProto.BOOL: 1}
"""Of the element types that are not 4 bytes wide."""


def against_fp32(single: Path, rounded: Path, twin: StaticTwin, shape: Shape) -> tuple[float, bool]:
    """PSNR of the file *rounded*, every node rounded to its declared type, against the fp32 file *single* on the
    example, and whether it has the same impure tokens.

    The categories of *single* are injected: lower precision flips near ties. Raises ExportError where a picture is not
    finite.
    """
    with torch.no_grad():
        inputs = {name: value.numpy() for name, value in graph_inputs(twin, shape, shape.capacities[-1]).items()}
    routing = find_architecture(twin.network.arch).routing
    reference = OnnxProbe(single, routing).run(inputs)
    result = OnnxProbe(rounded, routing, rounds=True).run(inputs, reference.categories)
    for precision, sr in (("fp32", reference.sr), ("fp16", result.sr)):
        if not np.isfinite(sr).all():
            raise ExportError(f"in {precision} the graph gives NaN or infinite values: {way_out(precision, 'onnx')}")
    return psnr(reference.sr, result.sr, 1.0), result.impure_tokens == reference.impure_tokens


def half_check(single: Path, half: Path, twin: StaticTwin, shape: Shape) -> None:
    """Raise ExportError unless the file *half*, rounded to fp16, computes the picture of *single* to 55 dB."""
    decibel, same = against_fp32(single, half, twin, shape)
    if decibel < HALF_DB or not same:
        raise ExportError(f"in fp16 the graph differs from fp32 ({decibel:.1f} dB): export this model as fp32")


def build_for_tensorrt(job: BuildJob) -> Built:
    """Write `model.onnx` in the job's precision, and estimate what a run takes. Raises ExportError."""
    from ppexport.backends.onnx.quantised import build_quantised

    shape, keep = Shape(job.capacities, job.mask), job.options.keep
    padded = job.options.pad_heads and "tensorrt" in job.architecture.flavours
    twin, details = job.twin(flavour="tensorrt" if padded else "portable"), {}
    if job.quantisation is not None:
        _, said = build_quantised(twin, job.card, job.folder, shape, keep, job.step, job.quantisation)
        details = {"quantisation": said}
    elif job.precision == "fp32":
        build(twin, job.card, job.folder, shape, keep, job.step)
    else:

        def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
            return write_half(model, job.architecture)

        build_rewritten(twin, job.card, job.folder, shape, keep, job.step, job.precision, rewrite, half_check)
    return Built([MODEL], twin.flavour, {**details, "activation_bytes": activation_bytes(job.folder / MODEL, shape)})


def activation_bytes(path: Path, shape: Shape) -> int:
    """The most that the tensors of one run of the ONNX file *path* take at a time, at the largest capacity.

    Estimated from shapes, in the order of the nodes. TensorRT, which runs branches side by side, takes two to three
    times as much (24 MB where this says 10, TensorRT-RTX 1.7 at 32x32); where not even this fits, nothing will.
    """
    view = GraphView(read_model(path), {SLOTS: shape.capacities[-1]} if shape.is_set else {})
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
