"""A MIL program as plain objects: functions of operations, whose inputs are names or values, and their types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import ArtifactError, InputError


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
        """*count* elements out of the bytes *data*. Raises ArtifactError if *data* has fewer or more."""
        expected = -(-count * self.bits // 8)
        if self.numpy is None or len(data) != expected:
            raise ArtifactError(f"{count} values of {self.name} take {expected} bytes, not {len(data)}")
        if self.bits >= 8:
            return np.frombuffer(data, self.numpy)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * self.bits, bitorder="little")
        values = bits.reshape(count, self.bits) @ (1 << np.arange(self.bits))
        if np.issubdtype(self.numpy, np.signedinteger):
            values -= values >> (self.bits - 1) << self.bits
        return values.astype(self.numpy)


TYPES: dict[int, ElementType] = {
    1: ElementType("bool", 8, np.dtype("bool")),
    2: ElementType("string", 8, None),
    10: ElementType("fp16", 16, np.dtype("<f2"), 1),
    11: ElementType("fp32", 32, np.dtype("<f4"), 2),
    12: ElementType("fp64", 64, np.dtype("<f8")),
    21: ElementType("int8", 8, np.dtype("i1"), 4),
    22: ElementType("int16", 16, np.dtype("<i2"), 6),
    23: ElementType("int32", 32, np.dtype("<i4"), 14),
    24: ElementType("int64", 64, np.dtype("<i8")),
    25: ElementType("int4", 4, np.dtype("i1"), 8),
    31: ElementType("uint8", 8, np.dtype("u1"), 3),
    32: ElementType("uint16", 16, np.dtype("<u2"), 7),
    33: ElementType("uint32", 32, np.dtype("<u4"), 15),
    35: ElementType("uint4", 4, np.dtype("u1"), 11),
    36: ElementType("uint2", 2, np.dtype("u1"), 10),
    37: ElementType("uint1", 1, np.dtype("u1"), 9),
    38: ElementType("uint6", 6, np.dtype("u1"), 13),
    39: ElementType("uint3", 3, np.dtype("u1"), 12),
}
"""By their number in a model file."""


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

    def reads(self, *parameters: str) -> list[str]:
        """Names of what it reads, in order; those of *parameters* alone if any are given."""
        bound = [self.inputs.get(name, []) for name in parameters] if parameters else self.inputs.values()
        return [b.name for bindings in bound for b in bindings if isinstance(b, Reference)]


@dataclass(frozen=True)
class Function:
    """One function of a program."""

    name: str
    opset: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Package:
    """An opened package."""

    functions: dict[str, Function]
    default: str
    """The function that runs if none is named."""
    images: bool = False
    """Whether the default function takes a picture."""
    facts: dict[str, str] = field(default_factory=dict)
    """The maker's own metadata."""

    def function(self, name: str | None = None) -> Function:
        """The function *name*, by default the default. Raises InputError if the package has none."""
        name = self.default if name is None else name
        if name not in self.functions:
            raise InputError(f"the package has functions {', '.join(self.functions)}, not {name!r}")
        return self.functions[name]
