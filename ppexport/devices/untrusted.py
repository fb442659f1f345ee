"""What a device sends is not trusted: text is cleaned before it is printed, JSON is read up to a limit."""

from __future__ import annotations

import json
from typing import Any

from ppexport.errors import printable as printable


def parse_object(data: bytes | str) -> dict[str, Any] | None:
    """The JSON object in *data*, its texts printable, or None where it holds anything else."""
    try:
        value = cleaned(json.loads(data))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def cleaned(value: Any) -> Any:
    """A JSON *value* with every text in it printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): cleaned(item) for key, item in value.items()}
    return value
