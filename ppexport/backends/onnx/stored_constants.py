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

from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.model_file import ModelFile, claimed_bytes, iter_graphs
from ppexport.backends.onnx.modules import module_of, module_of_initializer

SMALL = 4096
"""Elements up to which a constant may take part in arithmetic on shapes; the largest such tensor is a list of axes."""
DUPLICATE_BYTES = 16 * 1024
"""Constants below this size are not compared with each other: biases of zeros are equal and cost nothing."""

_INPUT_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


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
    learned: bool = False
    """torch.export recorded that it is a parameter, thus trained and not folded."""
    named: bool = False
    """An initializer with the name of a parameter or buffer."""
    sparse: bool = False
    digest: str | None = None
    """Of the content, when another constant has the same type and shape."""


def collect(
    source: ModelFile, model: ModelProto, known: Collection[str]
) -> tuple[dict[str, Constant], dict[str, NDArray[Any]]]:
    """All constants of *model*, whose tensors `read_model` has checked, and the content of small ones, by name."""
    tensors: dict[str, TensorProto] = {}
    constants: dict[str, Constant] = {}
    values: dict[str, NDArray[Any]] = {}

    def add(name: str, tensor: TensorProto, owner: str | None, learned: bool = False, named: bool = False) -> None:
        tensors[name] = tensor
        size = claimed_bytes(tensor)
        constants[name] = Constant(name, tensor.data_type, tuple(tensor.dims), size, owner, learned, named)
        if not _is_heavy(tensor) and is_number(array := numpy_helper.to_array(tensor)):
            values[name] = array

    def add_sparse(name: str, item: SparseTensorProto, owner: str | None) -> None:
        size = claimed_bytes(item.values) + claimed_bytes(item.indices)
        constants[name] = Constant(name, item.values.data_type, tuple(item.dims), size, owner, sparse=True)

    for graph in iter_graphs(model):
        if isinstance(graph, GraphProto):
            learned = {
                info.name
                for info in (*graph.value_info, *graph.input)
                if any(entry.key == _INPUT_KIND and entry.value == "PARAMETER" for entry in info.metadata_props)
            }
            for tensor in graph.initializer:
                owner = module_of_initializer(tensor.name)
                add(tensor.name, tensor, owner, learned=tensor.name in learned, named=owner is not None)
            for item in graph.sparse_initializer:
                add_sparse(item.values.name, item, None)
        for node in graph.node:
            held = constant_name(node)
            for attribute in node.attribute if held else ():
                if attribute.HasField("t"):
                    add(held, attribute.t, module_of(node, known))
                elif attribute.HasField("sparse_tensor"):
                    add_sparse(held, attribute.sparse_tensor, module_of(node, known))
    alike = defaultdict(list)
    for name in tensors:
        alike[constants[name].element, constants[name].shape].append(name)
    for names in alike.values():
        if len(names) > 1 and constants[names[0]].bytes >= DUPLICATE_BYTES:
            for name in names:
                constants[name] = replace(constants[name], digest=_digest(source, tensors[name]))
    return constants, values


def constant_name(node: NodeProto) -> str:
    """Name of the tensor that *node* holds when it is a Constant, else ""."""
    standard = node.domain in ("", "ai.onnx") and node.op_type == "Constant"
    return str(node.output[0]) if standard and len(node.output) == 1 else ""


def is_number(array: NDArray[Any]) -> bool:
    """Whether *array* may take part in arithmetic on shapes: it is small, and of bool, integers or plain floats."""
    return array.size <= SMALL and array.dtype.kind in "biuf"


def strip(model: ModelProto) -> None:
    """Turn large and external constants of the main graph into inputs of the same type and shape.

    Constants inside the bodies of control flow stay: a body cannot have more inputs than its node passes.
    """
    graph = model.graph
    inputs = {info.name for info in graph.input}
    heavy = {tensor.name: tensor for tensor in graph.initializer if _is_heavy(tensor)}
    for node in graph.node:
        heavy.update({constant_name(node): a.t for a in node.attribute if _holds_heavy(node)})
    for name, tensor in heavy.items():
        if name not in inputs:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    for items, dropped in ((graph.initializer, _is_heavy), (graph.node, _holds_heavy)):
        for index in reversed(range(len(items))):
            if dropped(items[index]):
                del items[index]


def _holds_heavy(node: NodeProto) -> bool:
    return bool(constant_name(node)) and len(node.attribute) == 1 and _is_heavy(node.attribute[0].t)


def _is_heavy(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > SMALL


def _digest(source: ModelFile, tensor: TensorProto) -> str | None:
    """Hash of the content of *tensor*, None where there is none to compare."""
    if tensor.data_type == TensorProto.STRING:
        return None
    copy = TensorProto()  # onnx may keep what it reads from a file in the tensor
    copy.CopyFrom(tensor)
    if tensor.data_location == TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") not in source.external:
            return None
        if not entries.get("length"):
            copy.external_data.add(key="length", value=str(claimed_bytes(tensor)))
    return hashlib.sha256(numpy_helper.to_array(copy, str(source.path.parent)).tobytes()).hexdigest()
