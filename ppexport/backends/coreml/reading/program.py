"""A MIL program as plain objects: functions of operations, whose inputs are names or values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.reading.data_types import ElementType

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
