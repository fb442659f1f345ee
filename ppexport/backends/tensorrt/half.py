"""fp32 graph -> fp16 written into the graph by casts, so that a strongly typed runtime computes what the file says.

Before:

    x -> Gemm -> Reshape -> Transpose -> MatMul -> Add bias -> Softmax -> MatMul -> Gemm -> Add -> ...      all fp32

After, h = fp16:

    x -> [Cast h] -> Gemm h -> Reshape h -> Transpose h -> MatMul h -> [Cast f] -> Add bias -> Softmax -> [Cast h]
      -> MatMul h -> Gemm h -> [Cast f] -> Add -> ...

Half precision is used where it saves time and is safe: projections, products and feed-forward (GELU included) of every
layer, the convolutions of the blocks, and the values of the dictionary. What only moves numbers (Reshape, Transpose,
Gather, Slice, ...) follows its neighbours. fp32 stay

    inputs, outputs, mask, labels, counts, ranks, slots     fp16 counts exactly to 2048 only
    similarity to the dictionary, its softmax and argmax    they choose the category, and one flip regroups thousands
    softmax and norms                                       sums over hundreds of numbers
    the refined dictionary                                  its weights are 1 / n, subnormal in fp16 for large images
    the sum that runs through all layers                    72 roundings, one on the other
    the first and the last convolution                      0.4 % of the work, and the picture's own resolution

TensorRT-RTX 1.7 fuses attention of this form, softmax in fp32 included, into one kernel; in fp32 it does not.
Weights that only half nodes read are stored as fp16.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.pattern import Graph, copied, set_nodes
from ppexport.errors import ExportError
from ppexport.networks.architecture import Architecture, place_of

MOVES: dict[str, tuple[int, ...]] = {
    "Concat": (),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
"""Operators that only move numbers, and the inputs that hold them; () is all."""
LARGEST = 65504.0


def computes_half(node: NodeProto, architecture: Architecture) -> bool:
    """Whether *node* is one that computes in fp16: by its kind, in a module of a role that the network names."""
    module = module_of_name(node.name)
    return any(
        node.op_type in kinds and place_of(role, module) is not None for role, kinds in architecture.half.items()
    )


def split_sum(model: onnx.ModelProto, architecture: Architecture) -> None:
    """Gemm(a, b, x) where x is the sum through all layers -> MatMul(a, b), Add x, so that the sum stays fp32."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        module = module_of_name(node.name)
        if node.op_type != "Gemm" or all(place_of(role, module) is None for role in architecture.half_sums):
            nodes.append(node)
            continue
        plain = all(helper.get_attribute_value(a) == (0 if a.name.startswith("trans") else 1.0) for a in node.attribute)
        if not plain or len(node.input) != 3:
            raise ExportError(f"{node.name} is not the product and sum that the fp16 pass knows")
        product = f"{node.output[0]}_product"
        nodes.append(helper.make_node("MatMul", list(node.input[:2]), [product], name=f"{node.name}/product"))
        nodes.append(helper.make_node("Add", [node.input[2], product], [node.output[0]], name=f"{node.name}/sum"))
    set_nodes(model, nodes)


class _Floats(Graph):
    """A graph in which fp32 tensors are chosen that become fp16, all that a node makes together."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        known = self.known.items()
        self.floats = {name for name, info in known if info.type.tensor_type.elem_type == TensorProto.FLOAT}

    def data(self, node: NodeProto) -> list[int]:
        """The numbers of the inputs of *node* that hold floats to compute with or to move."""
        numbers = MOVES.get(node.op_type) or range(len(node.input))
        return [i for i in numbers if node.input[i] in self.floats]

    def choose(self, architecture: Architecture, keep: Collection[str]) -> set[str]:
        """The outputs of every node that is to be half."""
        nodes = list(self.model.graph.node)
        chosen = [node for node in nodes if computes_half(node, architecture) and node.name not in keep]
        half = {name for node in chosen for name in node.output}
        movers = [node for node in nodes if node.op_type in MOVES and self.data(node)]
        count = -1
        while count < len(half):
            count = len(half)
            for node in movers:
                if self._follows(node, half) or self._leads(node, half):
                    half.update(node.output)
        return half

    def _follows(self, node: NodeProto, half: set[str]) -> bool:
        """Whether all that *node* moves comes from half nodes, some of it at least; stored constants do not count."""
        moved = {node.input[i] for i in self.data(node)}
        stored = {name for name in moved if name in self.maker and self.maker[name].op_type == "Constant"}
        sources = moved - stored - set(self.values)
        return bool(sources) and sources <= half

    def _leads(self, node: NodeProto, half: set[str]) -> bool:
        """Whether all that *node* moves goes into half nodes, as data."""
        readers = [reader for name in node.output for reader in self.readers[name]]
        return bool(readers) and self.outputs.isdisjoint(node.output) and all(r.output[0] in half for r in readers)


def write_half(model: onnx.ModelProto, architecture: Architecture, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of *model*, as the exporter of the flavours `portable` and `tensorrt` names its nodes, in fp16.

    Args:
        model: a graph in fp32.
        architecture: says what may be half.
        keep: names of nodes that stay fp32 too.

    Raises:
        ExportError: the pass does not know the graph, or weights are beyond the range of fp16.
    """
    copy = copied(model)
    split_sum(copy, architecture)
    graph = _Floats(copy)
    half = graph.choose(architecture, keep)
    if not half:
        raise ExportError("the graph holds no node that the fp16 pass knows")
    halves = [node for node in copy.graph.node if node.output[0] in half]
    read = {node.input[i] for node in halves for i in graph.data(node)}
    single = {name for name in read | half if any(r.output[0] not in half for r in graph.readers[name])}
    single |= graph.outputs
    _store(graph, read, single)
    nodes = [_cast(port.name, _half(port.name), TensorProto.FLOAT16) for port in copy.graph.input if port.name in read]
    for node in copy.graph.node:
        nodes.append(node)
        if node.output[0] in half:
            for i in graph.data(node):
                node.input[i] = _half(node.input[i])
            for i, name in enumerate(node.output):
                if name in graph.floats:
                    # The fp32 copy keeps the name, so that fp32 readers need no change.
                    if name in single:
                        nodes.append(_cast(_half(name), name, TensorProto.FLOAT))
                    node.output[i] = _half(name)
        else:
            nodes += [_cast(name, _half(name), TensorProto.FLOAT16) for name in node.output if name in read]
    set_nodes(copy, nodes)
    return copy


def _store(graph: Graph, read: set[str], single: set[str]) -> None:
    """Store fp16 copies of the constants in *read*; originals that nothing in *single* needs go."""
    stored = graph.model.graph.initializer
    for name in sorted(read & set(graph.values)):
        array = numpy_helper.to_array(graph.values[name])
        if np.abs(array).max(initial=0) > LARGEST:
            raise ExportError(f"{name} holds numbers above {LARGEST:g}, which fp16 cannot: export it as fp32")
        stored.append(numpy_helper.from_array(array.astype(np.float16), _half(name)))
        if name not in single:
            stored.remove(graph.values[name])


def _half(name: str) -> str:
    """The name of the fp16 copy of a tensor; the module that owns it can still be found by it."""
    return f"{name}_half"


def _cast(source: str, target: str, kind: int) -> NodeProto:
    """A cast, named after what it makes."""
    path = source.removesuffix("_half").rpartition("_output_")[0] or source
    return helper.make_node("Cast", [source], [target], name=f"{path}/{target.rpartition('/')[2]}/Cast", to=kind)
