"""Messages of a model file -> `program`. The numbers are those of Core ML's published Model.proto and MIL.proto."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.reading.data_types import ElementType, element_type
from ppexport.backends.coreml.reading.program import (
    Binding,
    Feature,
    Function,
    Interface,
    Operation,
    Package,
    Port,
    Reference,
    TensorType,
    Value,
)
from ppexport.device.wire import Message
from ppexport.errors import ArtifactError

ReadBlob = Callable[[str, int, ElementType, tuple[int, ...]], NDArray[np.generic]]
"""(file name as the program has it, offset, element type, shape) -> array."""

PROGRAM = 502
COLORS = {10: "GRAY", 20: "RGB", 30: "BGR", 40: "GRAY"}
_PACKED = {1: "<f4", 6: "<f8"}
_VARINTS = {2: np.int32, 3: np.bool_, 5: np.int64}
MAX_RANK = 64


def tensor_type(message: Message) -> TensorType | None:
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

    def value(self, message: Message) -> Value:
        """A Value."""
        kind = tensor_type(message.message(2))
        if 5 in message:
            blob = message.message(5)
            if kind is None:
                raise ArtifactError("the model file is damaged: a stored weight is no tensor")
            return self.read_blob(blob.text(1), blob.integer(2), kind.element, self.shape(kind))
        immediate = message.message(3)
        if 3 in immediate:
            return [self.value(item) for item in immediate.message(3).messages(1)]
        if 2 in immediate:
            return [self.value(item) for item in immediate.message(2).messages(1)]
        if 4 in immediate:
            pairs = immediate.message(4).messages(1)
            return {str(self.value(pair.message(1))): self.value(pair.message(2)) for pair in pairs}
        if kind is None:
            raise ArtifactError("the model file is damaged: a value has no type")
        return self.tensor(immediate.message(1), kind)

    @staticmethod
    def shape(kind: TensorType) -> tuple[int, ...]:
        """The shape of a constant, which is always known."""
        if any(length is None for length in kind.shape):
            raise ArtifactError("the model file is damaged: a constant has no fixed shape")
        return cast("tuple[int, ...]", kind.shape)

    def tensor(self, message: Message, kind: TensorType) -> Value:
        """A TensorValue of *kind*."""
        shape = self.shape(kind)
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

    def binding(self, message: Message) -> Binding:
        """A Binding."""
        return Reference(message.text(1)) if 1 in message else self.value(message.message(2))

    @staticmethod
    def port(message: Message) -> Port:
        """A NamedValueType."""
        return Port(message.text(1), tensor_type(message.message(2)))

    def operation(self, message: Message) -> Operation:
        """An Operation."""
        attributes = message.entries(5)
        outputs = tuple(self.port(output) for output in message.messages(3))
        name = self.value(attributes["name"]) if "name" in attributes else ""
        inputs = {key: [self.binding(b) for b in entry.messages(1)] for key, entry in message.entries(2).items()}
        # Compressed weights keep their parts in attributes (iOS 16) or in inputs (iOS 18).
        for key in attributes.keys() - {"name", "val"}:
            inputs[key] = [self.value(attributes[key])]
        return Operation(
            message.text(1),
            str(name) or (outputs[0].name if outputs else ""),
            inputs,
            outputs,
            self.value(attributes["val"]) if "val" in attributes else None,
            len(message.chunks(4)),
        )

    def function(self, name: str, message: Message) -> Function:
        """A Function, of which the one block is taken that its opset names."""
        opset, blocks = message.text(2), message.entries(3)
        if opset not in blocks:
            raise ArtifactError(f"function {name!r} has no block for its opset {opset!r}")
        block = blocks[opset]
        operations = tuple(self.operation(operation) for operation in block.messages(3))
        return Function(
            name, opset, tuple(self.port(p) for p in message.messages(1)), tuple(block.texts(2)), operations
        )

    @staticmethod
    def feature(message: Message) -> Feature:
        """A FeatureDescription."""
        name, description, kind = message.text(1), message.text(2), message.message(3)
        if 4 not in kind:
            return Feature(name, description)
        image = kind.message(4)
        return Feature(name, description, (image.integer(2), image.integer(1)), COLORS.get(image.integer(3), "?"))

    def interface(self, message: Message, inputs: int, outputs: int) -> Interface:
        """The features in the fields *inputs* and *outputs*."""
        return Interface(
            tuple(self.feature(m) for m in message.messages(inputs)),
            tuple(self.feature(m) for m in message.messages(outputs)),
        )

    def package(self, data: bytes) -> Package:
        """A Model. Raises ArtifactError for other kinds than ML programs."""
        model = Message(memoryview(data))
        if PROGRAM not in model:
            raise ArtifactError("the model is not an ML program")
        description = model.message(2)
        functions = {k: self.function(k, m) for k, m in model.message(PROGRAM).entries(2).items()}
        several = {m.text(1): self.interface(m, 2, 3) for m in description.messages(20)}
        default = description.text(21) or "main"
        interfaces = several or {default: self.interface(description, 1, 10)}
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
