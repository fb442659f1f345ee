"""A journal from a device -> a journal here. Nothing of it is taken on trust.

Every record is made anew from fields that were checked. Of the header the device's part is taken alone: the machine,
and the versions it found. What was asked for is what was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ppexport.device.journal import FORMAT, VERSION, JournalError, lines_of
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
TEXTS = ("cpu", "architecture", "system", "kernel", "python", "host_name")
COUNTS = ("cores", "usable_cores")
BIGGEST = 1 << 62


def _text(value: object) -> str:
    return cleaned(value)[:MAX_TEXT] if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < BIGGEST else None


def _versions(value: object) -> dict[str, str]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {k: v for k, v in pairs if isinstance(v, str) and PACKAGE.fullmatch(v) and PACKAGE.fullmatch(str(k))}


def machine_from(data: object, address: str) -> dict[str, Any]:
    """What a device says of itself, as `describe` of the agent does. Raises TransferError where it says no CPU."""
    if not isinstance(data, dict) or not _text(data.get("cpu")):
        raise TransferError("the device's journal does not say which machine it is of")
    found: dict[str, Any] = {"address": address, **{name: _text(data.get(name)) for name in TEXTS}}
    found |= {name: _count(data.get(name)) or 1 for name in COUNTS}
    found["memory_bytes"] = _count(data.get("memory_bytes"))
    found["board"] = _text(data.get("board")) or None
    governors = data.get("governors")
    found["governors"] = [_text(g) for g in governors[:MAX_NAMES]] if isinstance(governors, list) else []
    found["virtual"] = data.get("virtual") is True
    environment = data.get("environment")
    pairs = list(environment.items())[:MAX_NAMES] if isinstance(environment, dict) else []
    found["environment"] = {_text(name): _text(value) for name, value in pairs}
    if isinstance(data.get("jetson"), dict):
        found["jetson"] = jetson_from(data["jetson"])
    return found


def jetson_from(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a Jetson says of itself, as `describe_jetson` of the agent does; what cannot be read is null."""
    mode, clocks = data.get("power_mode"), data.get("clocks")
    mode = mode if isinstance(mode, dict) else {}
    number = _count(mode.get("number"))
    found: dict[str, Any] = {"l4t": _text(data.get("l4t")) or None, "jetpack": _text(data.get("jetpack")) or None}
    found["power_mode"] = None if number is None else {"number": number, "name": _text(mode.get("name"))}
    found["clocks"] = None
    if isinstance(clocks, dict):
        units = {k: v for k, v in list(clocks.items())[:MAX_NAMES] if isinstance(v, dict) and SENSOR.fullmatch(k)}
        hertz = {k: {part: _count(v.get(part)) for part in ("min", "max", "now")} for k, v in units.items()}
        found["clocks"] = {**hertz, "locked": clocks["locked"] if isinstance(clocks.get("locked"), bool) else None}
    return found


def header_from(
    data: Mapping[str, Any], wanted: Mapping[str, Any], digest: str, phone: Mapping[str, str] | None
) -> dict[str, Any]:
    """The header of a device's journal of *wanted*. Raises TransferError for one of another measurement."""
    identity, machine = data.get("identity"), machine_from(data.get("machine"), wanted["address"])
    if phone is not None:
        machine["phone"] = dict(phone)
    theirs = data.get("subjects")
    if data.get("format") != FORMAT or data.get("version") != VERSION or not isinstance(theirs, list):
        raise TransferError("the device's journal has another format")
    if not isinstance(identity, str) or not HASH.fullmatch(identity) or len(theirs) != len(wanted["subjects"]):
        raise TransferError("the device's journal is of another measurement")
    subjects = []
    for own, packages, their in zip(wanted["subjects"], wanted["packages"], theirs, strict=True):
        told = _versions(their.get("runtime_versions") if isinstance(their, dict) else None)
        if {k: v for k, v in (their if isinstance(their, dict) else {}).items() if k != "runtime_versions"} != own:
            raise TransferError("the device's journal is of another measurement")
        subjects.append({**own, "runtime_versions": {name: told[name] for name in packages if name in told}})
    return {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity,
        "request": digest,
        "created": _moment(data.get("created")) or wanted["created"],
        "subjects": subjects,
        "plan": wanted["plan"],
        "machine": machine,
        "versions": {**_versions(data.get("versions")), "ppexport": wanted["ppexport"]},
        "images": wanted["images"],
        "inside_the_clock": wanted["inside_the_clock"],
    }


def _moment(value: object) -> str | None:
    """*value* where it is a date: that of an earlier call, which the device was sent."""
    try:
        # Written anew: what is read as a date may have any character between day and hour.
        return datetime.fromisoformat(value).isoformat(timespec="seconds") if isinstance(value, str) else None
    except ValueError:
        return None


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """The readings of a record that are numbers with names; "t" is the record's own."""
    found: dict[str, float] = {}
    for name, value in list(data.items())[:MAX_NAMES]:
        # Neither an integer that no float holds nor one that is no number passes this.
        if name != "t" and SENSOR.fullmatch(name) and type(value) in (int, float) and -BIGGEST < value < BIGGEST:
            found[name] = value
    return found


def _records(
    path: Path, wanted: Mapping[str, Any], digest: str, phone: Mapping[str, str] | None
) -> Iterator[Sequence[Any]]:
    subjects, images = len(wanted["subjects"]), len(wanted["images"])
    sensors: set[str] = set()
    with path.open("rb") as stream:
        for number, record in enumerate(lines_of(stream, "the device's journal")):
            kind = record[0]
            if (kind == "header") != (number == 0):
                raise TransferError("the device's journal has its header in another place")
            if kind == "header":
                yield ("header", header_from(record[1], wanted, digest, phone))
            elif kind in ("begin", "end"):
                kept = {name: _count(record[1].get(name)) for name in ("t", "now", "wall", "boot", "memory")}
                yield (kind, kept if kind == "begin" else {name: kept[name] for name in ("t", "memory")})
            elif kind == "c":
                reading = _numbers(record[2])
                # Each becomes a column as long as the run.
                sensors.update(reading)
                if len(sensors) > MAX_NAMES:
                    raise TransferError(f"the device's journal has more than {MAX_NAMES} sensors")
                yield ("c", record[1], reading)
            else:
                if not 0 <= record[1] < subjects or (kind == "q" and not (0 <= record[2] < images and record[4] > 0)):
                    raise TransferError(f"the device's journal has a record of what was not asked for: {kind}")
                yield record


def receive(
    source: Path, wanted: Mapping[str, Any], digest: str, target: Path, phone: Mapping[str, str] | None = None
) -> int:
    """Make the journal *target*, atomically, of what a device sent; returns how many queries it holds.

    *digest* names the request in its header, *phone* are properties that adb told. Raises TransferError for anything
    that no agent of ours writes.
    """
    count = 0
    try:
        with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for record in _records(source, wanted, digest, phone):
                count += record[0] == "q"
                stream.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    except JournalError as error:
        raise TransferError(str(error)) from None
    return count


def memory_from(data: Mapping[str, Any], subjects: int) -> list[tuple[int, int] | None]:
    """Peak memory of every subject, from a device's outcome."""
    theirs = data.get("memory")
    pairs = theirs if isinstance(theirs, list) else []
    memory: list[tuple[int, int] | None] = []
    for index in range(subjects):
        pair = pairs[index] if index < len(pairs) else None
        before, peak = map(_count, pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
        memory.append(None if before is None or peak is None else (before, peak))
    return memory
