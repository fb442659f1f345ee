"""Reads a saved .mlpackage, as it ships, with NumPy and the standard library alone.

A package is a folder with a manifest, a model file, whose messages have the numbers of Core ML's published Model.proto
and MIL.proto, and a weight file `weights/weight.bin`:

    0      uint32 number of blobs, uint32 version (2), zeros to byte 64
    64 k   header of a blob: uint32 0xDEADBEEF, uint32 element type, uint64 bytes, uint64 offset of the data, uint64
           unused bits of the last byte, zeros to 64 bytes
    64 k   its data

A program names a blob by the offset of its header.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.program import (
    TYPES,
    Binding,
    Function,
    Operation,
    Package,
    Port,
    Reference,
    TensorType,
    Value,
)
from ppexport.device.wire import Message
from ppexport.errors import ArtifactError

MANIFEST = "Manifest.json"
MODEL_PREFIX = "@model_path/"
"""Where a program's file names start: the folder of the model file."""
VERSION = 2
SENTINEL = 0xDEADBEEF
FILE_HEADER = struct.Struct("<II56x")
BLOB_HEADER = struct.Struct("<IIQQQ32x")
PROGRAM = 502
_PACKED = {1: "<f4", 6: "<f8"}
_VARINTS = {2: np.int32, 3: np.bool_, 5: np.int64}
MAX_RANK = 64


def open_weights(path: Path) -> memoryview:
    """The bytes of the weight file *path*. Raises ArtifactError where it is none."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"the weights {path} cannot be read: {error.strerror}") from None
    if len(data) < FILE_HEADER.size or FILE_HEADER.unpack_from(data)[1] != VERSION:
        raise ArtifactError(f"{path} is not a weight file of version {VERSION}")
    return data


def read_blob(data: memoryview, offset: int, kind: TensorType) -> NDArray[np.generic]:
    """The blob of a weight file whose header is at *offset*. Raises ArtifactError where it is no *kind*."""
    where, shape, element = f"the weight at {offset}", _constant_shape(kind), kind.element
    if offset % 64 or not FILE_HEADER.size <= offset <= len(data) - BLOB_HEADER.size:
        raise ArtifactError(f"{where} is outside the file or not aligned: the package is damaged")
    sentinel, stored, size, start, _ = BLOB_HEADER.unpack_from(data, offset)
    if sentinel != SENTINEL:
        raise ArtifactError(f"{where} has no header: the package is damaged")
    if stored != element.stored:
        raise ArtifactError(f"{where} has element type {stored}, the program says {element.name}")
    if start + size > len(data):
        raise ArtifactError(f"{where} ends behind the end of the file: the package is damaged")
    try:
        return element.unpack(data[start : start + size], math.prod(shape)).reshape(shape)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from None


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"the model file is damaged: {what}")


def _tensor_type(message: Message) -> TensorType | None:
    """A ValueType, None where it is no tensor."""
    if 1 not in message:
        return None
    tensor = message.message(1)
    lengths = [d.message(1).integer(1) if 1 in d else None for d in tensor.messages(3)]
    if len(lengths) != tensor.integer(2) or len(lengths) > MAX_RANK or any(n is not None and n < 0 for n in lengths):
        raise _damaged("a tensor's rank and shape differ")
    number = tensor.integer(1)
    if number not in TYPES:
        raise ArtifactError(f"element type {number} is not known")
    return TensorType(TYPES[number], tuple(lengths))


def _port(message: Message) -> Port:
    return Port(message.text(1), _tensor_type(message.message(2)))


def _constant_shape(kind: TensorType) -> tuple[int, ...]:
    if any(length is None for length in kind.shape):
        raise _damaged("a constant has no fixed shape")
    return cast("tuple[int, ...]", kind.shape)


def read_tensor(message: Message, kind: TensorType) -> Value:
    """The array, or the text, in a TensorValue of *kind*. Raises ArtifactError where it holds something else."""
    shape = _constant_shape(kind)
    if kind.element.numpy is None:
        texts: list[Value] = list(message.message(4).texts(1))
        if len(texts) != 1 and not shape:
            raise _damaged("a text is missing")
        return texts if shape else texts[0]
    count = math.prod(shape)
    if 7 in message:
        chunks = message.message(7).chunks(1)
        return kind.element.unpack(chunks[-1] if chunks else memoryview(b""), count).reshape(shape)
    number = next(iter(message.fields), 0)
    body = message.message(number)
    values: NDArray[Any] = np.zeros(0)
    if number in _PACKED:
        packed, width = b"".join(body.chunks(1)), np.dtype(_PACKED[number])
        if len(packed) % width.itemsize:
            raise _damaged(f"a constant {kind} ends inside a number")
        values = np.frombuffer(packed, width)
    elif number in _VARINTS:
        values = np.array(body.integers(1), np.int64).astype(_VARINTS[number])
    if values.size != count:
        raise _damaged(f"a constant {kind} holds {values.size} values")
    return values.astype(kind.element.numpy).reshape(shape)


class Decoder:
    """Decodes the model file in *folder*, with the weights beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._weights: dict[str, memoryview] = {}

    def _blob(self, message: Message, kind: TensorType) -> Value:
        name = message.text(1)
        if not name.startswith(MODEL_PREFIX):
            raise ArtifactError(f"weights are below {MODEL_PREFIX}, not in {name!r}")
        if name not in self._weights:
            self._weights[name] = open_weights(_inside(self.folder, name.removeprefix(MODEL_PREFIX)))
        return read_blob(self._weights[name], message.integer(2), kind)

    def _value(self, message: Message) -> Value:
        kind, immediate = _tensor_type(message.message(2)), message.message(3)
        for sequence in (3, 2):
            if sequence in immediate:
                return [self._value(item) for item in immediate.message(sequence).messages(1)]
        if 4 in immediate:
            pairs = immediate.message(4).messages(1)
            return {str(self._value(pair.message(1))): self._value(pair.message(2)) for pair in pairs}
        if kind is None:
            raise _damaged("a value has no type")
        return self._blob(message.message(5), kind) if 5 in message else read_tensor(immediate.message(1), kind)

    def _binding(self, message: Message) -> Binding:
        return Reference(message.text(1)) if 1 in message else self._value(message.message(2))

    def _operation(self, message: Message) -> Operation:
        attributes = message.entries(5)
        outputs = tuple(map(_port, message.messages(3)))
        name = self._value(attributes["name"]) if "name" in attributes else ""
        inputs = {key: [self._binding(b) for b in entry.messages(1)] for key, entry in message.entries(2).items()}
        # Compressed weights keep their parts in attributes (iOS 16) or in inputs (iOS 18).
        for key in attributes.keys() - {"name", "val"}:
            inputs[key] = [self._value(attributes[key])]
        return Operation(
            message.text(1),
            str(name) or (outputs[0].name if outputs else ""),
            inputs,
            outputs,
            self._value(attributes["val"]) if "val" in attributes else None,
            len(message.chunks(4)),
        )

    def _function(self, name: str, message: Message) -> Function:
        """A Function, of which the one block is taken that its opset names."""
        opset, blocks = message.text(2), message.entries(3)
        if opset not in blocks:
            raise ArtifactError(f"function {name!r} has no block for its opset {opset!r}")
        block = blocks[opset]
        operations = tuple(self._operation(operation) for operation in block.messages(3))
        return Function(name, opset, tuple(map(_port, message.messages(1))), tuple(block.texts(2)), operations)

    def package(self, data: bytes) -> Package:
        """A Model. Raises ArtifactError for other kinds than ML programs."""
        model = Message(memoryview(data))
        if PROGRAM not in model:
            raise ArtifactError("the model is not an ML program")
        description = model.message(2)
        functions = {k: self._function(k, m) for k, m in model.message(PROGRAM).entries(2).items()}
        default = description.text(21) or "main"
        # The features that each function takes; a description without functions is of the only one.
        described = {m.text(1): m.messages(2) for m in description.messages(20)} or {default: description.messages(1)}
        if described.keys() != functions.keys() or default not in functions:
            raise ArtifactError(f"the model describes {sorted(described)}, but has functions {sorted(functions)}")
        images = any(4 in feature.message(3) for feature in described[default])
        facts = {entry.text(1): entry.text(2) for entry in description.message(100).messages(100)}
        return Package(functions, default, images, facts)


def _inside(base: Path, name: str) -> Path:
    """The file *name* below *base*. Raises ArtifactError where it would be outside, or is a link."""
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or PurePosixPath(name).is_absolute() or ".." in parts:
        raise ArtifactError(f"{name!r} is not a file inside the package")
    path = base
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link: a package holds plain files")
    return path


def _model_file(path: Path) -> Path:
    """The model file of the package *path*. Raises ArtifactError where this is no package."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entry = PurePosixPath(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except (OSError, UnicodeDecodeError):
        raise ArtifactError(f"{path} is not a Core ML package: it has no readable {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(f"{path} is not a Core ML package: {MANIFEST} names no model") from None
    return _inside(path / "Data", str(entry))


def read_package(path: str | Path) -> Package:
    """The program of the package *path*, weights included. Raises ArtifactError for what cannot be read."""
    path = Path(path)
    model = _model_file(path)
    try:
        data = model.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} is not complete: {model.name} cannot be read ({error.strerror})") from None
    try:
        return Decoder(model.parent).package(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except RecursionError:
        raise ArtifactError(f"{path}: the model file is damaged: it is nested without end") from None
