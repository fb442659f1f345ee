"""What a device sends is not trusted: text is cleaned before it is printed, JSON is read up to a limit."""

from __future__ import annotations

import json
import re
from typing import Any

ESCAPES = re.compile(
    # Control sequences and strings of terminals, 7-bit and 8-bit, also those that never end; then any other escape.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls but tab and newline, and the marks that turn the direction of text.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def printable(data: bytes | str) -> str:
    """*data* without anything that a terminal would obey."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    text = ESCAPES.sub("", text.replace("\r\n", "\n"))
    return CONTROLS.sub("", text)


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
