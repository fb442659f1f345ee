"""The journal: what was measured, line by line, so that whatever ends a run loses nothing.

Every line is a JSON array. The first element says what it is:

    ["header", {...}]     first line: format, version, subjects, plan, machine, images, what lies inside the clock
    ["begin", {...}]      a process starts measuring (again): {"t", "now", "wall", "boot", "memory"}
    ["load", s, ns]       loading subject s took ns
    ["first", s, ns]      its first query
    ["warm", s, n, done]  its warm-up took n queries; done is false where the limit ended it
    ["q", s, image, t, ns, cpu, host, capacity, impure]
                          a timed query: started at t, took ns, cpu of it in the process's threads (of all cores), host
                          of it on checks, mask and the choice of the capacity
    ["c", t, {...}]       readings of the sensors and of the clocks
    ["end", {...}]        the run is complete: {"t", "memory"}

t counts nanoseconds from the first "begin" and continues over interruptions, which it leaves out. A line is written
with one call, so that a killed process leaves whole lines, and at most the last one torn after a power cut.
"""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, Dict, Iterator, List, Optional

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "ppexport-latency-journal"
VERSION = 1
MAX_LINE = 1 << 20
"""Bytes; the header is the longest line, with some kilobytes."""
KINDS = frozenset({"header", "begin", "load", "first", "warm", "q", "c", "end"})
QUERY = 9
"""Elements of a "q" line."""


class JournalError(Exception):
    """A journal that cannot be read; the text is one sentence."""


def lines_of(stream: BinaryIO, name: str) -> Iterator[List[Any]]:
    """The records of a journal, one at a time. A torn last line is left out.

    Raises JournalError, naming the line, for anything else that is no record.
    """
    number = 0
    while True:
        line = stream.readline(MAX_LINE + 1)
        if not line:
            return
        number += 1
        if not line.endswith(b"\n"):
            if len(line) > MAX_LINE:
                raise JournalError("%s: line %d is longer than %d bytes" % (name, number, MAX_LINE))
            return
        yield _record(line, "%s: line %d" % (name, number))


def _record(line: bytes, where: str) -> List[Any]:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise JournalError("%s is not JSON" % where) from None
    if not isinstance(record, list) or not record or record[0] not in KINDS:
        raise JournalError("%s is no record of a journal" % where)
    if record[0] == "q":
        numbers = record[1:]
        if len(record) != QUERY or any(type(n) is not int or not -1 <= n < 1 << 62 for n in numbers):
            raise JournalError("%s is no query" % where)
    elif record[0] in ("header", "begin", "end") and (len(record) != 2 or not isinstance(record[1], dict)):
        raise JournalError("%s is no %s" % (where, record[0]))
    elif record[0] == "c" and (len(record) != 3 or type(record[1]) is not int or not isinstance(record[2], dict)):
        raise JournalError("%s is no reading" % where)
    elif record[0] in ("load", "first") and (len(record) != 3 or not _counts(record[1:])):
        raise JournalError("%s is no duration" % where)
    elif record[0] == "warm" and (len(record) != 4 or not _counts(record[1:3]) or type(record[3]) is not bool):
        raise JournalError("%s is no warm-up" % where)
    return record


def _counts(values: List[Any]) -> bool:
    """Whether all *values* are numbers of things or of nanoseconds."""
    return all(type(n) is int and 0 <= n < 1 << 62 for n in values)


def _no_constant(text: str) -> float:
    raise ValueError(text)


class Past:
    """What a journal already holds, in numbers that do not grow with it."""

    def __init__(self, subjects: int) -> None:
        self.queries = [0] * subjects
        self.ns = [0] * subjects
        self.end = 0
        """Where t continues."""
        self.complete = False
        self.loaded = [False] * subjects


def read_past(path: str, subjects: int) -> Past:
    """What the journal *path* holds so far. Raises JournalError for a damaged one."""
    past = Past(subjects)
    with open(path, "rb") as stream:
        for record in lines_of(stream, path):
            if record[0] == "q":
                subject = record[1]
                if not 0 <= subject < subjects:
                    raise JournalError("%s: a query of subject %d" % (path, subject))
                past.queries[subject] += 1
                past.ns[subject] += record[4]
                past.end = max(past.end, record[3] + record[4])
            elif record[0] == "c":
                past.end = max(past.end, record[1])
            elif record[0] == "load" and 0 <= record[1] < subjects:
                past.loaded[record[1]] = True
            elif record[0] == "end":
                past.complete = True
    return past


def read_header(path: str) -> Optional[Dict[str, Any]]:
    """The header of the journal *path*, None where there is no whole first line yet. Raises JournalError."""
    with open(path, "rb") as stream:
        for record in lines_of(stream, path):
            if record[0] != "header" or record[1].get("format") != FORMAT:
                raise JournalError("%s is not a journal of latencies" % path)
            if record[1].get("version") != VERSION:
                raise JournalError("%s has version %r, this ppexport reads %d" % (
                    path, record[1].get("version"), VERSION))  # fmt: skip
            header: Dict[str, Any] = record[1]
            return header
    return None


class Journal:
    """A journal that is being written."""

    def __init__(self, path: str) -> None:
        """Opens *path* for appending, after a torn last line was cut off. Raises JournalError where another does."""
        self.path = path
        # Unbuffered and appending: a record is with the system when `write` returns.
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115
        if fcntl is not None:
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._stream.close()
                raise JournalError("%s: another process measures into it" % path) from None
            if not _same_file(self._stream.fileno(), path):
                self._stream.close()
                raise JournalError("%s: another process removed it just now" % path)
        cut_torn_line(path)

    def write(self, *record: Any) -> None:
        """Append one record. Raises OSError, for example on a full disk; the journal is then whole up to here."""
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode("utf-8") + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError("a record of %d bytes" % len(line))
        written = self._stream.write(line)
        if written != len(line):
            # A full disk took a part: a later record must not be glued to it.
            cut_torn_line(self.path)
            raise OSError(28, "No space left on device", self.path)

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
    """Remove what follows the last newline of the file *path*, if it exists."""
    if not os.path.exists(path):
        return
    with open(path, "r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - 65536)
            stream.seek(start)
            block = stream.read(keep - start)
            found = block.rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        if keep != end:
            stream.truncate(keep)
