"""A journal from a device -> a journal here. Nothing of it is taken on trust.

Every record is made anew from fields that were checked. Of the header the device's part is taken alone: the machine,
and the versions it found. What was asked for is what was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ppexport.device.journal import FORMAT, VERSION, JournalError, Past, lines_of, read_past
from ppexport.files import atomic_path
from ppexport.remote.address import TransferError
from ppexport.remote.output import cleaned

MAX_JOURNAL = 1 << 28
"""Bytes: about two million queries."""
MAX_TEXT = 200
MAX_NAMES = 256
SENSOR = re.compile(r"[A-Za-z0-9_. +:/()-]{1,80}")
PACKAGE = re.compile(r"[A-Za-z0-9_.+!-]{1,80}")
HASH = re.compile(r"[0-9a-f]{64}")
BIGGEST = 1 << 62


def _text(value: object) -> str:
    return cleaned(value)[:MAX_TEXT] if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < BIGGEST else None


def _items(value: object) -> list[tuple[Any, Any]]:
    """The first entries of a JSON object, none of anything else."""
    return list(value.items())[:MAX_NAMES] if isinstance(value, dict) else []


def _versions(value: object) -> dict[str, str]:
    return {k: v for k, v in _items(value) if isinstance(v, str) and PACKAGE.fullmatch(v) and PACKAGE.fullmatch(k)}


def _mode(value: object) -> dict[str, Any] | None:
    data = dict(_items(value))
    number = _count(data.get("number"))
    return None if number is None else {"number": number, "name": _text(data.get("name"))}


def _clocks(value: object) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    units = {k: v for k, v in _items(value) if isinstance(v, dict) and SENSOR.fullmatch(k)}
    hertz = {k: {part: _count(v.get(part)) for part in ("min", "max", "now")} for k, v in units.items()}
    return {**hertz, "locked": value["locked"] if isinstance(value.get("locked"), bool) else None}


Readers = Mapping[str, Callable[[object], Any]]
"""{field: what makes anything that a device may send in it harmless}."""
MACHINE: Readers = {
    **dict.fromkeys(("cpu", "architecture", "system", "kernel", "python", "host_name"), _text),
    **dict.fromkeys(("cores", "usable_cores"), lambda value: _count(value) or 1),
    "memory_bytes": _count,
    "board": lambda value: _text(value) or None,
    "governors": lambda value: [_text(g) for g in value[:MAX_NAMES]] if isinstance(value, list) else [],
    "virtual": lambda value: value is True,
    "environment": lambda value: {_text(name): _text(text) for name, text in _items(value)},
}
"""What a device says of itself, as `describe` of the agent does."""
JETSON: Readers = {
    **dict.fromkeys(("l4t", "jetpack"), lambda value: _text(value) or None),
    "power_mode": _mode,
    "clocks": _clocks,
}
"""What a Jetson says besides, as `describe_jetson` of the agent does; what cannot be read is null."""


def header_from(
    data: Mapping[str, Any], wanted: Mapping[str, Any], digest: str, phone: Mapping[str, str] | None
) -> dict[str, Any]:
    """The header of a device's journal of *wanted*, see `ppexport.device.job.wanted_of`, from the one in its *data*.

    *digest* names the request, *phone* are properties that adb reported. Raises TransferError for a header of another
    measurement, or without a processor.
    """
    identity, machine, theirs = data.get("identity"), data.get("machine"), data.get("subjects")
    if not isinstance(machine, dict) or not _text(machine.get("cpu")):
        raise TransferError("the device's journal does not say which machine it is of")
    if data.get("format") != FORMAT or data.get("version") != VERSION or not isinstance(theirs, list):
        raise TransferError("the device's journal has another format")
    if not isinstance(identity, str) or not HASH.fullmatch(identity) or len(theirs) != len(wanted["subjects"]):
        raise TransferError("the device's journal is of another measurement")
    subjects = []
    for own, packages, their in zip(wanted["subjects"], wanted["packages"], theirs, strict=True):
        rest = dict(their) if isinstance(their, dict) else {}
        told = _versions(rest.pop("runtime_versions", None))
        if rest != own:
            raise TransferError("the device's journal is of another measurement")
        subjects.append({**own, "runtime_versions": {name: told[name] for name in packages if name in told}})
    found = {"address": wanted["address"], **{name: read(machine.get(name)) for name, read in MACHINE.items()}}
    jetson = machine.get("jetson")
    if isinstance(jetson, dict):
        found["jetson"] = {name: read(jetson.get(name)) for name, read in JETSON.items()}
    if phone is not None:
        found["phone"] = dict(phone)
    return {
        "format": FORMAT, "version": VERSION, "identity": identity, "request": digest,
        "created": _moment(data.get("created")) or wanted["created"], "subjects": subjects, "plan": wanted["plan"],
        "machine": found, "versions": {**_versions(data.get("versions")), "ppexport": wanted["ppexport"]},
        "images": wanted["images"], "inside_the_clock": wanted["inside_the_clock"],
    }  # fmt: skip


def _moment(value: object) -> str | None:
    """*value* where it is a date: that of an earlier call, which the device was sent."""
    try:
        # Written anew: what is read as a date may have any character between day and hour.
        return datetime.fromisoformat(value).isoformat(timespec="seconds") if isinstance(value, str) else None
    except ValueError:
        return None


def _is_reading(name: str, value: object) -> bool:
    """Whether a field of a record of readings is a number with a name; "t" is the record's own."""
    # Neither an integer that no float holds nor one that is no number passes this.
    number = type(value) in (int, float) and -BIGGEST < value < BIGGEST  # type: ignore[operator]
    return name != "t" and SENSOR.fullmatch(name) is not None and number


class RecordChecker:
    """Makes the records of a device's journal anew, but for its header, and refuses what was not asked for."""

    def __init__(
        self, wanted: Mapping[str, Any], whose: str = "the device's journal", known: Container[str] | None = None
    ) -> None:
        """*wanted* is as in `ppexport.device.job.wanted_of`, *whose* what errors call the journal.

        Of readings those of the sensors *known* are kept; None keeps all that have a valid name.
        """
        self._known = known
        self._subjects, self._images, self._whose = len(wanted["subjects"]), len(wanted["images"]), whose
        self._sensors: set[str] = set()

    def checked(self, record: Sequence[Any]) -> Sequence[Any]:
        """The valid *record* (`lines_of`) with what may be in it. Raises TransferError."""
        kind = record[0]
        if kind == "header":
            raise TransferError(f"{self._whose} has its header in another place")
        if kind in ("begin", "end"):
            names = ("t", "now", "wall", "boot", "memory") if kind == "begin" else ("t", "memory")
            return (kind, {name: _count(record[1].get(name)) for name in names})
        if kind == "c":
            if not 0 <= record[1] < BIGGEST:
                raise TransferError(f"{self._whose} has a reading at no time")
            reading = {name: value for name, value in _items(record[2]) if _is_reading(name, value)}
            if self._known is not None:
                reading = {name: value for name, value in reading.items() if name in self._known}
            # Each becomes a column as long as the run.
            self._sensors.update(reading)
            if len(self._sensors) > MAX_NAMES:
                raise TransferError(f"{self._whose} has more than {MAX_NAMES} sensors")
            return (kind, record[1], reading)
        wrong_query = kind == "q" and not (0 <= record[2] < self._images and record[4] > 0)
        if not 0 <= record[1] < self._subjects or wrong_query:
            raise TransferError(f"{self._whose} has a record of what was not asked for: {kind}")
        return record


def _records(
    path: Path, wanted: Mapping[str, Any], digest: str, phone: Mapping[str, str] | None
) -> Iterator[Sequence[Any]]:
    checker = RecordChecker(wanted)
    with path.open("rb") as stream:
        records = lines_of(stream, "the device's journal")
        first = next(records, None)
        if first is not None and first[0] != "header":
            raise TransferError("the device's journal has its header in another place")
        if first is not None:
            yield ("header", header_from(first[1], wanted, digest, phone))
        yield from map(checker.checked, records)


def receive(
    source: Path, wanted: Mapping[str, Any], digest: str, target: Path, phone: Mapping[str, str] | None = None
) -> Past:
    """Make the journal *target*, atomically, of what a device sent in *source*; returns what it holds.

    The other arguments are those of `header_from`. Raises TransferError for anything that no agent of ours writes.
    """
    try:
        with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for record in _records(source, wanted, digest, phone):
                stream.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    except JournalError as error:
        raise TransferError(str(error)) from None
    return read_past(str(target), len(wanted["subjects"]))


def memory_from(data: Mapping[str, Any], subjects: int) -> list[tuple[int, int] | None]:
    """Peak memory of every subject, from a device's outcome."""
    theirs = data.get("memory")
    pairs: list[Any] = theirs[:subjects] if isinstance(theirs, list) else []
    memory: list[tuple[int, int] | None] = []
    for pair in [*pairs, *[None] * (subjects - len(pairs))]:
        before, peak = map(_count, pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
        memory.append(None if before is None or peak is None else (before, peak))
    return memory
