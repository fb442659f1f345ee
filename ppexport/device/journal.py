"""The journal: what was measured, line by line, so that whatever ends a run loses nothing.

Every line is a JSON array. The first element says what it is:

    ["header", {...}]     first line: format, version, subjects, plan, machine, images, what lies inside the clock
    ["begin", {...}]      a process starts measuring (again): {"t", "now", "wall", "boot", "memory"}
    ["load", s, ns]       loading subject s took ns
    ["first", s, ns]      its first query
    ["warm", s, n, done]  its warm-up took n queries; done is false where the plan's limit ended it
    ["q", s, image, t, ns, cpu, host, capacity, impure]
                          a timed query: started at t, took ns, cpu of it in the process's threads (of all cores), host
                          of it on checks, mask and the choice of the capacity
    ["c", t, {...}]       readings of the sensors and of the clocks
    ["end", {...}]        the run is complete: {"t", "memory"}

t counts nanoseconds from the first "begin" and continues over interruptions, which it leaves out. A line is written
with one call, so that a killed process leaves whole lines, and at most the last one torn after a power cut.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from ppexport.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "ppexport-latency-journal"
VERSION = 1
MAX_LINE = 1 << 20
"""Bytes; the header is the longest line, with some kilobytes."""
KINDS: dict[str, tuple[type, ...]] = {
    "header": (dict,),
    "begin": (dict,),
    "load": (int, int),
    "first": (int, int),
    "warm": (int, int, bool),
    "q": (int,) * 8,
    "c": (int, dict),
    "end": (dict,),
}
"""The types of what follows the first element of a record."""


class JournalError(InputError):
    """A journal that cannot be read."""


def lines_of(stream: BinaryIO, name: str) -> Iterator[list[Any]]:
    """The records of a journal, one at a time. A torn last line is left out.

    Raises JournalError, which names the line, for anything else that is not a record.
    """
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
        where = f"{name}: line {number}"
        if line.endswith(b"\n"):
            yield _record(line, where)
        elif len(line) > MAX_LINE:
            raise JournalError(f"{where} is longer than {MAX_LINE} bytes")


def _record(line: bytes, where: str) -> list[Any]:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise JournalError(f"{where} is not JSON") from None
    kinds = KINDS.get(record[0]) if isinstance(record, list) and record and isinstance(record[0], str) else None
    if kinds is None:
        raise JournalError(f"{where} is not a record of a journal")
    # A query's count of impure tokens is -1 where the runtime does not report it.
    least = -1 if record[0] == "q" else 0
    numbers = [value for value in record[1:] if type(value) is int]
    if tuple(map(type, record[1:])) != kinds or any(not least <= n < 1 << 62 for n in numbers):
        raise JournalError(f"{where} is not a valid record of the kind {record[0]!r}")
    return list(record)


def _refuse(constant: str) -> float:
    raise ValueError(constant)


class Past:
    """What a journal already holds, in numbers that do not grow with it."""

    def __init__(self, subjects: int) -> None:
        self.queries = [0] * subjects
        self.ns = [0] * subjects
        self.loaded = [False] * subjects
        self.end = 0
        """Where t continues."""
        self.complete = False

    def add(self, record: list[Any], name: str) -> None:
        """Count one *record* of the journal *name*. Raises JournalError for one of a subject that there is not."""
        kind = record[0]
        if kind in ("q", "load") and not 0 <= record[1] < len(self.queries):
            raise JournalError(f"{name}: a record of subject {record[1]}")
        if kind == "q":
            self.queries[record[1]] += 1
            self.ns[record[1]] += record[4]
            self.end = max(self.end, record[3] + record[4])
        elif kind == "c":
            self.end = max(self.end, record[1])
        elif kind == "load":
            self.loaded[record[1]] = True
        elif kind == "end":
            self.complete = True


def read_past(path: str, subjects: int) -> Past:
    """What the journal *path* of a number of *subjects* holds so far. Raises JournalError for a damaged one."""
    past = Past(subjects)
    with open(path, "rb") as stream:
        for record in lines_of(stream, path):
            past.add(record, path)
    return past


def read_header(path: str) -> dict[str, Any] | None:
    """The header of the journal *path*, None where there is no whole first line yet. Raises JournalError."""
    with open(path, "rb") as stream:
        record = next(lines_of(stream, path), None)
    if record is None:
        return None
    if record[0] != "header" or record[1].get("format") != FORMAT:
        raise JournalError(f"{path} is not a journal of latencies")
    header: dict[str, Any] = record[1]
    if header.get("version") != VERSION:
        raise JournalError(f"{path} has version {header.get('version')!r}, this ppexport reads {VERSION}")
    return header


class Journal:
    """A journal that is being written."""

    def __init__(self, path: str) -> None:
        """Open *path* for appending, after a torn last line was cut off.

        Raises JournalError where another process has it open.
        """
        self.path = path
        # Unbuffered and appending: a record is with the system when `write` returns.
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115
        if fcntl is not None:
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._stream.close()
                raise JournalError(f"{path}: another process measures into it") from None
            if not _same_file(self._stream.fileno(), path):
                self._stream.close()
                raise JournalError(f"{path}: another process removed it just now")
        cut_torn_line(path)

    def write(self, *record: Any) -> None:
        """Append one record. Raises OSError, for example on a full disk; the journal is then whole up to here."""
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode("utf-8") + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"a record of {len(line)} bytes")
        if self._stream.write(line) != len(line):
            # A full disk took a part: a later record must not be glued to it.
            cut_torn_line(self.path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def sync(self) -> None:
        """Put everything on the disk, for boards that lose their power."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _same_file(handle: int, path: str) -> bool:
    """Whether *path* still names the open file *handle*."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def cut_torn_line(path: str) -> None:
    """Remove what follows the last newline of the file *path*."""
    whole = size = 0
    with open(path, "r+b") as stream:
        for block in iter(lambda: stream.read(1 << 16), b""):
            newline = block.rfind(b"\n")
            if newline >= 0:
                whole = size + newline + 1
            size += len(block)
        if whole < size:
            stream.truncate(whole)
