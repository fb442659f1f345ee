"""Half precision in ONNX graphs: which nodes calibration forbids it to, and what a file computes that has it.

ONNX Runtime's CPU kernels compute fp16 graphs in fp32: it casts up before and down behind every node, and then removes
the pairs of casts that meet, so that nothing is rounded there. `RoundedModel` rounds every fp16 node's output:

    before   Gemm h -> Mul h -> Cast f
    after    Gemm h -> Identity h -> Identity h -> Mul h -> Identity h -> Identity h -> Cast f

An Identity of fp16 keeps the casts apart. It takes two, since a single node of fp16 is computed in fp32 as well (ONNX
Runtime 1.32), and a session that does not optimise them away. Sums inside a node stay fp32, as in the tensor cores of
a GPU, whose order of summation is its own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

from ppexport.backends.onnx.debug import DebugModel
from ppexport.backends.onnx.pattern import copied, set_nodes
from ppexport.backends.onnx.qdq import sources_of
from ppexport.backends.onnx.run_onnxruntime import load
from ppexport.backends.tensorrt.half import LARGEST, computes_half, split_sum
from ppexport.quantize.calibration import Calibration

MARGIN = 8.0
"""What other pictures may exceed the calibrated ones by."""
LEAST_DB = 60.0
"""Least ratio of a tensor's power to that of its rounding error. fp16 keeps 73 to 76 dB of normal numbers."""


class Finding(NamedTuple):
    """A node that stays fp32, and why."""

    node: str
    tensor: str
    reason: str


def rounding_db(calibration: Calibration, name: str) -> float:
    """Power of tensor *name* over that of its rounding to fp16, in dB; infinite where nothing is rounded."""
    power, error = calibration.figure(name, "power"), calibration.figure(name, "half_error")
    return 10 * math.log10(power / error) if error and power else math.inf


def _judge(calibration: Calibration, name: str) -> str | None:
    """Why tensor *name* cannot be fp16, None where it can."""
    largest = calibration.largest(name)
    if largest * MARGIN > LARGEST:
        return f"reaches {largest:.4g}, fp16 ends at {LARGEST:g}"
    decibel = rounding_db(calibration, name)
    if decibel < LEAST_DB:
        return f"keeps {decibel:.1f} dB in fp16: too many of its numbers are below 6e-5"
    return None


def audit(model: onnx.ModelProto, calibration: Calibration) -> list[Finding]:
    """The nodes of *model* that fp16 is meant for and that *calibration* forbids, named as `write_half` names them.

    A tensor that was not recorded, such as a stored weight, is judged by nobody: `write_half` refuses weights that
    exceed fp16.
    """
    recorded = set(calibration.names)
    split = copied(model)
    split_sum(split)
    candidates = [node for node in split.graph.node if computes_half(node)]
    sources = sources_of(split, {name for node in candidates for name in (*node.input, *node.output) if name})
    findings = []
    for node in candidates:
        parts = dict.fromkeys(s for name in (*node.input, *node.output) for s in sources.get(name, ()) if s in recorded)
        forbidden = ((source, _judge(calibration, source)) for source in parts)
        findings += [Finding(node.name, source, reason) for source, reason in forbidden if reason][:1]
    return findings


def round_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of *model* with two Identity nodes behind everything that makes fp16."""
    copy = copied(model)
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
    set_nodes(copy, nodes)
    return copy


class RoundedModel(DebugModel):
    """The layers of an fp16 artifact, computed in half precision."""

    def open(self, model: onnx.ModelProto) -> Any:
        """A session of a debug copy that rounds."""
        from onnxruntime import GraphOptimizationLevel

        settings = {"graph_optimization_level": GraphOptimizationLevel.ORT_DISABLE_ALL}
        return load(round_outputs(model).SerializeToString(), self.where, enable_cpu_mem_arena=False, **settings)
