"""What graph passes share: who makes and reads a tensor, its type and shape, and putting nodes in a pattern's place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorShapeProto, ValueInfoProto, helper, numpy_helper

Length = int | str
"""A plain number, or the name of a symbolic length: equal names are equal lengths."""


def attribute(node: NodeProto, name: str) -> object:
    """The value of an attribute, None where it is missing."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def names_read(node: NodeProto) -> set[str]:
    """What *node* reads, its branches included, whose own names hide no others."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {*node.input, *(name for body in bodies for inner in body.node for name in names_read(inner))}


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of *model*."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def set_nodes(model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Let *model* consist of *nodes*."""
    kept = [*nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


class Graph:
    """Who makes and who reads every tensor of a model, and what shape inference knows of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.maker: dict[str, NodeProto] = {out: node for node in model.graph.node for out in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in (*node.input, *names_read(node).difference(node.input)):
                self.readers[name].append(node)
        self.outputs = {out.name for out in model.graph.output}
        self.values = {init.name: init for init in model.graph.initializer}

    def made_by(self, name: str, op: str) -> NodeProto | None:
        """The node of type *op* that makes *name* for the one reader that asks, and for no output of the model."""
        node = self.maker.get(name)
        if node is None or node.op_type != op or len(self.readers[name]) != 1 or name in self.outputs:
            return None
        return node

    def chain(self, name: str, *ops: str) -> list[NodeProto] | None:
        """The nodes of types *ops*, back from *name*, each as `made_by` finds it; the first input leads to the next."""
        found: list[NodeProto] = []
        for op in ops:
            node = self.made_by(found[-1].input[0] if found else name, op)
            if node is None:
                return None
            found.append(node)
        return found

    def let_read(self, name: str, other: str) -> None:
        """Have whoever reads *name* read *other*; nobody may read it in a branch."""
        for reader in self.readers[name]:
            for i, read in enumerate(reader.input):
                if read == name:
                    reader.input[i] = other

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

    @cached_property
    def known(self) -> dict[str, ValueInfoProto]:
        """The types and shapes that shape inference finds."""
        graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        stored = (helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in graph.initializer)
        return {info.name: info for info in (*stored, *graph.value_info, *graph.input, *graph.output)}

    def shape(self, name: str) -> list[Length] | None:
        """The lengths of the tensor *name*, None where its rank or one of them is not known."""
        info = self.known.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        lengths = [_length(dim) for dim in info.type.tensor_type.shape.dim]
        known = [length for length in lengths if length is not None]
        return known if len(known) == len(lengths) else None

    def elements(self, name: str) -> int | None:
        """How many elements the tensor *name* has, None where that is no plain number or not known."""
        shape = self.shape(name)
        plain = [length for length in shape or () if isinstance(length, int)]
        return None if shape is None or len(plain) != len(shape) else math.prod(plain)


def _length(dim: TensorShapeProto.Dimension) -> Length | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


class Replacement(NamedTuple):
    """What a pass puts in the place of a pattern: the nodes `made` where `output` was made; those of `gone` leave."""

    output: str
    made: list[NodeProto]
    gone: list[NodeProto]


def rewrite(model: onnx.ModelProto, op: str, match: Callable[[Graph, NodeProto], Replacement | None]) -> int:
    """Replace, in place, what *match* finds around the nodes of type *op*; returns how often it found something.

    Constants that nothing reads any more go too: ONNX Runtime would warn of each. What was noted of shapes goes where
    they may have changed.
    """
    graph = Graph(model)
    found = [r for node in model.graph.node if node.op_type == op and (r := match(graph, node)) is not None]
    made = {replacement.output: replacement.made for replacement in found}
    dropped = {out for replacement in found for node in replacement.gone for out in node.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] in made:
            nodes.extend(made[node.output[0]])
        elif node.output[0] not in dropped:
            nodes.append(node)
    read = {name for node in nodes for name in names_read(node)} | graph.outputs
    set_nodes(model, (node for node in nodes if node.op_type != "Constant" or node.output[0] in read))
    kept = [init for init in model.graph.initializer if init.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    noted = [info for info in model.graph.value_info if info.name not in made and info.name not in dropped]
    del model.graph.value_info[:]
    model.graph.value_info.extend(noted)
    return len(found)
