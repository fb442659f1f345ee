"""Reads and edits LiteRT files, which are flatbuffers, by the schema that the runtime's own package holds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from ppexport.backends.litert.rewrite.rewritten import MARK
from ppexport.backends.litert.run_litert_facts import FACTS, IDENTIFIER, stored

ORIGIN = re.compile(MARK + r"([\w-]+)_\1(?=;|$)")
"""The path of a module, with dashes for dots, in the name that the converter gives a tensor."""


def read_model(content: bytes, where: str = "the file") -> Any:
    """The LiteRT file *content* as `schema_py_generated.ModelT`.

    What a buffer has behind the flatbuffer is its `data`, too. Raises ArtifactError, which calls the file *where*, if
    it ends before.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers or ():
        if buffer.offset > 1:
            buffer.data = np.asarray(stored(content, buffer.offset, buffer.size, buffer.data, where))
            buffer.offset = buffer.size = 0
    return model


def edit(content: bytes, *changes: Callable[[Any], None]) -> bytes:
    """The LiteRT file *content* after *changes*, which receive its model (`schema_py_generated.ModelT`)."""
    import flatbuffers

    model = read_model(content)
    for change in changes:
        change(model)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def text(name: bytes | str | None) -> str:
    """A *name* in a model, which is bytes where it was read from a file, "" where there is none."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


@cache
def operator_names() -> dict[int, str]:
    """{number of a built-in operator: its name}."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def kind_of(model: Any, operator: Any) -> str:
    """What *operator* of *model* is called, such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex]
    # The older field has a byte.
    return operator_names().get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")


def name_by_module(model: Any) -> None:
    """Call every tensor of *model* by the module of the twin that it comes from, and a number:

        layers.0.residual_group.layers.3.convffn.fc1:2

    in place of what the converter makes of `rewrite.rewritten.Origin`, which would be a tenth of the file. What was
    fused from several modules is called by the last.
    """
    for graph in model.subgraphs:
        used: Counter[str] = Counter()
        for tensor in graph.tensors:
            if found := ORIGIN.findall(text(tensor.name)):
                module = found[-1].replace("-", ".").partition("twin.")[2] or "twin"
                tensor.name = f"{module}:{used[module]}"
                used[module] += 1


def drop_unread(graph: Any) -> None:
    """Remove the operators of *graph* (`SubGraphT`) that no output depends on."""
    read, kept = set(map(int, graph.outputs)), []
    for operator in reversed(graph.operators):
        if read.intersection(map(int, operator.outputs)):
            read.update(int(tensor) for tensor in operator.inputs)
            kept.append(operator)
    graph.operators = kept[::-1]


def add_facts(facts: Mapping[str, str]) -> Callable[[Any], None]:
    """A change that stores *facts* in a file's metadata, in place of older ones."""
    from ai_edge_litert import schema_py_generated as schema

    def change(model: Any) -> None:
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(json.dumps(dict(facts), sort_keys=True).encode(), np.uint8)
        model.buffers.append(buffer)
        entry.name, entry.buffer = FACTS, len(model.buffers) - 1
        model.metadata = [*(old for old in model.metadata or () if text(old.name) != FACTS), entry]

    return change
