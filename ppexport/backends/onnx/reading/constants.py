"""The constants of a model: what they are, without keeping their data.

A folded table of a megabyte per layer is what this project lints for, so a model may hold far more constants than
weights. Everything a rule asks about them is noted once, then the data of the large ones is dropped from the model,
which makes all later passes as cheap as if the weights were not there.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.modules import module_of, module_of_initializer
from ppexport.backends.onnx.reading.model_file import ModelFile, claimed_bytes, external_range, iter_graphs
from ppexport.files import is_plain_name

SMALL = 4096
"""Elements up to which a constant may take part in arithmetic on shapes; the largest such tensor is a list of axes."""
DUPLICATE_BYTES = 16 * 1024
"""Constants below this size are not compared with each other: biases of zeros are equal and cost nothing."""

_INPUT_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_NATIVE = ("FLOAT", "DOUBLE", "FLOAT16", "BOOL", *(f"{u}INT{bits}" for u in ("", "U") for bits in (8, 16, 32, 64)))
_FOLDABLE = frozenset(int(TensorProto.DataType.Value(name)) for name in _NATIVE)
"""Types that NumPy has itself."""


@dataclass(frozen=True)
class Constant:
    """An initializer, or what a Constant node makes."""

    name: str
    element: int
    """A number of TensorProto.DataType."""
    shape: tuple[int, ...]
    bytes: int
    """Stored bytes, in the model or beside it."""
    owner: str | None
    """The PyTorch module after whose parameter or buffer it is named, or whose Constant node it is."""
    learned: bool
    """torch.export recorded that it is a parameter, thus trained and not folded."""
    named: bool
    """An initializer with the name of a parameter or buffer."""
    sparse: bool = False
    digest: str | None = None
    """Of the content, when another constant has the same type and shape."""


def collect(source: ModelFile, model: ModelProto, known: Collection[str]) -> dict[str, Constant]:
    """All constants of *model*, whose tensors `read_model` has checked, by tensor name."""
    tensors: dict[str, TensorProto] = {}
    constants: dict[str, Constant] = {}
    for graph in iter_graphs(model):
        if isinstance(graph, GraphProto):
            learned = {
                info.name
                for info in (*graph.value_info, *graph.input)
                if any(entry.key == _INPUT_KIND and entry.value == "PARAMETER" for entry in info.metadata_props)
            }
            for tensor in graph.initializer:
                name, owner = str(tensor.name), module_of_initializer(tensor.name)
                tensors[name] = tensor
                constants[name] = _constant(tensor, name, owner, name in learned, owner is not None)
            for item in graph.sparse_initializer:
                constants[item.values.name] = _sparse(item, item.values.name, None)
        for node in graph.node:
            held = constant_name(node)
            for attribute in node.attribute if held else ():
                owner = module_of(node, known)
                if attribute.HasField("t"):
                    tensors[held] = attribute.t
                    constants[held] = _constant(attribute.t, held, owner, False, False)
                elif attribute.HasField("sparse_tensor"):
                    constants[held] = _sparse(attribute.sparse_tensor, held, owner)
    return _with_digests(source, constants, tensors)


def constant_name(node: NodeProto) -> str:
    """Name of the tensor that *node* holds when it is a Constant, else ""."""
    standard = node.domain in ("", "ai.onnx") and node.op_type == "Constant"
    return str(node.output[0]) if standard and len(node.output) == 1 else ""


def small_values(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Content of the numeric constants that are small enough for arithmetic on shapes."""
    values = {}
    for graph in iter_graphs(model):
        if isinstance(graph, GraphProto):
            values.update({t.name: numpy_helper.to_array(t) for t in graph.initializer if _is_foldable(t)})
        for node in graph.node:
            if (name := constant_name(node)) and len(node.attribute) == 1:
                value = _attribute_value(node)
                if value is not None:
                    values[name] = value
    return values


def strip(model: ModelProto) -> None:
    """Turn large and external constants of the main graph into inputs of the same type and shape.

    Constants inside the bodies of control flow stay: a body cannot have more inputs than its node passes.
    """
    graph = model.graph
    inputs = {info.name for info in graph.input}
    heavy: list[tuple[str, TensorProto]] = []
    for index in reversed(range(len(graph.initializer))):
        if _is_heavy(graph.initializer[index]):
            heavy.append((graph.initializer[index].name, graph.initializer.pop(index)))
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if name := constant_name(node):
            attribute = node.attribute[0] if len(node.attribute) == 1 else None
            if attribute is not None and attribute.HasField("t") and _is_heavy(attribute.t):
                heavy.append((name, attribute.t))
                del graph.node[index]
    for name, tensor in reversed(heavy):
        if name not in inputs:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
            inputs.add(name)


def _constant(tensor: TensorProto, name: str, owner: str | None, learned: bool, named: bool) -> Constant:
    size = claimed_bytes(tensor)
    if size is None:
        size = sum(len(text) for text in tensor.string_data)
    return Constant(name, tensor.data_type, tuple(tensor.dims), size, owner, learned, named)


def _sparse(item: Any, name: str, owner: str | None) -> Constant:
    size = (claimed_bytes(item.values) or 0) + (claimed_bytes(item.indices) or 0)
    return Constant(name, item.values.data_type, tuple(item.dims), size, owner, False, False, sparse=True)


def _with_digests(
    source: ModelFile, constants: dict[str, Constant], tensors: dict[str, TensorProto]
) -> dict[str, Constant]:
    alike = defaultdict(list)
    for name in tensors:
        constant = constants[name]
        if constant.bytes >= DUPLICATE_BYTES:
            alike[constant.element, constant.shape].append(name)
    for names in alike.values():
        if len(names) > 1:
            for name in names:
                constants[name] = replace(constants[name], digest=_digest(source, tensors[name], constants[name].bytes))
    return constants


def _digest(source: ModelFile, tensor: TensorProto, size: int) -> str | None:
    if tensor.data_type == TensorProto.STRING:
        return None
    if tensor.data_location != TensorProto.EXTERNAL:
        raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        return hashlib.sha256(raw).hexdigest()
    location, offset, _ = external_range(tensor)
    if not is_plain_name(location) or location not in source.external:
        return None
    digest = hashlib.sha256()
    with open(source.path.parent / location, "rb") as stream:
        stream.seek(offset)
        while size > 0 and (block := stream.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _attribute_value(node: NodeProto) -> NDArray[Any] | None:
    attribute = node.attribute[0]
    if attribute.HasField("t"):
        return numpy_helper.to_array(attribute.t) if _is_foldable(attribute.t) else None
    if attribute.name == "value_int":
        return np.array(attribute.i, np.int64)
    if attribute.name == "value_float":
        return np.array(attribute.f, np.float32)
    if attribute.name == "value_ints" and len(attribute.ints) <= SMALL:
        return np.array(list(attribute.ints), np.int64)
    if attribute.name == "value_floats" and len(attribute.floats) <= SMALL:
        return np.array(list(attribute.floats), np.float32)
    return None


def _is_foldable(tensor: TensorProto) -> bool:
    return tensor.data_type in _FOLDABLE and not _is_heavy(tensor)


def _is_heavy(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or _elements(tensor) > SMALL


def _elements(tensor: TensorProto) -> int:
    return math.prod(int(dim) for dim in tensor.dims)
