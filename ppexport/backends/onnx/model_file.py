"""Parse an ONNX file that may be damaged or hostile, and walk through what it holds.

No file outside the model's folder is opened, and every refusal is one sentence. Only the linter parses any file at all,
in a child process whose memory and time are limited, see `lint.linting`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.device.artifact import Artifact
from ppexport.errors import InputError
from ppexport.files import is_plain_name

MAX_FILE_BYTES = 2**31 - 1
"""Protocol buffers end at 2 GiB; a larger ONNX file is not valid and would fill the memory before it is refused."""

_DIGITS = re.compile(r"\d+")
_BITS: dict[int, int] = {TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.BOOL: 8}
"""Bits per element; the other types have their width in their name."""
for _name, _number in TensorProto.DataType.items():
    if (_match := _DIGITS.search(_name)) is not None:
        _BITS[_number] = int(_match.group())


@dataclass
class ModelFile:
    """A parsed model and what was learnt on the way."""

    path: Path
    proto: ModelProto
    file_bytes: int
    external: dict[str, int] = field(default_factory=dict)
    """{plain file name: size in bytes} of external data beside the model."""
    unsafe: dict[str, tuple[str, str]] = field(default_factory=dict)
    """{tensor: (location, reason)} of external data that this project refuses to open."""


def read_model(path: Path) -> ModelFile:
    """Parse the ONNX model at *path*.

    Raises InputError when the file is missing, too large, no ONNX model, damaged, or lacks its external data.
    External data with an unsafe name is not touched but listed in `unsafe`.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size / 2**30:.1f} GiB; an ONNX file ends at 2 GiB, weights go beside it")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    proto = _parse(path, data)
    if not proto.HasField("graph") or not proto.ir_version or not (proto.graph.node or proto.graph.output):
        raise InputError(f"{path} is not an ONNX model: it has no graph")
    if not proto.opset_import:
        raise InputError(f"{path} is damaged: it does not say which operator set it uses")
    source = ModelFile(path, proto, len(data))
    try:
        for tensor in iter_tensors(proto):
            if tensor.data_location == TensorProto.EXTERNAL:
                _check_external(source, tensor)
            elif not _is_complete(tensor):
                raise InputError(f"{_label(tensor)} does not hold the data that its shape and type claim")
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return source


def artifact_model(artifact: Artifact) -> ModelProto:
    """The ONNX graph of *artifact*, of the bytes that its hash covers. Raises ArtifactError where it names other files.

    `onnx.load` of the path would open those files.
    """
    return _parse(artifact.graph_file, graph_bytes(artifact))


def claimed_bytes(tensor: TensorProto) -> int:
    """Bytes that *tensor*'s shape and type amount to; of strings, which have no fixed size, what they hold."""
    if tensor.data_type not in _BITS:
        return sum(len(text) for text in tensor.string_data)
    return -(-math.prod(int(dim) for dim in tensor.dims) * _BITS[tensor.data_type] // 8)


def iter_graphs(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """The main graph, the bodies of control flow in it, and local functions with theirs."""
    waiting: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
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


def iter_tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor in *message*, a model or a part of one, wherever the format allows a tensor.

    Raises InputError for a name that is not text, which protobuf hands out as bytes.
    """
    if isinstance(message, TensorProto):
        yield message
    for descriptor, value in message.ListFields():
        values = value if hasattr(value, "append") else [value]
        if descriptor.type == descriptor.TYPE_MESSAGE:
            for item in values:
                yield from iter_tensors(item)
        elif descriptor.type == descriptor.TYPE_STRING and any(isinstance(item, bytes) for item in values):
            raise InputError("the model holds names that are not text")


def _parse(path: Path, data: bytes) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, whose package carries no types
        raise InputError(f"{path} is not an ONNX model, or it is damaged or cut off") from None
    return proto


def _is_complete(tensor: TensorProto) -> bool:
    """Whether *tensor* holds what its shape and type claim, as onnx itself reads it."""
    try:
        return all(dim >= 0 for dim in tensor.dims) and numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except MemoryError:
        raise
    except Exception:  # of several types, one for each way to be wrong
        return False


def _check_external(source: ModelFile, tensor: TensorProto) -> None:
    """Note the file that holds *tensor*, or that it is unsafe to open. Raises InputError unless it holds all of it."""
    label, entries = _label(tensor), {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not is_plain_name(location):
        source.unsafe[label] = location, "is not a plain name in the model's folder"
        return
    file = source.path.parent / location
    try:
        if file.is_symlink():
            source.unsafe[label] = location, "is a symbolic link"
            return
        if not file.is_file():
            raise InputError(f"{label} is kept in {location}, which does not exist")
        size = source.external.setdefault(location, file.stat().st_size)
    except OSError as error:
        raise InputError(f"{label} is kept in {location}: {error.strerror}") from None
    expected = claimed_bytes(tensor)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or expected)
    except ValueError:
        raise InputError(f"{label} is kept in {location}, with no readable offset or length") from None
    known = tensor.data_type in _BITS and all(dim >= 0 for dim in tensor.dims)
    if not known or offset < 0 or length != expected or offset + expected > size:
        raise InputError(f"{location} does not hold all of {label}")


def _label(tensor: TensorProto) -> str:
    return tensor.name or "a constant"
