"""Which tensors of an fp32 ONNX file are recorded, and the copies of the file that show them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from ppexport.backends.onnx.graph_view import Origin, build_view
from ppexport.backends.onnx.model_file import parse_model
from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.backends.tensorrt.half import MOVES
from ppexport.device.artifact import Artifact
from ppexport.errors import InputError

CHUNK_BYTES = 512 << 20
"""Most bytes of tensors that one copy of the file shows at a time."""
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")


def check_not_quantised(model: onnx.ModelProto, where: str) -> None:
    """Raise InputError where *model* computes in integers or in half precision already."""
    found = next((n.op_type for n in model.graph.node if n.op_type.startswith(QUANTISED)), None)
    half = any(value.data_type == TensorProto.FLOAT16 for value in model.graph.initializer)
    if found or half:
        what = f"holds {found}" if found else "has fp16 weights"
        raise InputError(f"{where} is quantised already ({what}): calibrate the fp32 artefact it was made from")


HANDS_ON = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Split", "Concat")
"""Operators that hand on numbers of their first input, Concat of all inputs, and make no others."""


@dataclass(frozen=True)
class Recorded:
    """The tensors to record: what computes makes them; what only moves numbers has the range of its source."""

    names: tuple[str, ...]
    chunks: tuple[tuple[str, ...], ...]
    """The same names, in parts of at most CHUNK_BYTES."""


def find_tensors(artifact: Artifact) -> Recorded:
    """The tensors of the ONNX artefact *artifact* to record: float32, dependent on the picture, and computed.

    Raises InputError for a file that is quantised already.
    """
    path = artifact.graph_file
    source = parse_model(path, graph_bytes(artifact))
    model = source.proto
    check_not_quantised(model, str(path))
    view = build_view(source, {})
    sizes: dict[str, int] = {}
    for name in (port.name for port in model.graph.input):
        if view.type_of(name).element == TensorProto.FLOAT:
            sizes[name] = 0
    for node in view.nodes:
        if node.op in MOVES or node.op == "Constant":
            continue
        for name in node.proto.output:
            kind = view.type_of(name)
            if name and kind.element == TensorProto.FLOAT and view.origin_of(name) is Origin.DATA:
                sizes[name] = 4 * math.prod(d for d in kind.shape or () if isinstance(d, int))
    chunks: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if chunks[-1] and total + size > CHUNK_BYTES:
            chunks.append([])
            total = 0
        chunks[-1].append(name)
        total += size
    return Recorded(tuple(sizes), tuple(tuple(chunk) for chunk in chunks))


def showing(model: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    """A copy of *model* whose outputs are *names*, those that are inputs left out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = {port.name for port in model.graph.input}
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in inputs
    )
    return copy


def sources_of(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{name: the tensors whose numbers it holds}: back through what only moves numbers, to what was recorded.

    Several where parts were joined, as the four kinds of window are behind shifted window attention.
    """
    maker = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for name in names:
        open_ends, ends = [name], set()
        while open_ends:
            at = open_ends.pop()
            node = maker.get(at)
            if node is None or node.op_type not in HANDS_ON:
                ends.add(at)
            else:
                open_ends += node.input if node.op_type == "Concat" else node.input[:1]
        found[name] = tuple(sorted(ends))
    return found
