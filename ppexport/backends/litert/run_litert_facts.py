"""What a LiteRT file says of itself."""

from __future__ import annotations

import json
import struct

from ppexport.errors import ArtifactError, first_line, imported

IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of a LiteRT file."""
FACTS = "ppexport"
"""The entry of a file's metadata that holds ours, as JSON."""
EXTRA = "litert-run"


def facts_of(content: bytes, where: str) -> dict[str, str]:
    """What the LiteRT file *content* says of itself, {} of a file that another tool made. Raises ArtifactError."""
    if content[4:8] != IDENTIFIER:
        raise ArtifactError(f"{where} is not a LiteRT file")
    try:
        model = imported("ai_edge_litert.schema_py_generated", EXTRA).Model.GetRootAs(content)
        for i in range(model.MetadataLength()):
            entry = model.Metadata(i)
            if entry.Name() == FACTS.encode():
                stored = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
                return {str(key): str(value) for key, value in stored.items()}
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError, struct.error) as error:
        raise ArtifactError(f"{where} is a damaged LiteRT file: {first_line(error)}") from None
    return {}
