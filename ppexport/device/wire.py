"""The wire format of Protocol Buffers, as much as a Core ML model and the checks of an ONNX file need.

Read by hand, so that looking into a model needs neither coremltools, which takes no NumPy from 2.4 on and loads native
libraries, nor protobuf, whose versions quarrel and which devices lack. A message is a run of fields; a field is a
varint key (number << 3 | kind) and a value: a varint (0), 8 bytes (1), a length and that many bytes (2), or 4 bytes
(5). Whatever contradicts this raises ArtifactError. Standard library only: this file runs on devices.
"""

from __future__ import annotations

from collections.abc import Iterator

from ppexport.errors import ArtifactError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at *at* and the place after it; at most 64 bits."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ArtifactError("the model file is damaged: a number does not end")


def signed(value: int) -> int:
    """A varint as int64 or int32, which are both stored with 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def walk(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message: an int for a varint, else bytes."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        # Protocol Buffers keeps 32 bits of a key, so that it would read a longer one as another field.
        if not 0 < number < 1 << 29:
            raise ArtifactError(f"the model file is damaged: field number {number} does not exist")
        if kind == VARINT:
            value, at = read_varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = read_varint(data, at)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ArtifactError(f"the model file is damaged: field kind {kind} does not exist")
        if at + length > len(data):
            raise ArtifactError("the model file is damaged: it ends inside a field")
        yield number, data[at : at + length]
        at += length


class Message:
    """The fields of one message by number, decoded when they are asked for."""

    def __init__(self, data: memoryview) -> None:
        self.fields: dict[int, list[int | memoryview]] = {}
        for number, value in walk(data):
            self.fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self.fields

    def integer(self, number: int) -> int:
        """An integer field, 0 where it is missing, as the format has it."""
        value = self.fields.get(number, [0])[-1]
        if not isinstance(value, int):
            raise ArtifactError(f"the model file is damaged: field {number} is no integer")
        return signed(value)

    def integers(self, number: int) -> list[int]:
        """A repeated integer field, packed or not."""
        found: list[int] = []
        for value in self.fields.get(number, []):
            if isinstance(value, int):
                found.append(signed(value))
                continue
            at = 0
            while at < len(value):
                element, at = read_varint(value, at)
                found.append(signed(element))
        return found

    def chunks(self, number: int) -> list[memoryview]:
        """A repeated field of bytes: also of packed fixed-size numbers, which the caller takes apart."""
        found = self.fields.get(number, [])
        if any(isinstance(value, int) for value in found):
            raise ArtifactError(f"the model file is damaged: field {number} is an integer")
        return [value for value in found if not isinstance(value, int)]

    def texts(self, number: int) -> list[str]:
        """A repeated string field."""
        try:
            return [bytes(chunk).decode() for chunk in self.chunks(number)]
        except UnicodeDecodeError:
            raise ArtifactError(f"the model file is damaged: field {number} is no text") from None

    def text(self, number: int) -> str:
        """A string field, empty where it is missing."""
        return (self.texts(number) or [""])[-1]

    def messages(self, number: int) -> list[Message]:
        """A repeated field of messages."""
        return [Message(chunk) for chunk in self.chunks(number)]

    def message(self, number: int) -> Message:
        """A field of one message, empty where it is missing."""
        return (self.messages(number) or [Message(memoryview(b""))])[-1]

    def entries(self, number: int) -> dict[str, Message]:
        """A map from text to messages."""
        return {entry.text(1): entry.message(2) for entry in self.messages(number)}
