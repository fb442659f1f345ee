"""A slice that takes everything goes.

torch's exporter cuts what a scatter adds to the length of the indices, which PyTorch allows to be shorter:

Before:

    indices (C,) -> Shape -> ends
    values (C,), starts 0, ends, axis 0 -> Slice -> ScatterElements

After:

    values (C,) -> ScatterElements

if both lengths have one name or number.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto

from ppexport.backends.onnx.pattern import Graph, Replacement, rewrite


def drop_whole_slices(model: onnx.ModelProto) -> None:
    """Remove every Slice of *model* that takes all of a tensor, in place."""
    rewrite(model, "Slice", _dropped)


def _dropped(graph: Graph, node: NodeProto) -> Replacement | None:
    if node.output[0] in graph.outputs or not _takes_all(graph, node):
        return None
    graph.let_read(node.output[0], node.input[0])
    ends = graph.made_by(node.input[2], "Shape")
    return Replacement(node.output[0], [], [] if ends is None else [ends])


def _takes_all(graph: Graph, node: NodeProto) -> bool:
    """Whether the Slice *node* begins at 0, ends at the lengths of a tensor of the same shape, and skips nothing."""
    shape = graph.maker.get(node.input[2])
    starts, axes = graph.constant(node.input[1]), graph.constant(node.input[3]) if len(node.input) > 3 else None
    if shape is None or shape.op_type != "Shape" or shape.attribute or len(node.input) > 4 or starts is None:
        return False
    lengths = graph.shape(node.input[0])
    whole = lengths is not None and lengths == graph.shape(shape.input[0]) and len(lengths) == starts.size
    return whole and not np.any(starts) and (axes is None or axes.ravel().tolist() == list(range(starts.size)))
