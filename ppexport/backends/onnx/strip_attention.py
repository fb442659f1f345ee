"""Attention over many groups of rows -> the same operator in a Scan over a few groups at a time.

Before:

    q, k, v -> Reshape (groups, size, heads * d) -> Attention([bias]) -> Reshape -> out

After, where the logits of all groups together take more than `WHOLE`:

    q, k, v -> Reshape (strips, groups per strip, size, heads * d) -> Scan: Attention([bias]) -> Reshape -> out

ONNX Runtime 1.32's kernel for CPUs writes the logits of all groups to memory, then takes the softmax of all, then
multiplies all by v: 4 kB for every token of window attention at each of these passes, 17 MB for 64x64 tokens, 268 MB
for 256x256. In a strip they stay in a core's cache. Scan cuts its inputs and puts its outputs together without a copy.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.pattern import Graph, Replacement, attribute, rewrite
from ppexport.errors import ExportError

WHOLE = 1 << 23
"""Logits in bytes up to which one call is as fast: category attention of 64x64 tokens, but not their windows."""
STRIP = 1 << 20
"""Logits in bytes of a strip; the cores that ppexport was measured on have 2 MB of L2."""


def _in_strips(model: onnx.ModelProto, attention: NodeProto, rows: list[str], shape: list[int]) -> list[NodeProto]:
    """The nodes that compute *attention* of *rows* (n, c) in strips of *shape* (groups, size, c)."""
    name, node_name = attention.output[0], attention.name or attention.output[0]
    cut = numpy_helper.from_array(np.array([-1, *shape]), f"{name}_strips")
    model.graph.initializer.append(cut)
    nodes, inside = [], []
    for label, row in zip("qkv", rows, strict=True):
        nodes.append(helper.make_node("Reshape", [row, cut.name], [f"{name}_{label}_strips"], f"{node_name}/{label}"))
        inside.append(helper.make_tensor_value_info(f"{name}_{label}_strip", TensorProto.FLOAT, shape))
    result = helper.make_tensor_value_info(f"{name}_strip", TensorProto.FLOAT, shape)
    inner = NodeProto()
    inner.CopyFrom(attention)
    inner.input[:3] = [info.name for info in inside]
    inner.output[:] = [result.name]
    body = helper.make_graph([inner], "strip", inside, [result])
    names = [node.output[0] for node in nodes]
    return [*nodes, helper.make_node("Scan", names, [name], f"{node_name}/Scan", body=body, num_scan_inputs=len(names))]


def strip_attention(model: onnx.ModelProto, capacities: tuple[int, ...]) -> None:
    """Put the large attentions of *model* into strips, in place.

    A symbolic number of rows is one of *capacities*. Raises ExportError where Attention reads anything but rows that
    were reshaped to (groups, size, channels), something else than a Reshape reads it, or every group has its own bias.
    """

    def stripped(graph: Graph, attention: NodeProto) -> Replacement | None:
        reshapes = [node for name in attention.input[:3] if (node := graph.made_by(name, "Reshape")) is not None]
        shape = graph.constant(reshapes[0].input[1]) if len(reshapes) == 3 else None
        if shape is None or shape.size != 3 or graph.read_by(attention, "Reshape") is None:
            raise ExportError(f"{attention.name}: strips need rows of (groups, size, channels)")
        size, channels, heads = int(shape[1]), int(shape[2]), attribute(attention, "q_num_heads")
        if not isinstance(heads, int):
            raise ExportError(f"{attention.name}: strips need the number of heads")
        each = 4 * heads * size * size
        elements = graph.elements(reshapes[0].input[0])
        lengths = capacities if elements is None else (elements // channels,)
        if max(lengths) // size * each <= WHOLE:
            return None
        if any((graph.shape(name) or [0])[0] != 1 for name in attention.input[3:]):
            raise ExportError(f"{attention.name}: strips need one bias for all groups, (1, heads, size, size)")
        # The most groups that a strip holds, in equal strips.
        groups, most = math.gcd(*lengths) // size, max(1, STRIP // each)
        per_strip = max(n for n in range(1, min(most, groups) + 1) if groups % n == 0)
        rows = [node.input[0] for node in reshapes]
        made = _in_strips(model, attention, rows, [per_strip, size, channels])
        return Replacement(attention.output[0], made, reshapes)

    rewrite(model, "Attention", stripped)
