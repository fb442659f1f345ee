"""A MIL program as plain objects: functions of operations, whose inputs are names or values, and their types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import ArtifactError


@dataclass(frozen=True)
class ElementType:
    """One element type."""

    name: str
    """As MIL programs write it."""
    bits: int
    """Bits of one stored element; below 8 they are packed, lowest bits first."""
    numpy: np.dtype[np.generic] | None
    """What holds it in memory; None for text."""
    stored: int | None = None
    """Its number in a weight file; None where weights cannot be of this type."""

    def unpack(self, data: memoryview, count: int) -> NDArray[np.generic]:
        """*count* elements out of the bytes *data*. Raises ArtifactError where there are fewer or more."""
        expected = -(-count * self.bits // 8)
        if self.numpy is None or len(data) != expected:
            raise ArtifactError(f"{count} values of {self.name} take {expected} bytes, not {len(data)}")
        if self.bits >= 8:
            return np.frombuffer(data, self.numpy)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * self.bits]
        values = np.zeros(count, np.int16)
        for place, column in enumerate(bits.reshape(count, self.bits).T):
            values |= column.astype(np.int16) << place
        if np.issubdtype(self.numpy, np.signedinteger):
            values = np.where(values >> (self.bits - 1), values - (1 << self.bits), values)
        return values.astype(self.numpy)


def _kind(name: str, bits: int, numpy: str | None, stored: int | None = None) -> ElementType:
    return ElementType(name, bits, None if numpy is None else np.dtype(numpy), stored)


TYPES: dict[int, ElementType] = {
    1: _kind("bool", 8, "bool"),
    2: _kind("string", 8, None),
    10: _kind("fp16", 16, "<f2", 1),
    11: _kind("fp32", 32, "<f4", 2),
    12: _kind("fp64", 64, "<f8"),
    21: _kind("int8", 8, "i1", 4),
    22: _kind("int16", 16, "<i2", 6),
    23: _kind("int32", 32, "<i4", 14),
    24: _kind("int64", 64, "<i8"),
    25: _kind("int4", 4, "i1", 8),
    31: _kind("uint8", 8, "u1", 3),
    32: _kind("uint16", 16, "<u2", 7),
    33: _kind("uint32", 32, "<u4", 15),
    35: _kind("uint4", 4, "u1", 11),
    36: _kind("uint2", 2, "u1", 10),
    37: _kind("uint1", 1, "u1", 9),
    38: _kind("uint6", 6, "u1", 13),
    39: _kind("uint3", 3, "u1", 12),
}
"""By their number in a model file."""


def element_type(number: int) -> ElementType:
    """The element type *number*. Raises ArtifactError for one that is not known."""
    if number not in TYPES:
        raise ArtifactError(f"element type {number} is not known")
    return TYPES[number]


Value: TypeAlias = "NDArray[np.generic] | str | list[Value] | dict[str, Value]"
"""A constant: an array (rank 0 for a scalar), text, a list, or a dictionary with text keys."""


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; None is an unknown length."""

    element: ElementType
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.element.name} ({', '.join('?' if n is None else str(n) for n in self.shape)})"


@dataclass(frozen=True)
class Port:
    """An input of a function, or an output of an operation."""

    name: str
    type: TensorType | None
    """None for what is no tensor."""


@dataclass(frozen=True)
class Reference:
    """An operation's input that another operation computes."""

    name: str


Binding: TypeAlias = "Reference | Value"
"""What an input is bound to: a name, or a value."""


@dataclass(frozen=True)
class Operation:
    """One operation."""

    type: str
    name: str
    inputs: dict[str, list[Binding]]
    """By parameter; several bindings are a tuple of tensors."""
    outputs: tuple[Port, ...]
    value: Value | None = None
    """Of a constant, else None."""
    blocks: int = 0
    """Number of nested blocks: control flow."""

    def reads(self) -> list[str]:
        """Names of what it reads, in order."""
        return [b.name for bindings in self.inputs.values() for b in bindings if isinstance(b, Reference)]


@dataclass(frozen=True)
class Function:
    """One function of a program."""

    name: str
    opset: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Feature:
    """An input or output as an app sees it."""

    name: str
    description: str
    image: tuple[int, int] | None = None
    """(height, width) of a picture, None for a tensor."""
    color: str = ""
    """Of a picture: RGB, BGR or GRAY."""


@dataclass(frozen=True)
class Interface:
    """What an app sees of one function."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]


@dataclass(frozen=True)
class Package:
    """An opened package."""

    specification: int
    """Core ML's specification version: 7 is iOS 16, 8 iOS 17, 9 iOS 18."""
    functions: dict[str, Function]
    interfaces: dict[str, Interface]
    """By function."""
    default: str
    """The function that runs if none is named."""
    author: str = ""
    licence: str = ""
    description: str = ""
    version: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    """The maker's own metadata."""
