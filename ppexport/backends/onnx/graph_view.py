"""An ONNX model as lint rules see it: nodes of all graphs in one list, constants without their data, types, origins.

Shapes come from onnx's own inference. Exporters compute some shapes by arithmetic that it does not follow (a traced
`roll`, `expand` or `view`), so onnx's reference implementation evaluates small constant tensors, and onnx is asked
again about each node whose inputs became known.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from ppexport.backends.onnx.model_file import ModelFile, iter_graphs, subgraphs
from ppexport.backends.onnx.modules import known_modules, module_of
from ppexport.backends.onnx.stored_constants import SMALL, collect, is_number, strip
from ppexport.errors import InputError

Dim = int | str | None
LONGEST_LIST = 1 << 14
"""Elements of a one-dimensional tensor up to which onnx may follow lists of dimensions."""
RANDOM_OPERATORS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


class Origin(IntEnum):
    """What a tensor's content depends on; the larger, the less is known before running."""

    CONSTANT = 0
    SHAPES = 1
    """On the shapes of tensors that are not static: fixed as soon as the input's shape is."""
    DATA = 2


class TensorType(NamedTuple):
    """Type of a tensor: its element type (a number of TensorProto.DataType; None for sequences and the like)."""

    element: int | None
    shape: tuple[Dim, ...] | None
    """None: not even the rank is known. In it an int, a symbol's name, or None for unknown."""

    @property
    def static(self) -> bool:
        """Whether every dimension is a number."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def open(self) -> bool:
        """Whether the rank is known but not every dimension."""
        return self.shape is not None and not self.static

    def text(self) -> str:
        """For people: `float [1, 3, h, ?]`."""
        if self.shape is None:
            return f"{element_name(self.element)} of unknown rank"
        return f"{element_name(self.element)} [{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


UNKNOWN = TensorType(None, None)


@dataclass(frozen=True)
class Node:
    """A node of the main graph or of a body inside it (depth > 0)."""

    proto: NodeProto
    module: str | None
    depth: int

    @property
    def op(self) -> str:
        """Operator."""
        return str(self.proto.op_type)

    @property
    def domain(self) -> str:
        """Operator's domain; the standard one is ""."""
        return "" if self.proto.domain == "ai.onnx" else str(self.proto.domain)

    @property
    def label(self) -> str:
        """Name, or what it makes when it has none."""
        return str(self.proto.name) or f"(makes {self.proto.output[0] if self.proto.output else 'nothing'})"


class GraphView:
    """Everything that rules ask about. Constants of the main graph above a few KiB have lost their data."""

    def __init__(self, source: ModelFile, symbols: Mapping[str, int]) -> None:
        """Flatten, strip and infer the model of *source*, which is used up.

        Args:
            source: The model.
            symbols: Lengths of symbolic axes.

        Raises:
            InputError: A symbol is no axis of an input, or local functions cannot be expanded.
        """
        self.source, self.model = source, _expanded(source)
        _bind(self.model, symbols)
        known = known_modules(tensor.name for graph in _graphs(self.model) for tensor in graph.initializer)
        self.operators = Counter(str(node.op_type) for graph in iter_graphs(self.model) for node in graph.node)
        self.constants, self.values = collect(source, self.model, known)
        """`values` are small tensors whose content is known without running the model."""
        strip(self.model)
        self.nodes = list(_nodes(self.model.graph, known, 0))
        """In an order in which every node comes after those that feed it."""
        for function in self.model.functions:
            # The inliner leaves functions that use another operator set than the model; they have no types.
            self.nodes.extend(_nodes(function, known, 1))
        standard = [entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")]
        self.opset = standard[-1] if standard else 0
        """Version of the standard operators, 0 when the model does not import them."""
        self.consumers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        """{tensor: [(node, input number)]}."""
        for node in self.nodes:
            for index, name in enumerate(node.proto.input):
                if name:
                    self.consumers[name].append((node, index))
        self.types: dict[str, TensorType] = {}
        self.conflict: str | None = None
        """What shape inference objected to."""
        self._infer()
        for constant in self.constants.values():
            self.types[constant.name] = TensorType(constant.element, constant.shape)
        self.origins = dict.fromkeys(self.constants, Origin.CONSTANT)
        for node in self.nodes:
            self._refine(node)
        graph = self.model.graph
        self.inputs = {info.name: self.type_of(info.name) for info in graph.input if info.name not in self.constants}
        self.outputs = {info.name: self.type_of(info.name) for info in graph.output}

    def type_of(self, tensor: str) -> TensorType:
        """Type of *tensor*, unknown if it is."""
        return self.types.get(tensor, UNKNOWN)

    def origin_of(self, tensor: str) -> Origin:
        """Origin of *tensor*; what nobody makes is data."""
        return self.origins.get(tensor, Origin.DATA)

    def _infer(self) -> None:
        """Add the types that onnx infers from the whole model."""
        try:
            model = onnx.shape_inference.infer_shapes(self.model, strict_mode=True)
        except MemoryError:
            raise
        except Exception as error:  # C++ exceptions of many types
            self.conflict = " ".join(str(error).split())[:300]
            model = _inferred(self.model)
        self._add_types(model)
        # Data propagation follows lists of dimensions, but takes every one-dimensional tensor for one and writes it
        # out: an input of 2**60 numbers would fill the memory.
        flat = [kind.shape[0] for kind in self.types.values() if kind.shape is not None and len(kind.shape) == 1]
        if all(not isinstance(length, int) or length <= LONGEST_LIST for length in flat):
            self._add_types(_inferred(self.model, data_prop=True))

    def _add_types(self, model: ModelProto) -> None:
        for graph in _graphs(model):
            for info in (*graph.input, *graph.output, *graph.value_info):
                self.types[info.name] = _merge(self.type_of(info.name), _type_from(info.type))

    def _refine(self, node: Node) -> None:
        """Set the origins of what *node* makes, and the types and the value as far as its known inputs tell them."""
        names = [name for name in node.proto.output if name]
        schema = None if node.domain or subgraphs(node.proto) else schema_of(node.op, self.opset)
        if schema is None or node.op in RANDOM_OPERATORS:
            origin = Origin.DATA
        elif node.op in ("Shape", "Size"):
            origin = Origin.CONSTANT if all(self.type_of(name).static for name in node.proto.input) else Origin.SHAPES
        else:
            origin = max((self.origin_of(name) for name in node.proto.input if name), default=Origin.CONSTANT)
        self.origins.update(dict.fromkeys(names, origin))
        if schema is not None and not all(self.type_of(name).static for name in names):
            for name, found in self._ask(schema, node.proto).items():
                self.types[name] = _merge(self.type_of(name), found)
        if origin is Origin.CONSTANT and len(names) == 1 and names[0] not in self.values:
            value = self._evaluate(node.proto, self.type_of(names[0]))
            if value is not None and is_number(value):
                self.values[names[0]] = value

    def _ask(self, schema: onnx.defs.OpSchema, proto: NodeProto) -> dict[str, TensorType]:
        """What onnx says about one node, given everything known about its inputs."""
        given = {name: self.type_of(name) for name in proto.input if name}
        data = {name: numpy_helper.from_array(self.values[name]) for name in given if name in self.values}
        try:
            types = {n: helper.make_tensor_type_proto(kind.element or 0, kind.shape) for n, kind in given.items()}
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
            )
        except Exception:  # an input of no known type, or of many C++ types: `invalid-graph` reports wrong nodes
            return {}
        return {name: _type_from(kind) for name, kind in found.items()}

    def _evaluate(self, proto: NodeProto, kind: TensorType) -> NDArray[Any] | None:
        """The only output of *proto*, of type *kind*, or None where it is not small or its inputs are not known."""
        if not kind.static or math.prod(_numbers(kind)) > SMALL:
            return None
        try:
            if proto.op_type in ("Shape", "Size"):
                # Of its input only the shape counts: a view of one number takes no memory.
                (name,) = proto.input
                feeds: dict[str, Any] = {name: np.broadcast_to(np.int64(0), _numbers(self.type_of(name)))}
            else:
                feeds = {name: self.values[name] for name in proto.input if name}
            function = FunctionProto(
                node=[proto], input=list(feeds), output=proto.output, opset_import=self.model.opset_import
            )
            with np.errstate(all="ignore"):
                (value,) = ReferenceEvaluator(function).run(None, feeds, attributes={})
        except Exception:  # an input that is not known, or whatever an operator raises for arguments that are wrong
            return None
        return np.asarray(value)


def element_name(element: int | None) -> str:
    """Name of an element type as in ONNX: float, float16, int64."""
    if element is None:
        return "no tensor"
    return str(TensorProto.DataType.Name(element)).lower() if element in TensorProto.DataType.values() else "unknown"


@lru_cache(maxsize=1024)
def schema_of(op: str, opset: int) -> onnx.defs.OpSchema | None:
    """Definition of a standard operator as of *opset*; None when there is none, or this onnx does not know it."""
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=opset, domain="")
    except Exception:  # SchemaError, which onnx does not export with its type
        return None


def _graphs(model: ModelProto) -> list[GraphProto]:
    """The main graph and the bodies in it; local functions are none, as they have no types."""
    return [graph for graph in iter_graphs(model) if isinstance(graph, GraphProto)]


def _expanded(source: ModelFile) -> ModelProto:
    if not source.proto.functions:
        return source.proto
    try:
        return inliner.inline_local_functions(source.proto)
    except MemoryError:
        raise
    except Exception as error:  # C++ exceptions of several types
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source.path} has local functions that cannot be expanded: {reason}") from None


def _bind(model: ModelProto, symbols: Mapping[str, int]) -> None:
    """Give the symbolic axes named in *symbols* their lengths, wherever the model mentions them."""
    unused = set(symbols)
    for graph in _graphs(model):
        for info in (*graph.input, *graph.output, *graph.value_info):
            for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
                if dim.dim_param in symbols:
                    unused.discard(dim.dim_param)
                    dim.dim_value = symbols[dim.dim_param]
    if unused:
        raise InputError(f"the model has no symbolic axis named {', '.join(sorted(unused))}")


def _nodes(graph: GraphProto | FunctionProto, known: Collection[str], depth: int) -> Iterator[Node]:
    for node in graph.node:
        for body in subgraphs(node):
            # Before their node: a body reads what was made before, and its node passes on what it makes.
            yield from _nodes(body, known, depth + 1)
        yield Node(node, module_of(node, known), depth)


def _inferred(model: ModelProto, data_prop: bool = False) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
    except Exception:
        return model


def _numbers(kind: TensorType) -> list[int]:
    """The dimensions of *kind* that are numbers."""
    return [dim for dim in kind.shape or () if isinstance(dim, int)]


def _merge(first: TensorType, second: TensorType) -> TensorType:
    """What two statements about one tensor say together; where they contradict each other *first* is believed."""
    element = second.element if first.element is None else first.element
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return TensorType(element, second.shape if first.shape is None else first.shape)
    pairs = zip(first.shape, second.shape, strict=True)
    return TensorType(
        element, tuple(a if isinstance(a, int) or (a and not isinstance(b, int)) else b for a, b in pairs)
    )


def _type_from(proto: TypeProto) -> TensorType:
    if not proto.HasField("tensor_type"):
        return UNKNOWN
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            # onnx invents a name for what it cannot tell; only names that the exporter gave are worth repeating.
            dims.append(None if dim.dim_param.startswith("unk__") else dim.dim_param or None)
    return TensorType(tensor.elem_type, tuple(dims))
