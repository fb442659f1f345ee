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

from collections import Counter, defaultdict

import onnx
from onnx import NodeProto, helper, numpy_helper, version_converter

from ppexport.errors import ExportError

OPSET = 23
IR_VERSION = 10
"""The oldest that the onnx package allows with opset 23 is 11; runtimes that know the opset read 10."""


class Graph:
    """Who makes and who reads every tensor of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker: dict[str, NodeProto] = {out: node for node in model.graph.node for out in node.output}
        self.readers: dict[str, int] = Counter(name for node in model.graph.node for name in node.input)
        self.values = {init.name: init for init in model.graph.initializer}

    def made_by(self, name: str, op: str) -> NodeProto | None:
        """The node of type *op* that makes *name*, for nothing but the one reader that asks."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == op and self.readers[name] == 1 else None

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


def _match(graph: Graph, softmax: NodeProto, last: NodeProto) -> tuple[NodeProto, list[NodeProto]] | None:
    """The Attention node for a *softmax* read by the product *last*, and the nodes it replaces; None for no match."""
    replaced = [softmax, last]
    if _attribute(softmax, "axis") not in (-1, 3):
        return None
    logits, bias = softmax.input[0], ""
    if (add := graph.made_by(logits, "Add")) is not None:
        product = next((i for i in (0, 1) if graph.made_by(add.input[i], "MatMul")), None)
        if product is None:
            return None
        logits, bias = add.input[product], add.input[1 - product]
        replaced.append(add)
    product_node = graph.made_by(logits, "MatMul")
    if product_node is None:
        return None
    q, turned = product_node.input
    transpose = graph.made_by(turned, "Transpose")
    if transpose is None or _attribute(transpose, "perm") != [0, 1, 3, 2]:
        return None
    replaced += [product_node, transpose]
    scale = 1.0
    if (mul := graph.made_by(q, "Mul")) is not None:
        number = next((i for i in (0, 1) if graph.number(mul.input[i]) is not None), None)
        if number is not None:
            scale = float(graph.number(mul.input[number]) or 0.0)
            q = mul.input[1 - number]
            replaced.append(mul)
    inputs = [q, transpose.input[0], last.input[1], *([bias] if bias else [])]
    name = softmax.name.removesuffix("Softmax") + "Attention"
    return helper.make_node("Attention", inputs, [last.output[0]], name=name, scale=scale), replaced


def fuse_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of *model* in opset 23 whose attention is fused. Raises ExportError where no attention is found."""
    model = version_converter.convert_version(model, OPSET)
    model.ir_version = IR_VERSION
    graph = Graph(model)
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    fused: dict[str, NodeProto] = {}
    gone: set[str] = set()
    for softmax in model.graph.node:
        if softmax.op_type != "Softmax" or len(readers[softmax.output[0]]) != 1:
            continue
        last = readers[softmax.output[0]][0]
        if last.op_type != "MatMul" or last.input[0] != softmax.output[0]:
            continue
        if found := _match(graph, softmax, last):
            fused[last.output[0]] = found[0]
            gone.update(node.output[0] for node in found[1])
    if not fused:
        raise ExportError("the graph holds no attention of the pattern that the flavour is made for")
    nodes = []
    for node in model.graph.node:
        if node.output[0] in fused:
            nodes.append(fused[node.output[0]])
        elif node.output[0] not in gone:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


__all__ = ["fuse_attention"]
