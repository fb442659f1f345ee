"""Shapes and origins of all tensors of a model.

First onnx's own inference, over all graphs; then, node by node in order, arithmetic on shapes, with onnx asked again
about each node whose inputs became known. On the way every tensor is told apart by what decides its content:
constants, shapes, or data. onnx's data propagation stays off, see `partial`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from ppexport.backends.onnx.reading.model_file import MAX_RANK, iter_graphs, subgraphs
from ppexport.backends.onnx.reading.partial import Partial, complete, fold_partial, of_shape, unknown
from ppexport.backends.onnx.reading.view import UNKNOWN, Dim, GraphView, Node, Origin, TensorType

RANDOM_OPERATORS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


@lru_cache(maxsize=1024)
def schema_of(op: str, opset: int) -> onnx.defs.OpSchema | None:
    """Definition of a standard operator as of *opset*; None when there is none, or this onnx does not know it."""
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=opset, domain="")
    except Exception:  # SchemaError, which onnx does not export with its type
        return None


def infer(view: GraphView) -> None:
    """Fill *view*'s types, values, origins, inputs, outputs and conflict."""
    model = _inferred(view)
    for graph in iter_graphs(model):
        if isinstance(graph, GraphProto):
            for info in (*graph.input, *graph.output, *graph.value_info):
                view.types[info.name] = merge(view.types.get(info.name, UNKNOWN), type_from(info))
    for constant in view.constants.values():
        view.types[constant.name] = TensorType(constant.element, constant.shape)
        view.origins[constant.name] = Origin.CONSTANT
    partials = {name: complete(value) for name, value in view.values.items()}
    for node in view.nodes:
        _refine(view, partials, node)
    graph = view.model.graph
    view.inputs.update({info.name: view.type_of(info.name) for info in graph.input if info.name not in view.constants})
    view.outputs.update({info.name: view.type_of(info.name) for info in graph.output})


def type_from(info: ValueInfoProto) -> TensorType:
    """Type that *info* declares."""
    return _from_proto(info.type)


def merge(first: TensorType, second: TensorType) -> TensorType:
    """What two statements about one tensor say together; where they contradict each other *first* is believed."""
    element = second.element if first.element is None else first.element
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return TensorType(element, second.shape if first.shape is None else first.shape)
    return TensorType(element, tuple(_merge_dim(a, b) for a, b in zip(first.shape, second.shape, strict=True)))


def _merge_dim(first: Dim, second: Dim) -> Dim:
    if isinstance(first, int) or second is None:
        return first
    return second if isinstance(second, int) or first is None else first


def _from_proto(proto: TypeProto) -> TensorType:
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


def _inferred(view: GraphView) -> ModelProto:
    """The model with what onnx's inference adds; exceptions come from C++ in many types, whence the broad excepts."""
    try:
        return onnx.shape_inference.infer_shapes(view.model, strict_mode=True)
    except Exception as error:
        view.conflict = " ".join(str(error).split())[:300]
    try:
        return onnx.shape_inference.infer_shapes(view.model)
    except Exception:
        return view.model


def _refine(view: GraphView, partials: dict[str, Partial], node: Node) -> None:
    proto = node.proto
    names = [name for name in proto.output if name]
    schema = schema_of(node.op, view.opset) if node.domain == "" else None
    if schema is not None and not subgraphs(proto) and not all(view.type_of(name).static for name in names):
        for name, found in _ask(view, partials, schema, proto).items():
            view.types[name] = merge(view.type_of(name), found)
    origin = _origin(view, node, schema)
    if origin is not Origin.DATA and len(names) == 1 and names[0] not in view.values:
        value = _evaluate(view, partials, proto)
        if value is not None:
            partials[names[0]] = value
            kind = view.type_of(names[0])
            view.types[names[0]] = merge(TensorType(kind.element, value.data.shape), kind)
            if value.complete:
                origin, view.values[names[0]] = Origin.CONSTANT, value.data
    for name in names:
        view.origins[name] = origin


def _origin(view: GraphView, node: Node, schema: onnx.defs.OpSchema | None) -> Origin:
    if schema is None or subgraphs(node.proto) or node.op in RANDOM_OPERATORS:
        return Origin.DATA
    if node.op in ("Shape", "Size"):
        return Origin.CONSTANT if all(view.type_of(name).static for name in node.proto.input) else Origin.SHAPES
    return max((view.origin_of(name) for name in node.proto.input if name), default=Origin.CONSTANT)


def _ask(
    view: GraphView, partials: dict[str, Partial], schema: onnx.defs.OpSchema, proto: NodeProto
) -> dict[str, TensorType]:
    """What onnx says about one node, given everything known about its inputs."""
    types, values = {}, {}
    for name in filter(None, proto.input):
        element, shape = view.type_of(name)
        if element is None:
            return {}
        types[name] = helper.make_tensor_type_proto(element, shape)
        if name in partials:
            values[name] = partials[name]
        elif (length := _list_length(view.type_of(name))) is not None:
            values[name] = unknown(length)

    def infer_with(number: int | None) -> dict[str, TensorType]:
        """With *number* for what is unknown in the inputs' values, or with None without such values."""
        known = {name: value for name, value in values.items() if number is not None or value.complete}
        data = {name: numpy_helper.from_array(value.filled(number or 0)) for name, value in known.items()}
        try:
            imports = [helper.make_opsetid("", view.opset)]
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=imports, ir_version=view.model.ir_version
            )
        except Exception:  # C++ exceptions of many types: the node is wrong, which `invalid-graph` reports
            return {}
        return {name: _from_proto(kind) for name, kind in found.items()}

    if all(value.complete for value in values.values()):
        return infer_with(None)
    # Dimensions that do not change with the unknown numbers are known.
    first, second = infer_with(2), infer_with(3)
    agreed = {name: common(first[name], second[name]) for name in first if name in second}
    return agreed or infer_with(None)


def _list_length(kind: TensorType) -> int | None:
    """Length of a tensor that may be a list of dimensions or axes, None if it is no such thing."""
    if kind.element != TensorProto.INT64 or kind.shape is None or len(kind.shape) != 1:
        return None
    (length,) = kind.shape
    return length if isinstance(length, int) and 0 <= length <= MAX_RANK else None


def common(first: TensorType, second: TensorType) -> TensorType:
    """What two types have in common."""
    element = first.element if first.element == second.element else None
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return TensorType(element, None)
    pairs = zip(first.shape, second.shape, strict=True)
    return TensorType(element, tuple(a if a == b else None for a, b in pairs))


def _evaluate(view: GraphView, partials: dict[str, Partial], proto: NodeProto) -> Partial | None:
    if proto.op_type not in ("Shape", "Size"):
        given = [partials.get(name) for name in proto.input]
        missing = any(name and value is None for name, value in zip(proto.input, given, strict=True))
        return None if missing else fold_partial(proto, given)
    shape = view.type_of(proto.input[0]).shape if proto.input else None
    if shape is None:
        return None
    if proto.op_type == "Shape":
        bounds = {attribute.name: attribute.i for attribute in proto.attribute}
        return of_shape(shape[slice(bounds.get("start"), bounds.get("end"))])
    sizes = [dim for dim in shape if isinstance(dim, int)]
    count = math.prod(sizes) if len(sizes) == len(shape) else 2**63
    return complete(np.array(count, np.int64)) if count < 2**63 else None
