"""Places in Markdown files that programs write into: <!-- NAME --> ... <!-- /NAME -->."""

from __future__ import annotations

from ppexport.errors import InputError


def markers(name: str) -> tuple[str, str]:
    """The comments around the place called *name*."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def insert(text: str, name: str, content: str, where: str) -> str:
    """*text* with *content* in the place called *name*. Raises InputError unless the place is there once."""
    begin, end = markers(name)
    first, last = text.find(begin), text.find(end)
    if text.count(begin) != 1 or text.count(end) != 1 or last < first:
        raise InputError(f"{where} has no place for the table: it needs one {begin} and after it one {end}")
    return f"{text[: first + len(begin)]}\n\n{content}\n\n{text[last:]}"
