"""What a LiteRT file shows of its inside, so that parity can look into the file that ships.

A file gives its outputs only. So the twin is converted with more of them: what every layer chose, what from, and what
it computed. Afterwards they are no outputs any more, but their tensors keep their names:

    inside.categories.3    what the fourth layer chose
    inside.layers.3        what it computed
    inside.tokens.3, inside.dictionaries.3    what it chose from

A probe makes them outputs again, in a copy, and so reads the very numbers that the file computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppexport.backends.litert.tflite import drop_unread, kind_of, text
from ppexport.backends.open_front import Front, OpenFront
from ppexport.twin.twin import StaticTwin

PREFIX = "inside."
"""Of the tensors that are shown."""
INSIDE = "ppexport.inside"
"""The entry of a file's facts that holds {what is shown: its `Shown`} as JSON; some tensors are two things."""


GIVEN = "given."
RESHAPES = ("RESHAPE", "CAST", "SQUEEZE", "EXPAND_DIMS")
"""Operators behind which a tensor holds the same numbers in the same order."""


class Shown(NamedTuple):
    """Where something is that a file shows."""

    tensor: str
    """The tensor's name."""
    steps: Sequence[tuple[str, Sequence[int]]]
    """What makes it of the tensor: ("TRANSPOSE", order of the axes) or ("RESHAPE", shape), one after another."""

    def read(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """It, of the *arrays* by tensor."""
        found = arrays[self.tensor]
        for kind, numbers in self.steps:
            found = found.transpose(numbers) if kind == "TRANSPOSE" else found.reshape(numbers)
        return found


def read_shown(said: str) -> dict[str, Shown]:
    """{what is shown: its `Shown`} of the JSON *said*, which a file has as `INSIDE`. Raises ValueError."""
    try:
        found = json.loads(said)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return {name: Shown(*_checked(entry)) for name, entry in found.items()}


def _checked(entry: Any) -> tuple[str, list[tuple[str, list[int]]]]:
    """The fields of a `Shown` that are stored as *entry*."""
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list)):
        raise ValueError("an entry is no name with steps")
    for step in entry[1]:
        if not (isinstance(step, list) and len(step) == 2 and step[0] in ("TRANSPOSE", "RESHAPE")):
            raise ValueError("a step is neither TRANSPOSE nor RESHAPE")
        # Axes and sides are of 32 bits in the file.
        if not (isinstance(step[1], list) and all(type(side) is int and abs(side) < 1 << 31 for side in step[1])):
            raise ValueError(f"{step[0]} is without whole numbers")
    return entry[0], [(kind, numbers) for kind, numbers in entry[1]]


class ShownFront(OpenFront):
    """A twin that also gives everything of interest, layer by layer."""

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__(twin)
        layers = range(len(twin.routed_layers()))
        whole = ("pure", "labels")
        names = [[name] if name in whole else [f"{name}.{i}" for i in layers] for name in self.inside]
        self.outputs = (*Front.outputs, *(PREFIX + name for several in names for name in several))
        self.needed = {name: name in Front.outputs for name in self.outputs}

    def forward(self, lr: Tensor, mask: Tensor | None = None, slots: Tensor | None = None) -> tuple[Tensor, ...]:
        """`sr`, `impure_tokens`, and what `outputs` names."""
        sr, impure, found = self.look(lr, mask, slots)
        return sr, impure, *(value for several in found.values() for value in several)


def hide(model: Any) -> dict[str, Shown]:
    """Leave `sr` and `impure_tokens` as the only outputs of *model*, and name the tensors of the others.

    Returns {name of a former output: where it is}. Operators that only computed such an output are removed, so the
    last tensor before them that the picture needs stands for it; where there is none, it is left out.
    """
    shown: dict[str, Shown] = {}
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        former = {text(entry.name): int(entry.tensorIndex) for entry in signature.outputs}
        signature.outputs = [entry for entry in signature.outputs if text(entry.name) in Front.outputs]
        graph.outputs = [int(entry.tensorIndex) for entry in signature.outputs]
        made_by = {int(tensor): operator for operator in graph.operators for tensor in operator.outputs}
        drop_unread(graph)
        computed = {int(tensor) for operator in graph.operators for tensor in operator.outputs}
        shown = {}
        for name, place in former.items():
            steps: list[tuple[str, list[int]]] = []
            while place not in computed and place in made_by:
                kind, given = kind_of(model, made_by[place]), made_by[place].inputs
                if kind == "TRANSPOSE":
                    order = model.buffers[graph.tensors[int(given[1])].buffer].data
                    steps.insert(0, (kind, np.frombuffer(bytes(order), np.int32).tolist()))
                elif kind in RESHAPES:
                    # Of several reshapes the last one counts.
                    if not steps or steps[0][0] != "RESHAPE":
                        steps.insert(0, ("RESHAPE", list(map(int, graph.tensors[place].shape))))
                else:
                    break
                place = int(given[0])
            if name.startswith(PREFIX) and place in computed:
                tensor = graph.tensors[place]
                tensor.name = tensor.name if text(tensor.name).startswith(PREFIX) else name
                shown[name] = Shown(text(tensor.name), steps)
    return shown


def reveal(names: Iterable[str], inject: Sequence[str] = ()) -> Callable[[Any], None]:
    """A change that makes the tensors called *names* outputs of their own names.

    Those of *inject* are no longer computed but inputs, called `given.` and the name; what they would have been is
    still an output. Raises ValueError where a tensor is missing, or nothing reads one that is to be injected.
    """
    from ai_edge_litert import schema_py_generated as schema

    def change(model: Any) -> None:
        for signature in model.signatureDefs:
            graph = model.subgraphs[signature.subgraphIndex]
            places = {text(tensor.name): place for place, tensor in enumerate(graph.tensors)}
            if missing := {*names, *inject} - set(places):
                raise ValueError(f"no tensor is called {min(missing)}")
            graph.outputs = [*map(int, graph.outputs), *(places[name] for name in names)]
            signature.outputs.extend(mapped(name, places[name]) for name in names)
            for name in inject:
                own, given = places[name], len(graph.tensors)
                copied = schema.TensorT()
                copied.__dict__.update(vars(graph.tensors[own]), name=GIVEN + name)
                graph.tensors.append(copied)
                readers = [operator for operator in graph.operators if own in operator.inputs]
                if not readers:
                    raise ValueError(f"nothing reads {name}")
                for operator in readers:
                    operator.inputs = [given if tensor == own else int(tensor) for tensor in operator.inputs]
                graph.inputs = [*map(int, graph.inputs), given]
                signature.inputs.append(mapped(GIVEN + name, given))

    def mapped(name: str, place: int) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, place
        return entry

    return change
