"""What graph passes share: who makes and who reads a tensor, and replacing a pattern by one node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper


def attribute(node: NodeProto, name: str) -> object:
    """The value of an attribute, None where it is missing."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


class Graph:
    """Who makes and who reads every tensor of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker: dict[str, NodeProto] = {out: node for node in model.graph.node for out in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            for name in names_read(node).difference(node.input):
                self.readers[name].append(node)
        self.outputs = {out.name for out in model.graph.output}
        self.values = {init.name: init for init in model.graph.initializer}

    def made_by(self, name: str, op: str) -> NodeProto | None:
        """The node of type *op* that makes *name* for the one reader that asks, and for no output of the model."""
        node = self.maker.get(name)
        if node is None or node.op_type != op or len(self.readers[name]) != 1 or name in self.outputs:
            return None
        return node

    def read_by(self, node: NodeProto, op: str) -> NodeProto | None:
        """The node of type *op* that alone reads what *node* makes."""
        readers = self.readers[node.output[0]]
        if len(readers) != 1 or readers[0].op_type != op or node.output[0] in self.outputs:
            return None
        return readers[0]

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """The value of a stored constant."""
        tensor = self.values.get(name)
        node = self.maker.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            if (numbers := attribute(node, "value_ints")) is not None:
                return np.array(numbers)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        value = self.constant(name)
        return float(value.item()) if value is not None and value.size == 1 else None


def names_read(node: NodeProto) -> set[str]:
    """What *node* reads, its branches included, whose own names hide no others."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {*node.input, *(name for body in bodies for inner in body.node for name in names_read(inner))}


def replace(model: onnx.ModelProto, made: Mapping[str, list[NodeProto]], gone: Iterable[NodeProto]) -> None:
    """Put the nodes of *made* in the place of the nodes that make their keys, and remove those of *gone*.

    Constants that nothing reads any more go too: ONNX Runtime would warn of each. What was noted of shapes goes where
    they may have changed.
    """
    dropped = {out for node in gone for out in node.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] in made:
            nodes.extend(made[node.output[0]])
        elif node.output[0] not in dropped:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in names_read(node)} | {out.name for out in model.graph.output}
    kept = [init for init in model.graph.initializer if init.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    noted = [info for info in model.graph.value_info if info.name not in made and info.name not in dropped]
    del model.graph.value_info[:]
    model.graph.value_info.extend(noted)
