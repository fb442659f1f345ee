"""A LiteRT file as the lint rules see it, read by the generated parser of the runtime's package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.litert.run_litert_facts import IDENTIFIER
from ppexport.backends.litert.tflite import read_model, text
from ppexport.errors import InputError

TYPES: dict[str, type[np.generic]] = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8, "UINT8": np.uint8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip
"""Types whose constants are read."""


@dataclass(frozen=True)
class Scales:
    """What the whole numbers of a quantised tensor stand for: scale times (number - zero), for each slice of an axis
    or, where there is one scale, for all."""

    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    axis: int

    def real(self, numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """What *numbers* stand for, None where there are too many or too few scales."""
        shape = [1] * numbers.ndim
        if self.scale.size > 1:
            if not 0 <= self.axis < numbers.ndim or numbers.shape[self.axis] != self.scale.size:
                return None
            shape[self.axis] = self.scale.size
        return self.scale.reshape(shape) * (numbers - self.zero.reshape(shape))


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a graph."""

    name: str
    kind: str
    """Its type, such as "FLOAT32"."""
    shape: tuple[int, ...]
    data: NDArray[np.uint8] | None
    """The bytes of a constant, None for what is computed or given."""
    scales: Scales | None = None
    """Of a quantised one."""

    @property
    def constant(self) -> bool:
        """Whether the file holds its numbers."""
        return self.data is not None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers."""
        return self.kind.startswith(("INT", "UINT"))

    @property
    def module(self) -> str | None:
        """The dotted path of the module that it comes from, None where its name does not tell; "" is the network."""
        path, colon, _ = self.name.partition(":")
        known = colon and all(part.isidentifier() or part.isdigit() for part in path.split("."))
        return ("" if path == "twin" else path) if known else None

    @cached_property
    def values(self) -> NDArray[Any] | None:
        """The numbers of a constant of a known type, None of anything else."""
        kind = TYPES.get(self.kind)
        if self.data is None or kind is None or len(self.data) != self.size * np.dtype(kind).itemsize:
            return None
        return self.data.view(kind).reshape(self.shape)

    @property
    def numbers(self) -> NDArray[np.float64] | None:
        """What `values` stand for."""
        numbers = None if self.values is None else self.values.astype(np.float64)
        return numbers if numbers is None or self.scales is None else self.scales.real(numbers)


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of a graph."""

    kind: str
    """Such as "CONV_2D"."""
    label: str
    """What errors call it: its kind, and its place in the graph."""
    inputs: tuple[Tensor, ...]
    """Without optional ones that are left out."""
    outputs: tuple[Tensor, ...]
    options: Any
    """The generated object of its options, or None."""

    @property
    def module(self) -> str | None:
        """The module that it comes from."""
        return self.outputs[0].module if self.outputs else None

    @property
    def computed(self) -> tuple[Tensor, ...]:
        """Its inputs that are no constants."""
        return tuple(tensor for tensor in self.inputs if not tensor.constant)


@dataclass(frozen=True)
class Graph:
    """One subgraph."""

    name: str
    """Of the signature that it computes; its own where it computes none."""
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    operators: tuple[Operator, ...] = field(repr=False)


def read_graphs(content: bytes, where: str) -> tuple[list[Graph], Any]:
    """The graphs of the LiteRT file *content*, and the generated object of its model.

    Raises:
        InputError: it is none, or has no graph.
        ArtifactError: it ends before its constants do.
    """
    if content[4:8] != IDENTIFIER:
        raise InputError(f"{where} is not a LiteRT file (.tflite): its identifier is missing")
    schema = import_module("ai_edge_litert.schema_py_generated")
    model = read_model(content, where)
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    codes = [
        kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "unknown") for code in model.operatorCodes or ()
    ]
    signatures = {entry.subgraphIndex: entry for entry in model.signatureDefs or ()}
    graphs = []
    for number, graph in enumerate(model.subgraphs or ()):
        tensors = [_tensor(entry, model.buffers, types) for entry in graph.tensors or ()]
        operators = tuple(
            Operator(
                codes[_checked(entry.opcodeIndex, codes)],
                f"{codes[entry.opcodeIndex]}#{place}",
                tuple(_named(entry.inputs, tensors)),
                tuple(_named(entry.outputs, tensors)),
                entry.builtinOptions,
            )
            for place, entry in enumerate(graph.operators or ())
        )
        signature = signatures.get(number)
        if signature is None:
            name, given, made = text(graph.name) or f"graph {number}", graph.inputs, graph.outputs
            ports = [{tensor.name: tensor for tensor in _named(places, tensors)} for places in (given, made)]
        else:
            name = text(signature.signatureKey)
            ports = [
                {text(entry.name): tensors[_checked(entry.tensorIndex, tensors)] for entry in entries or ()}
                for entries in (signature.inputs, signature.outputs)
            ]
        graphs.append(Graph(name, ports[0], ports[1], operators))
    if not graphs:
        raise InputError(f"{where} is a LiteRT file without a graph")
    return graphs, model


def _tensor(entry: Any, buffers: Any, types: dict[int, str]) -> Tensor:
    data = buffers[_checked(entry.buffer, buffers)].data
    data = None if data is None or not len(data) else np.asarray(data, np.uint8)
    shape = () if entry.shape is None else tuple(int(side) for side in entry.shape)
    if any(side < 0 for side in shape):
        raise ValueError(f"{text(entry.name)} has the shape {shape}")
    kind = types.get(entry.type, "unknown")
    scales = None if kind.startswith("FLOAT") else _scales(entry.quantization)
    return Tensor(text(entry.name), kind, shape, data, scales)


def _scales(entry: Any) -> Scales | None:
    """Of `QuantizationParametersT`, which is None or empty for what is not quantised."""
    if entry is None or entry.scale is None or not len(entry.scale):
        return None
    scale = np.array(entry.scale, np.float64)
    zero = np.array([0] if entry.zeroPoint is None or not len(entry.zeroPoint) else entry.zeroPoint, np.float64)
    return Scales(scale, np.broadcast_to(zero, scale.shape), entry.quantizedDimension)


def _named(places: Any, tensors: list[Tensor]) -> Iterator[Tensor]:
    """The *tensors* at *places*; -1 is an optional one that is left out."""
    for place in () if places is None else places:
        if place != -1:
            yield tensors[_checked(int(place), tensors)]


def _checked(place: int, entries: Any) -> int:
    if not 0 <= place < len(entries or ()):
        raise IndexError(f"it names entry {place} of {len(entries or ())}")
    return place
