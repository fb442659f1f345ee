"""A model as the lint rules see it: nodes of all graphs in one list, constants without their data, types, origins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from ppexport.backends.onnx.reading.constants import Constant
from ppexport.backends.onnx.reading.model_file import ModelFile

Dim = int | str | None
Array = NDArray[Any]


class Origin(IntEnum):
    """What a tensor's content depends on; the larger, the less is known before running."""

    CONSTANT = 0
    SHAPES = 1
    """On the shapes of tensors that are not static: fixed as soon as the input's shape is."""
    DATA = 2


class TensorType(NamedTuple):
    """Type of a tensor: its element type (a number of TensorProto.DataType; None for sequences and the like)."""

    element: int | None
    shape: tuple[Dim, ...] | None
    """None: not even the rank is known. In it an int, a symbol's name, or None for unknown."""

    @property
    def static(self) -> bool:
        """Whether every dimension is a number."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def open(self) -> bool:
        """Whether the rank is known but not every dimension."""
        return self.shape is not None and not self.static

    def text(self) -> str:
        """For people: `float [1, 3, h, ?]`."""
        name = "no tensor" if self.element is None else element_name(self.element)
        if self.shape is None:
            return f"{name} of unknown rank"
        return f"{name} [{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class Node:
    """A node of the main graph or of a body inside it (depth > 0)."""

    proto: NodeProto
    module: str | None
    depth: int

    @property
    def op(self) -> str:
        """Operator."""
        return str(self.proto.op_type)

    @property
    def domain(self) -> str:
        """Operator's domain; the standard one is ""."""
        return "" if self.proto.domain == "ai.onnx" else str(self.proto.domain)

    @property
    def label(self) -> str:
        """Name, or what it makes when it has none."""
        return str(self.proto.name) or f"(makes {self.proto.output[0] if self.proto.output else 'nothing'})"


@dataclass
class GraphView:
    """Everything that rules ask about. Constants of the main graph above a few KiB have lost their data."""

    source: ModelFile
    model: ModelProto
    """The model with local functions expanded."""
    nodes: list[Node]
    """In an order in which every node comes after those that feed it."""
    operators: Counter[str]
    constants: dict[str, Constant]
    opset: int
    """Version of the standard operators, 0 when the model does not import them."""
    symbols: Mapping[str, int]
    """Symbolic axes that were given a length."""
    inputs: dict[str, TensorType] = field(default_factory=dict)
    outputs: dict[str, TensorType] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    """Small tensors whose content is known without running the model."""
    origins: dict[str, Origin] = field(default_factory=dict)
    conflict: str | None = None
    """What shape inference objected to."""
    consumers: dict[str, list[tuple[Node, int]]] = field(default_factory=dict)
    """{tensor: [(node, input number)]}."""

    def type_of(self, tensor: str) -> TensorType:
        """Type of *tensor*, unknown if it is."""
        return self.types.get(tensor, UNKNOWN)

    def origin_of(self, tensor: str) -> Origin:
        """Origin of *tensor*; what nobody makes is data."""
        return self.origins.get(tensor, Origin.DATA)


UNKNOWN = TensorType(None, None)


def element_name(element: int) -> str:
    """Name of an element type as in ONNX: float, float16, int64."""
    try:
        return str(TensorProto.DataType.Name(element)).lower()
    except ValueError:
        return f"type {element}"
