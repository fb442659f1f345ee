"""Half precision as the file says it: every fp16 node's output is rounded to fp16.

ONNX Runtime's CPU kernels compute fp16 graphs in fp32: it casts up before and down behind every node, and then removes
the pairs of casts that meet, so that nothing is rounded there.

    before   Gemm h -> Mul h -> Cast f
    after    Gemm h -> Identity h -> Identity h -> Mul h -> Identity h -> Identity h -> Cast f

An Identity of fp16 keeps the casts apart. It takes two, since a single node of fp16 is computed in fp32 as well (ONNX
Runtime 1.32), and a session that does not optimise them away. Sums inside a node stay fp32, as in the tensor cores of
a GPU, whose order of summation is its own.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from ppexport.backends.onnx.debug import DebugModel
from ppexport.backends.onnx.run_onnxruntime import load


def round_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of *model* with two Identity nodes behind everything that makes fp16."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True).graph
    half = {info.name for info in inferred.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half:
                exact, between = f"{name}_exact", f"{name}_between"
                node.output[i] = exact
                nodes.append(helper.make_node("Identity", [exact], [between], name=f"{name}/round"))
                nodes.append(helper.make_node("Identity", [between], [name], name=f"{name}/rounded"))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


class RoundedModel(DebugModel):
    """The layers of an fp16 artefact, computed in half precision."""

    def open(self, model: onnx.ModelProto) -> Any:
        """A session of a debug copy that rounds."""
        from onnxruntime import GraphOptimizationLevel

        settings = {"graph_optimization_level": GraphOptimizationLevel.ORT_DISABLE_ALL}
        return load(round_outputs(model).SerializeToString(), self.where, enable_cpu_mem_arena=False, **settings)
