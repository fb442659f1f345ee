"""Indices stay as narrow as they were computed.

PyTorch indexes with int64 alone, ONNX with int32 as well:

Before:

    order (n,) int32 -> Cast to int64 -> Gather, ScatterElements

After:

    order (n,) int32 -> Gather, ScatterElements

if nothing else reads the cast. ONNX Runtime warns of such a cast, where branches read it, that it cannot remove it.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto

from ppexport.backends.onnx.pattern import Graph, Replacement, attribute, rewrite

INDEXED = {"Gather": 1, "GatherElements": 1, "ScatterElements": 1}
"""Operators that take indices of both widths -> which input these are."""


def narrow_indices(model: onnx.ModelProto) -> None:
    """Remove every Cast of *model* that only widens indices, in place."""
    rewrite(model, "Cast", _dropped)


def _dropped(graph: Graph, cast: NodeProto) -> Replacement | None:
    source, wide = cast.input[0], cast.output[0]
    known, readers = graph.known.get(source), graph.readers[wide]
    if known is None or known.type.tensor_type.elem_type != TensorProto.INT32 or wide in graph.outputs:
        return None
    if attribute(cast, "to") != TensorProto.INT64 or not readers or not all(_indexed(r, wide) for r in readers):
        return None
    graph.let_read(wide, source)
    return Replacement(wide, [], [])


def _indexed(reader: NodeProto, name: str) -> bool:
    """Whether *reader* reads *name* as its indices alone, and not in a branch."""
    return [i for i, read in enumerate(reader.input) if read == name] == [INDEXED.get(reader.op_type)]
