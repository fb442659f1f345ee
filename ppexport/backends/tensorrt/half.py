"""fp32 graph -> fp16 written into the graph by casts, so that a strongly typed runtime computes what the file says.

Before:

    x -> Gemm -> Reshape -> Transpose -> MatMul -> Add bias -> Softmax -> MatMul -> Gemm -> Add -> ...      all fp32

After, h = fp16:

    x -> [Cast h] -> Gemm h -> Reshape h -> Transpose h -> MatMul h -> [Cast f] -> Add bias -> Softmax -> [Cast h]
      -> MatMul h -> Gemm h -> [Cast f] -> Add -> ...

Half precision is what costs time and is safe there: projections, products and feed-forward (GELU included) of every
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

from collections import defaultdict
from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.modules import module_of_name
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
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class Halver:
    """Turns one model."""

    def __init__(self, model: onnx.ModelProto, architecture: Architecture, keep: Collection[str]) -> None:
        self.model, self.architecture, self.keep = model, architecture, frozenset(keep)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        infos = [*inferred.value_info, *inferred.input, *inferred.output]
        self.values = {init.name: init for init in model.graph.initializer}
        self.floats = {info.name for info in infos if info.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats |= {name for name, value in self.values.items() if value.data_type == TensorProto.FLOAT}
        self.fixed = {info.name for info in (*model.graph.input, *model.graph.output)}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        self.maker = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def data(self, node: NodeProto) -> list[int]:
        """The numbers of the inputs of *node* that hold floats to compute with or to move."""
        if node.op_type in MOVES:
            return [i for i in MOVES[node.op_type] or range(len(node.input)) if node.input[i] in self.floats]
        return [i for i, name in enumerate(node.input) if name in self.floats]

    def constant(self, name: str) -> bool:
        """Whether *name* is stored in the file, directly or by a Constant node."""
        return name in self.values or (name in self.maker and self.maker[name].op_type == "Constant")

    def choose(self) -> set[int]:
        """The `id` of every node that is to be half."""
        nodes = list(self.model.graph.node)
        half = {id(node) for node in nodes if computes_half(node, self.architecture) and node.name not in self.keep}
        movers = [node for node in nodes if node.op_type in MOVES and self.data(node)]
        changed = True
        while changed:
            changed = False
            for node in movers:
                if id(node) not in half and (self._follows(node, half) or self._leads(node, half)):
                    half.add(id(node))
                    changed = True
        return half

    def _follows(self, node: NodeProto, half: set[int]) -> bool:
        """Whether all that *node* moves comes from half nodes, some of it at least."""
        sources = [node.input[i] for i in self.data(node) if not self.constant(node.input[i])]
        return bool(sources) and all(name in self.maker and id(self.maker[name]) in half for name in sources)

    def _leads(self, node: NodeProto, half: set[int]) -> bool:
        """Whether all that *node* moves goes into half nodes, as data."""
        if any(name in self.fixed for name in node.output):
            return False
        readers = [reader for name in node.output for reader in self.readers[name]]
        return bool(readers) and all(id(reader) in half for reader in readers)

    def run(self) -> None:
        """Rewrite the model."""
        half = self.choose()
        if not half:
            raise ExportError("the graph holds no node that the fp16 pass knows")
        wanted = {
            name
            for node in self.model.graph.node
            if id(node) in half
            for name in (node.input[i] for i in self.data(node))
        }
        made = {name for node in self.model.graph.node if id(node) in half for name in node.output}
        made &= self.floats
        self._store(wanted, half)
        inputs = [port.name for port in self.model.graph.input if port.name in wanted]
        nodes = [_cast(name, _half(name), TensorProto.FLOAT16) for name in inputs]
        for node in self.model.graph.node:
            nodes.append(node)
            for i, name in enumerate(node.output):
                if name in made:
                    # The fp32 copy keeps the name, so that fp32 readers need no change.
                    if any(id(reader) not in half for reader in self.readers[name]):
                        nodes.append(_cast(_half(name), name, TensorProto.FLOAT))
                    node.output[i] = _half(name)
                elif name in wanted:
                    nodes.append(_cast(name, _half(name), TensorProto.FLOAT16))
            if id(node) in half:
                for i in self.data(node):
                    node.input[i] = _half(node.input[i])
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)

    def _store(self, wanted: set[str], half: set[int]) -> None:
        """Store fp16 copies of the constants in *wanted*; originals that nothing else reads go."""
        graph = self.model.graph
        for name in sorted(wanted & set(self.values)):
            array = numpy_helper.to_array(self.values[name])
            if np.abs(array).max(initial=0) > LARGEST:
                raise ExportError(f"{name} holds numbers above {LARGEST:g}, which fp16 cannot: export it as fp32")
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), _half(name)))
            if all(id(reader) in half for reader in self.readers[name]):
                graph.initializer.remove(self.values[name])


def _half(name: str) -> str:
    """The name of the fp16 copy of a tensor; the module that owns it can still be told."""
    return f"{name}_half"


def _cast(source: str, target: str, kind: int) -> NodeProto:
    """A cast, named after what it makes."""
    path = source.removesuffix("_half").rpartition("_output_")[0] or source
    return helper.make_node("Cast", [source], [target], name=f"{path}/{target.rpartition('/')[2]}/Cast", to=kind)


def write_half(model: onnx.ModelProto, architecture: Architecture, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of *model*, as the exporter of the flavours `portable` and `tensorrt` names its nodes, in fp16.

    *architecture* tells what may be half.

    Nodes whose names are in *keep* stay fp32 too.

    Raises ExportError for a graph that the pass does not know, and for weights beyond the range of fp16.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    split_sum(copy, architecture)
    Halver(copy, architecture, keep).run()
    return copy
