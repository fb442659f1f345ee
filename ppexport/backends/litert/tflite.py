"""Reads and edits LiteRT files, which are flatbuffers, by the schema that the runtime's own package holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ppexport.backends.litert.run_litert import FACTS, IDENTIFIER


def edit(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The LiteRT file *content* after *change*, which receives its model (`schema_py_generated.ModelT`)."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def add_facts(facts: Mapping[str, str]) -> Callable[[Any], None]:
    """A change that stores *facts* in a file's metadata, in place of older ones."""
    from ai_edge_litert import schema_py_generated as schema

    def change(model: Any) -> None:
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(json.dumps(dict(facts), sort_keys=True).encode(), np.uint8)
        model.buffers.append(buffer)
        entry.name, entry.buffer = FACTS, len(model.buffers) - 1
        model.metadata = [*(old for old in model.metadata or () if old.name != FACTS.encode()), entry]

    return change
