"""What a device sends is not trusted: text is cleaned before it is printed, JSON is read up to a limit."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any

from ppexport.errors import printable


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


# What a job prints while it runs: events, one JSON object a line, among the plain lines of other programs.


MAX_LINE = 1 << 16
"""Bytes of a line; what is longer is cut."""
TAIL = 40
"""Lines that are shown when a job fails."""
STAMP = re.compile(r"^\[[0-9/:-]+\] ")


class JobOutput:
    """Reads the output in pieces."""

    def __init__(self) -> None:
        self.doing = ""
        """What the job is doing, for people."""
        self.failure: dict[str, Any] | None = None
        """The event `failed`, if there was one."""
        self.notices: list[str] = []
        """What people should know, in sentences."""
        self.tail: deque[str] = deque(maxlen=TAIL)
        """The last lines that are no events."""
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Read the next piece of output."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE]
        for line in lines:
            self._line(line[:MAX_LINE])

    def finish(self) -> None:
        """The output has ended."""
        self.feed(b"\n")

    def _line(self, line: bytes) -> None:
        event = parse_object(line) if line.startswith(b"{") else None
        match event:
            case None:
                text = printable(line).strip()
                if text:
                    self.tail.append(text)
                    self.doing = STAMP.sub("", text)[:100]
            case {"event": "progress", "phase": str(phase), "step": int(step), "steps": int(steps)}:
                self.doing = f"{phase[:80]} {step}/{steps}"
            case {"event": "log", "severity": str(severity), "text": str(text)}:
                self.tail.append(f"{severity[:20]}: {text[:2000]}")
            case {"event": "notice", "text": str(text)} if len(self.notices) < TAIL:
                self.notices.append(text[:1000])
            case {"event": "failed", "kind": str(), "message": str()}:
                self.failure = event
