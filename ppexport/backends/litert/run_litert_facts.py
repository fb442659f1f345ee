"""What a LiteRT file says of itself."""

from __future__ import annotations

import json
import struct
from typing import Any

from ppexport.errors import ArtifactError, first_line, imported

IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of a LiteRT file."""
FACTS = "ppexport"
"""The entry of a file's metadata that holds ours, as JSON."""
EXTRA = "litert-run"


def stored(content: bytes, offset: int, size: int, data: Any, where: str = "the file") -> memoryview:
    """The bytes of a buffer of the LiteRT file *content*, empty for what is computed.

    Some tools store them behind the flatbuffer: where *data*, what the buffer itself holds, is empty, *offset* (bytes
    from the start of the file, else 0 or 1) and *size* (bytes) say where they are. The runtime reads them alike.

    Raises:
        ArtifactError: the file, which is called *where*, ends before they do.
    """
    # The generated parser gives 0 or None where there is nothing.
    held = memoryview(b"" if data is None or isinstance(data, int) else data)
    if len(held) or offset <= 1:
        return held
    if offset + size > len(content):
        raise ArtifactError(
            f"{where} is a damaged LiteRT file: bytes {offset} to {offset + size} are numbers, but it ends at "
            f"{len(content)}"
        )
    return memoryview(content)[offset : offset + size]


def facts_of(content: bytes, where: str) -> dict[str, str]:
    """What the LiteRT file *content* says of itself, {} of a file that another tool made. Raises ArtifactError."""
    if content[4:8] != IDENTIFIER:
        raise ArtifactError(f"{where} is not a LiteRT file")
    try:
        model = imported("ai_edge_litert.schema_py_generated", EXTRA).Model.GetRootAs(content)
        for i in range(model.MetadataLength()):
            entry = model.Metadata(i)
            if entry.Name() == FACTS.encode():
                held = model.Buffers(entry.Buffer())
                facts = json.loads(bytes(stored(content, held.Offset(), held.Size(), held.DataAsNumpy(), where)))
                return {str(key): str(value) for key, value in facts.items()}
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError, struct.error) as error:
        raise ArtifactError(f"{where} is a damaged LiteRT file: {first_line(error)}") from None
    return {}
