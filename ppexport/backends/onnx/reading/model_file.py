"""Read an ONNX file that may be damaged or hostile, without trusting a single number in it.

Nothing is allocated because the file claims a size, no file outside the model's folder is ever opened, and every
refusal is one sentence. What comes back is a parsed model whose tensors hold exactly the bytes that they claim.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.device.artifact import Artifact
from ppexport.errors import InputError
from ppexport.files import is_plain_name

MAX_FILE_BYTES = 2**31 - 1
"""Protocol buffers end at 2 GiB; a larger ONNX file is not valid and would fill the memory before it is refused."""
MAX_NODES = 200_000
"""Nodes after local functions are expanded: ten functions that call each other ten times make ten thousand million."""

MAX_CALL_DEPTH = 16
"""Local functions inside local functions; exporters stay below five."""
MAX_RANK = 64
"""Dimensions of a stored tensor. ONNX sets no limit, but no runtime takes more than eight."""

_DIGITS = re.compile(r"\d+")
_BITS: dict[int, int] = {TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.BOOL: 8}
"""Bits per element; the other types have their width in their name."""
for _name, _number in TensorProto.DataType.items():
    if (_match := _DIGITS.search(_name)) is not None:
        _BITS[_number] = int(_match.group())

FunctionKey = tuple[str, str, str]


@dataclass(frozen=True)
class UnsafeFile:
    """External data that this project refuses to open."""

    tensor: str
    location: str
    reason: str


@dataclass
class ModelFile:
    """A parsed model and what was learnt on the way."""

    path: Path
    proto: ModelProto
    file_bytes: int
    external: dict[str, int] = field(default_factory=dict)
    """{plain file name: size in bytes} of external data beside the model."""
    unsafe: list[UnsafeFile] = field(default_factory=list)


def read_model(path: Path) -> ModelFile:
    """Parse the ONNX model at *path*.

    Raises InputError when the file is missing, too large, no ONNX model, damaged, or lacks its external data.
    External data with an unsafe name is not touched but listed in `unsafe`.
    """
    return parse_model(path, _read_bytes(path))


def artifact_model(artifact: Artifact) -> ModelProto:
    """The ONNX graph of *artifact*, of the bytes that its hash covers. Raises ArtifactError where it names other files.

    `onnx.load` of the path would open those files.
    """
    return _parse(artifact.graph_file, graph_bytes(artifact))


def _parse(path: Path, data: bytes) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, whose package carries no types
        raise InputError(f"{path} is not an ONNX model, or it is damaged or cut off") from None
    return proto


def parse_model(path: Path, data: bytes) -> ModelFile:
    """As `read_model`, of the bytes *data* that were read from *path*."""
    proto = _parse(path, data)
    if not proto.HasField("graph") or not proto.ir_version or not (proto.graph.node or proto.graph.output):
        raise InputError(f"{path} is not an ONNX model: it has no graph")
    if not _is_text(proto):
        raise InputError(f"{path} is damaged: it holds names that are not text")
    if not proto.opset_import:
        raise InputError(f"{path} is damaged: it does not say which operator set it uses")
    _check_functions(path, proto)
    source = ModelFile(path, proto, len(data))
    for tensor in iter_tensors(proto):
        _check_tensor(source, tensor)
    return source


def element_bits(data_type: int) -> int | None:
    """Bits per element of an ONNX tensor type; None for strings and for types that this onnx does not know."""
    return _BITS.get(data_type)


def claimed_bytes(tensor: TensorProto) -> int | None:
    """Bytes that *tensor*'s shape and type amount to; None for strings, unknown types and impossible shapes."""
    bits = element_bits(tensor.data_type)
    if bits is None or len(tensor.dims) > MAX_RANK or any(dim < 0 for dim in tensor.dims):
        return None
    return -(-_elements(tensor) * bits // 8)


def external_range(tensor: TensorProto) -> tuple[str, int, int | None]:
    """(location, offset, length or None) of *tensor*'s external data; InputError when they are no numbers."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(entries.get("offset") or 0), entries.get("length")
        return entries.get("location", ""), offset, int(length) if length else None
    except ValueError:
        raise InputError(f"the external data of {tensor.name or 'a tensor'} has no readable offset or length") from None


def iter_graphs(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """The main graph, the bodies of control flow in it, and local functions with theirs."""
    yield from _with_inner([proto.graph, *proto.functions])


def _with_inner(waiting: list[GraphProto | FunctionProto]) -> Iterator[GraphProto | FunctionProto]:
    """The graphs *waiting* and all that lie inside them."""
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            waiting.extend(subgraphs(node))


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Graphs among *node*'s attributes: the branches of If, the bodies of Loop and Scan."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def iter_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the model stores: initializers, sparse ones, in attributes of nodes and functions, and those
    for training."""
    training = [graph for info in proto.training_info for graph in (info.initialization, info.algorithm)]
    defaults = NodeProto(attribute=[attr for function in proto.functions for attr in function.attribute_proto])
    for graph in _with_inner([proto.graph, *proto.functions, *training, *subgraphs(defaults)]):
        if isinstance(graph, GraphProto):
            yield from graph.initializer
            yield from _halves(graph.sparse_initializer)
        for node in graph.node:
            yield from _attribute_tensors(node.attribute)
    yield from _attribute_tensors(defaults.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _halves([attribute.sparse_tensor])
        yield from _halves(attribute.sparse_tensors)


def _halves(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size / 2**30:.1f} GiB; an ONNX file ends at 2 GiB, weights go beside it")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from None


def _is_text(message: Any) -> bool:
    """Whether every name in *message* decodes: protobuf hands out those that do not as bytes."""
    for descriptor, value in message.ListFields():
        values = value if hasattr(value, "append") else [value]
        if descriptor.type == descriptor.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
        if descriptor.type == descriptor.TYPE_STRING and any(isinstance(item, bytes) for item in values):
            return False
    return True


def _check_functions(path: Path, proto: ModelProto) -> None:
    """Refuse local functions that call each other in a circle or expand beyond all measure."""
    bodies: dict[FunctionKey, FunctionProto] = {}
    for function in proto.functions:
        bodies[(function.domain, function.name, function.overload)] = function
    sizes: dict[FunctionKey, int] = {}

    def expanded(graph: GraphProto | FunctionProto, callers: tuple[FunctionKey, ...]) -> int:
        if len(callers) > MAX_CALL_DEPTH:
            raise InputError(f"{path} nests more than {MAX_CALL_DEPTH} local functions, which are not read")
        total = 0
        for node in graph.node:
            total += 1 + sum(expanded(body, callers) for body in subgraphs(node))
            key = (node.domain, node.op_type, node.overload)
            if key in callers:
                raise InputError(f"{path} is damaged: its function {node.op_type} calls itself")
            if key in bodies:
                if key not in sizes:
                    sizes[key] = expanded(bodies[key], (*callers, key))
                total += sizes[key]
        return total

    if (total := expanded(proto.graph, ())) > MAX_NODES:
        raise InputError(f"{path} expands to {total} nodes; more than {MAX_NODES} are not read")


def _check_tensor(source: ModelFile, tensor: TensorProto) -> None:
    """Refuse a tensor whose stored bytes are not those that its shape and type claim."""
    label = tensor.name or "a constant"
    expected = claimed_bytes(tensor)
    if expected is None and tensor.data_type != TensorProto.STRING:
        raise InputError(f"{source.path} is damaged: {label} has an unknown type or an impossible shape")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(source, tensor, expected)
    elif not _is_complete(tensor, expected):
        raise InputError(f"{source.path} is damaged: {label} does not hold the data that its shape claims")


def _is_complete(tensor: TensorProto, expected: int | None) -> bool:
    if expected is None:
        return len(tensor.dims) <= MAX_RANK and len(tensor.string_data) == _elements(tensor)
    count = _elements(tensor)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) == expected
    if tensor.data_type in (TensorProto.FLOAT, TensorProto.COMPLEX64):
        return len(tensor.float_data) * 4 == expected
    if tensor.data_type in (TensorProto.DOUBLE, TensorProto.COMPLEX128):
        return len(tensor.double_data) * 8 == expected
    if tensor.data_type == TensorProto.INT64:
        return len(tensor.int64_data) == count
    if tensor.data_type in (TensorProto.UINT32, TensorProto.UINT64):
        return len(tensor.uint64_data) == count
    # Everything else travels in int32_data, types below a byte packed.
    return len(tensor.int32_data) == (expected if (element_bits(tensor.data_type) or 8) < 8 else count)


def _elements(tensor: TensorProto) -> int:
    return math.prod(int(dim) for dim in tensor.dims)


def _check_external(source: ModelFile, tensor: TensorProto, expected: int | None) -> None:
    location, offset, length = external_range(tensor)
    label = tensor.name or "a constant"
    if not is_plain_name(location):
        source.unsafe.append(UnsafeFile(label, location, "is not a plain name in the model's folder"))
        return
    file = source.path.parent / location
    try:
        if file.is_symlink():
            source.unsafe.append(UnsafeFile(label, location, "is a symbolic link"))
            return
        if not file.is_file():
            raise InputError(f"{source.path} keeps {label} in {location}, which is not there")
        size = source.external.setdefault(location, file.stat().st_size)
    except OSError as error:
        raise InputError(f"{source.path} keeps {label} in {location}: {error.strerror}") from None
    if expected is None or offset < 0 or (length is not None and length != expected) or offset + expected > size:
        raise InputError(f"{source.path} is damaged: {location} does not hold all of {label}")
