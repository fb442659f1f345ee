"""Rows divided by their length -> one LpNormalization.

Before, of x (n, d):

    x -> Pow 2 -> ReduceSum over d -> Sqrt -> Max with 1e-12 -> length
    x, length -> Div -> out

After:

    x -> LpNormalization(p = 2) -> out

They differ for rows shorter than 1e-12 alone, which become unit rows here and next to nothing there; a row of zeros
stays zeros. ONNX Runtime 1.32 takes 0.24 ms for the five operators on (4096, 8) and 0.05 for the one (two threads).
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper

from ppexport.backends.onnx.pattern import Graph, Replacement, attribute, rewrite

TINY = 1e-11
"""A lower limit of lengths that may be left out."""


def fuse_unit_rows(model: onnx.ModelProto) -> None:
    """Fuse every division of rows by their length in *model*, in place."""
    rewrite(model, "Div", _fused)


def _fused(graph: Graph, div: NodeProto) -> Replacement | None:
    chain = graph.chain(div.input[1], "Max", "Sqrt", "ReduceSum", "Pow")
    if chain is None or chain[-1].input[0] != div.input[0]:
        return None
    limit, _, total, power = chain
    least, axis = graph.number(limit.input[1]), graph.number(total.input[1])
    if least is None or not 0 < least < TINY or graph.number(power.input[1]) != 2:
        return None
    if axis is None or attribute(total, "keepdims") == 0:
        return None
    name = div.name.removesuffix("Div") + "LpNormalization"
    unit = helper.make_node("LpNormalization", [div.input[0]], [div.output[0]], name=name, axis=int(axis), p=2)
    return Replacement(div.output[0], [unit], chain)
