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
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.program import (
    Binding,
    ElementType,
    Feature,
    Function,
    Interface,
    Operation,
    Package,
    Port,
    Reference,
    TensorType,
    Value,
    element_type,
)
from ppexport.device.wire import Message
from ppexport.errors import ArtifactError

MANIFEST = "Manifest.json"
DATA = "Data"
MODEL_PREFIX = "@model_path/"
"""Where a program's file names start: the folder of the model file."""
VERSION = 2
SENTINEL = 0xDEADBEEF
FILE_HEADER = struct.Struct("<II56x")
BLOB_HEADER = struct.Struct("<IIQQQ32x")

ReadBlob = Callable[[str, int, ElementType, tuple[int, ...]], NDArray[np.generic]]
"""(file name as the program has it, offset, element type, shape) -> array."""

PROGRAM = 502
COLORS = {10: "GRAY", 20: "RGB", 30: "BGR", 40: "GRAY"}
_PACKED = {1: "<f4", 6: "<f8"}
_VARINTS = {2: np.int32, 3: np.bool_, 5: np.int64}
MAX_RANK = 64


class WeightFile:
    """An opened weight file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = memoryview(path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"the weights {path} cannot be read: {error.strerror}") from None
        if len(self.data) < FILE_HEADER.size or FILE_HEADER.unpack_from(self.data)[1] != VERSION:
            raise ArtifactError(f"{path} is not a weight file of version {VERSION}")

    def read(self, offset: int, kind: ElementType, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """The blob whose header is at *offset*. Raises ArtifactError where it is not *kind* and *shape*."""
        where = f"{self.path}: the blob at {offset}"
        if offset % 64 or not FILE_HEADER.size <= offset <= len(self.data) - BLOB_HEADER.size:
            raise ArtifactError(f"{where} is outside the file or not aligned: the package is damaged")
        sentinel, stored, size, start, _ = BLOB_HEADER.unpack_from(self.data, offset)
        if sentinel != SENTINEL:
            raise ArtifactError(f"{where} has no header: the package is damaged")
        if stored != kind.stored:
            raise ArtifactError(f"{where} has element type {stored}, the program says {kind.name}")
        if start + size > len(self.data):
            raise ArtifactError(f"{where} ends behind the end of the file: the package is damaged")
        try:
            return kind.unpack(self.data[start : start + size], math.prod(shape)).reshape(shape)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from None


def _tensor_type(message: Message) -> TensorType | None:
    """A ValueType, None where it is no tensor."""
    if 1 not in message:
        return None
    tensor = message.message(1)
    lengths = [d.message(1).integer(1) if 1 in d else None for d in tensor.messages(3)]
    if len(lengths) != tensor.integer(2) or len(lengths) > MAX_RANK or any(n is not None and n < 0 for n in lengths):
        raise ArtifactError("the model file is damaged: a tensor's rank and shape differ")
    return TensorType(element_type(tensor.integer(1)), tuple(lengths))


class Decoder:
    """Decodes one model file; *read_blob* fetches its weights."""

    def __init__(self, read_blob: ReadBlob) -> None:
        self.read_blob = read_blob

    def _value(self, message: Message) -> Value:
        kind = _tensor_type(message.message(2))
        if 5 in message:
            blob = message.message(5)
            if kind is None:
                raise ArtifactError("the model file is damaged: a stored weight is no tensor")
            return self.read_blob(blob.text(1), blob.integer(2), kind.element, self._shape(kind))
        immediate = message.message(3)
        if 3 in immediate:
            return [self._value(item) for item in immediate.message(3).messages(1)]
        if 2 in immediate:
            return [self._value(item) for item in immediate.message(2).messages(1)]
        if 4 in immediate:
            pairs = immediate.message(4).messages(1)
            return {str(self._value(pair.message(1))): self._value(pair.message(2)) for pair in pairs}
        if kind is None:
            raise ArtifactError("the model file is damaged: a value has no type")
        return self.tensor(immediate.message(1), kind)

    @staticmethod
    def _shape(kind: TensorType) -> tuple[int, ...]:
        """The shape of a constant, which is always known."""
        if any(length is None for length in kind.shape):
            raise ArtifactError("the model file is damaged: a constant has no fixed shape")
        return cast("tuple[int, ...]", kind.shape)

    def tensor(self, message: Message, kind: TensorType) -> Value:
        """A TensorValue of *kind*."""
        shape = self._shape(kind)
        if kind.element.numpy is None:
            texts: list[Value] = list(message.message(4).texts(1))
            if len(texts) != 1 and not shape:
                raise ArtifactError("the model file is damaged: a text is missing")
            return texts if shape else texts[0]
        count = math.prod(shape)
        if 7 in message:
            chunks = message.message(7).chunks(1)
            return kind.element.unpack(chunks[-1] if chunks else memoryview(b""), count).reshape(shape)
        number = next(iter(message.fields), 0)
        body = message.message(number)
        if number in _PACKED:
            packed, width = b"".join(body.chunks(1)), np.dtype(_PACKED[number])
            if len(packed) % width.itemsize:
                raise ArtifactError(f"the model file is damaged: a constant {kind} ends inside a number")
            values: NDArray[np.generic] = np.frombuffer(packed, width)
        elif number in _VARINTS:
            values = np.array(body.integers(1), np.int64).astype(_VARINTS[number])
        else:
            values = np.zeros(0)
        if values.size != count:
            raise ArtifactError(f"the model file is damaged: a constant {kind} holds {values.size} values")
        return values.astype(kind.element.numpy).reshape(shape)

    def _binding(self, message: Message) -> Binding:
        return Reference(message.text(1)) if 1 in message else self._value(message.message(2))

    @staticmethod
    def _port(message: Message) -> Port:
        return Port(message.text(1), _tensor_type(message.message(2)))

    def _operation(self, message: Message) -> Operation:
        attributes = message.entries(5)
        outputs = tuple(self._port(output) for output in message.messages(3))
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
        return Function(
            name, opset, tuple(self._port(p) for p in message.messages(1)), tuple(block.texts(2)), operations
        )

    @staticmethod
    def _feature(message: Message) -> Feature:
        name, description, kind = message.text(1), message.text(2), message.message(3)
        if 4 not in kind:
            return Feature(name, description)
        image = kind.message(4)
        return Feature(name, description, (image.integer(2), image.integer(1)), COLORS.get(image.integer(3), "?"))

    def _interface(self, message: Message, inputs: int, outputs: int) -> Interface:
        """The features in the fields *inputs* and *outputs*."""
        return Interface(
            tuple(self._feature(m) for m in message.messages(inputs)),
            tuple(self._feature(m) for m in message.messages(outputs)),
        )

    def package(self, data: bytes) -> Package:
        """A Model. Raises ArtifactError for other kinds than ML programs."""
        model = Message(memoryview(data))
        if PROGRAM not in model:
            raise ArtifactError("the model is not an ML program")
        description = model.message(2)
        functions = {k: self._function(k, m) for k, m in model.message(PROGRAM).entries(2).items()}
        several = {m.text(1): self._interface(m, 2, 3) for m in description.messages(20)}
        default = description.text(21) or "main"
        interfaces = several or {default: self._interface(description, 1, 10)}
        if set(interfaces) != set(functions) or default not in functions:
            raise ArtifactError(f"the model describes {sorted(interfaces)}, but has functions {sorted(functions)}")
        metadata = description.message(100)
        return Package(
            model.integer(1),
            functions,
            interfaces,
            default,
            author=metadata.text(3),
            licence=metadata.text(4),
            description=metadata.text(1),
            version=metadata.text(2),
            facts={entry.text(1): entry.text(2) for entry in metadata.messages(100)},
        )


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
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, UnicodeDecodeError):
        raise ArtifactError(f"{path} is not a Core ML package: it has no readable {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(f"{path} is not a Core ML package: {MANIFEST} names no model") from None
    if not isinstance(entry, str):
        raise ArtifactError(f"{path} is not a Core ML package: {MANIFEST} names no model")
    return _inside(path / DATA, entry)


def read_package(path: str | Path) -> Package:
    """The program of the package *path*, weights included. Raises ArtifactError for what cannot be read."""
    path = Path(path)
    model = _model_file(path)
    files: dict[str, WeightFile] = {}

    def read_blob(name: str, offset: int, kind: ElementType, shape: tuple[int, ...]) -> NDArray[np.generic]:
        if not name.startswith(MODEL_PREFIX):
            raise ArtifactError(f"weights are below {MODEL_PREFIX}, not in {name!r}")
        if name not in files:
            files[name] = WeightFile(_inside(model.parent, name.removeprefix(MODEL_PREFIX)))
        return files[name].read(offset, kind, shape)

    try:
        data = model.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} is not complete: {model.name} cannot be read ({error.strerror})") from None
    try:
        return Decoder(read_blob).package(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except RecursionError:
        raise ArtifactError(f"{path}: the model file is damaged: it is nested without end") from None
