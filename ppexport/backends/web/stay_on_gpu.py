"""What onnxruntime-web 1.30 does on the CPU in the midst of a network is written so that a GPU does it.

WebGPU's kernels neither convert int64, nor cut int32, nor know Or. Around each such node the queue of the GPU would be
waited for, its result copied out, and the next one copied back in. Both forms give the same numbers.

Before:

    ArgMax -> Cast int32 (or float) -> out
    x int32 -> Slice begin : end -> out
    a, b -> Or -> out

After:

    ArgMax -> Gather(0 ... n - 1 as int32 (or float)) -> out
    x int32 -> Pad by a negative number -> out
    a, b -> Not, Not -> And -> Not -> out
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.pattern import Graph, Replacement, attribute, names_read, rewrite

CHOSEN = (TensorProto.INT32, TensorProto.FLOAT)


def stay_on_gpu(model: onnx.ModelProto) -> None:
    """Replace, in place, what would leave the GPU in *model*."""
    rewrite(model, "Cast", _from_table)
    rewrite(model, "Or", lambda _, node: _by_and(node))
    moving = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if not moving.isdisjoint(names_read(node)):
            moving.update(node.output)
    # What depends on no input is computed when the file is opened.
    rewrite(model, "Slice", lambda graph, node: _by_pads(graph, node) if node.input[0] in moving else None)


def _from_table(graph: Graph, node: NodeProto) -> Replacement | None:
    """A number below n is the entry of that place in a table of n."""
    chosen, kind = graph.maker.get(node.input[0]), attribute(node, "to")
    shape = graph.shape(chosen.input[0]) if chosen is not None and chosen.op_type == "ArgMax" else None
    if chosen is None or shape is None or kind not in CHOSEN:
        return None
    axis = attribute(chosen, "axis")
    count = shape[axis if isinstance(axis, int) else 0]
    if not isinstance(count, int):
        return None
    values = np.arange(count, dtype=np.int32 if kind == TensorProto.INT32 else np.float32)
    table = _stored(graph, f"numbers_{values.dtype}_{count}", values)
    made = helper.make_node("Gather", [table, node.input[0]], node.output, node.name, axis=0)
    return Replacement(node.output[0], [made], [node])


def _by_pads(graph: Graph, node: NodeProto) -> Replacement | None:
    """What stands at begin ... end - 1 of one axis is left when the rest is taken off by negative pads."""
    info, shape = graph.known.get(node.input[0]), graph.shape(node.input[0])
    if info is None or info.type.tensor_type.elem_type != TensorProto.INT32 or shape is None or len(node.input) < 4:
        return None
    begin, end, axis, step = (_number(graph, name) for name in (*node.input[1:], "")[:4])
    if begin is None or end is None or axis is None or (len(node.input) > 4 and step != 1):
        return None
    length = shape[axis]
    if not isinstance(length, int):
        return None
    taken = range(length)[begin:end]
    if not taken:
        return None
    pads = np.zeros((2, len(shape)), np.int64)
    pads[:, axis] = -taken.start, taken.stop - length
    name = _stored(graph, "_".join(map(str, ["pads", *pads.flat])), pads.ravel())
    made = helper.make_node("Pad", [node.input[0], name], node.output, node.name)
    return Replacement(node.output[0], [made], [node])


def _by_and(node: NodeProto) -> Replacement:
    """Not both are false."""
    out = node.output[0]
    sides, both = [f"{out}_not_{i}" for i in range(2)], f"{out}_not"
    made = [
        *(helper.make_node("Not", [a], [b], f"{node.name}/{b}") for a, b in zip(node.input, sides, strict=True)),
        helper.make_node("And", sides, [both], f"{node.name}/And"),
        helper.make_node("Not", [both], [out], node.name),
    ]
    return Replacement(out, made, [node])


def _number(graph: Graph, name: str) -> int | None:
    """The value of a constant of one element, which the exporter may have given its axis by an Unsqueeze."""
    node = graph.maker.get(name)
    number = graph.number(node.input[0] if node is not None and node.op_type == "Unsqueeze" else name)
    return None if number is None else int(number)


def _stored(graph: Graph, name: str, values: NDArray[np.generic]) -> str:
    """The *name* of a constant, stored once, with these *values*."""
    if name not in graph.values:
        graph.values[name] = numpy_helper.from_array(values, name)
        graph.model.graph.initializer.append(graph.values[name])
    return name
