"""Sums of int32 are computed in int32, as the twin means them.

torch's exporter widens what PyTorch sums, whatever type is asked for, and accelerators lack int64:

Before:

    int32 x -> Cast int64 -> ReduceSum -> Cast int32

After:

    int32 x -> ReduceSum
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, helper

from ppexport.backends.onnx.pattern import Graph, Replacement, attribute, rewrite


def narrow_sums(model: onnx.ModelProto) -> None:
    """Remove the casts around sums of int32 in *model*, in place."""
    rewrite(model, "ReduceSum", _narrowed)


def _narrowed(graph: Graph, node: NodeProto) -> Replacement | None:
    widened, narrowed = graph.made_by(node.input[0], "Cast"), graph.read_by(node, "Cast")
    if widened is None or narrowed is None or attribute(narrowed, "to") != TensorProto.INT32:
        return None
    info = graph.known.get(widened.input[0])
    if info is None or info.type.tensor_type.elem_type != TensorProto.INT32:
        return None
    made = helper.make_node("ReduceSum", [widened.input[0], *node.input[1:]], narrowed.output, name=node.name)
    made.attribute.extend(node.attribute)
    return Replacement(narrowed.output[0], [made], [widened, node])
