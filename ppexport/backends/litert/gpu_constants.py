"""Constants as LiteRT's GPU accelerator computes them right: a change to a converted file, which computes the same.

In arithmetic and comparisons the accelerator (LiteRT 2.3) takes some constants for others, without a word. Of a fp32
constant it reads the first slice of the first axis only, unless the other operand has more axes. One of whole numbers
it takes as the right operand, on whichever side it stands, and misplaces one of fewer axes than the other operand.

    before                                      after
    x (32,) + c (32,)                           reshape(reshape(x, (1, 32)) + c (1, 32), (32,))
    x (1, 64, 1) * c (64, 64, 1)                reshape(reshape(x, (1, 1, 64, 1)) * c (1, 64, 64, 1), (64, 64, 1))
    x (8, 32) + c (32,), whole numbers          x + c (1, 32)
    c - x, whole numbers                        x * -1 + c
    c > x, whole numbers                        x < c

Where nothing helps, the operator is left as it is, and `ppexport lint` finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.litert.tflite import kind_of, text

MIRRORED = {"GREATER": "LESS", "GREATER_EQUAL": "LESS_EQUAL", "LESS": "GREATER", "LESS_EQUAL": "GREATER_EQUAL"}
"""{comparison: the one of its operands in the other order}."""
ORDERED = ("SUB", "DIV", "FLOOR_DIV", "FLOOR_MOD", "POW", *MIRRORED)
"""Operators that give something else when their operands change places."""
BINARY = ("ADD", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "EQUAL", "NOT_EQUAL", "LOGICAL_AND", "LOGICAL_OR")
ELEMENTWISE = frozenset((*BINARY, *ORDERED))
"""Operators of two operands that broadcast."""
MAX_RANK = 4
"""Of a tensor on the GPU."""


def is_misread(constant: Sequence[int], other: Sequence[int], floating: bool) -> bool:
    """Whether the accelerator takes a constant of that shape for another one, beside an operand of shape *other*."""
    if math.prod(constant) <= 1:
        return False
    if not floating:
        return len(constant) < len(other)
    whole = len(constant) == MAX_RANK and list(constant) == list(other)
    return len(constant) >= len(other) and constant[0] > 1 and not whole


def is_swapped(kind: str, constant: Sequence[int], other: Sequence[int], out: Sequence[int], floating: bool) -> bool:
    """Whether the accelerator takes *constant*, the left operand of a *kind*, for the right one."""
    return not floating and kind in ORDERED and math.prod(constant) > 1 and list(other) == list(out)


def is_misranked(small: bool, rows: Sequence[int], out: Sequence[int]) -> bool:
    """Whether the accelerator computes a linear layer wrong: its weights are *small*, of 8 bits, and shapes differ."""
    return small and len(rows) != len(out)


def shape_of(tensor: Any) -> list[int]:
    """The shape of a `TensorT`."""
    return [] if tensor.shape is None else [int(side) for side in tensor.shape]


class _Graph:
    """A `SubGraphT`, with what a change needs to add to it."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.model, self.graph = model, graph
        self.schema: Any = import_module("ai_edge_litert.schema_py_generated")

    def is_constant(self, place: int) -> bool:
        data = self.model.buffers[self.graph.tensors[place].buffer].data
        return data is not None and len(data) > 0

    def tensor(self, like: int, shape: Sequence[int], *, constant: bool = False) -> int:
        """The place of a new tensor of the type of that at *like*, and with the same numbers if it is a *constant*."""
        source, made = self.graph.tensors[like], self.schema.TensorT()
        # Called by the module that it comes from, as everything is.
        module = text(source.name).partition(":")[0]
        made.name, made.type = f"{module}:aligned.{len(self.graph.tensors)}", source.type
        made.shape = np.array(shape, np.int32)
        made.buffer = source.buffer if constant else 0
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def numbers(self, values: NDArray[np.int32]) -> int:
        """The place of a new constant."""
        buffer, made = self.schema.BufferT(), self.schema.TensorT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        made.name, made.type = f"aligned.{len(self.graph.tensors)}", self.schema.TensorType.INT32
        made.shape, made.buffer = np.array(values.shape, np.int32), len(self.model.buffers) - 1
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def make(self, operator: Any, kind: str, inputs: Sequence[int], out: int) -> Any:
        """*operator* (`OperatorT`) as a *kind* of *inputs* that gives *out*."""
        code = getattr(self.schema.BuiltinOperator, kind)
        known = [max(entry.builtinCode, entry.deprecatedBuiltinCode) for entry in self.model.operatorCodes]
        if code not in known:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, code, 1
            self.model.operatorCodes.append(entry)
            known.append(code)
        name = "".join(part.title() for part in kind.split("_"))
        operator.opcodeIndex, operator.inputs = known.index(code), np.array(inputs, np.int32)
        operator.outputs = np.array([out], np.int32)
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, f"{name}Options")
        operator.builtinOptions = getattr(self.schema, f"{name}OptionsT")()
        return operator

    def reshape(self, place: int, shape: Sequence[int], out: int) -> Any:
        """An operator that writes the tensor at *place* into *out*, which has *shape*."""
        wanted = np.array(shape, np.int32)
        made = self.make(self.schema.OperatorT(), "RESHAPE", [place, self.numbers(wanted)], out)
        made.builtinOptions.newShape = wanted
        return made

    def aligned(self, operator: Any) -> list[Any]:
        """The operators that compute what *operator* does, as the accelerator computes them right."""
        kind, places = kind_of(self.model, operator), [int(place) for place in operator.inputs]
        constant = [self.is_constant(place) for place in places]
        if kind not in ELEMENTWISE or len(places) != 2 or constant[0] == constant[1]:
            return [operator]
        (c, x), out = (places if constant[0] else places[::-1]), int(operator.outputs[0])
        types = self.schema.TensorType
        if self.graph.tensors[c].type not in (types.FLOAT32, types.INT32, types.BOOL):
            return [operator]
        floating = self.graph.tensors[c].type == types.FLOAT32
        shape, other, result = (shape_of(self.graph.tensors[place]) for place in (c, x, out))
        made: list[Any] = []
        if constant[0] and is_swapped(kind, shape, other, result, floating):
            if kind == "SUB":
                negative = self.tensor(x, other)
                minus = self.numbers(np.array(-1, np.int32))
                made.append(self.make(self.schema.OperatorT(), "MUL", [x, minus], negative))
                x, kind = negative, "ADD"
            elif kind in MIRRORED:
                kind = MIRRORED[kind]
            else:
                return [operator]
            activation = getattr(operator.builtinOptions, "fusedActivationFunction", None)
            self.make(operator, kind, [x, c], out)
            if activation is not None:
                operator.builtinOptions.fusedActivationFunction = activation
            constant = [False, True]
        rank = max(len(shape), len(other)) + floating
        if not is_misread(shape, other, floating) or rank > MAX_RANK:
            return [*made, operator]

        def wide(sides: list[int]) -> list[int]:
            return [1] * (rank - len(sides)) + sides

        c = self.tensor(c, wide(shape), constant=True)
        if wide(other) != other:
            narrow, x = x, self.tensor(x, wide(other))
            made.append(self.reshape(narrow, wide(other), x))
        operator.inputs = np.array([c, x] if constant[0] else [x, c], np.int32)
        made.append(operator)
        if wide(result) != result:
            operator.outputs = np.array([self.tensor(out, wide(result))], np.int32)
            made.append(self.reshape(int(operator.outputs[0]), result, out))
        return made


def align_constants(model: Any) -> None:
    """Change *model* (`ModelT`) so that the accelerator computes with its constants; every result stays the same."""
    for subgraph in model.subgraphs:
        graph = _Graph(model, subgraph)
        subgraph.operators = [made for operator in subgraph.operators for made in graph.aligned(operator)]


def match_ranks(model: Any) -> None:
    """Give linear layers of *model* (`ModelT`) with weights of 8 bits inputs of the rank of what they compute.

    Before:  FULLY_CONNECTED of x (1, n, c), weights (o, c) of 8 bits -> (n, o)      silently wrong on the GPU
    After:   FULLY_CONNECTED of reshape(x, (n, c)) -> (n, o)
    """
    for subgraph in model.subgraphs:
        graph, made = _Graph(model, subgraph), []
        for operator in subgraph.operators:
            if kind_of(model, operator) == "FULLY_CONNECTED":
                x, weight = (int(place) for place in operator.inputs[:2])
                rows, out = shape_of(subgraph.tensors[x]), shape_of(subgraph.tensors[int(operator.outputs[0])])
                if is_misranked(subgraph.tensors[weight].type == graph.schema.TensorType.INT8, rows, out):
                    wanted = [*out[:-1], rows[-1]]
                    flat = graph.tensor(x, wanted)
                    made.append(graph.reshape(x, wanted, flat))
                    operator.inputs = np.array([flat, *operator.inputs[1:]], np.int32)
            made.append(operator)
        subgraph.operators = made
