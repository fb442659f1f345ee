"""`profile.json`: what a measurement found, from its journal. Version 1:

    format, version   "ppexport-profile", 1
    created           UTC, ISO 8601: when the measurement began
    machine           address, host_name, cpu, architecture, cores, usable_cores, memory_bytes, board, system, kernel,
                      governors, virtual, python, environment (variables that change a runtime's speed); of a run in
                      a browser what that tells, and "browser": user_agent, brands, platform, model, mobile, cores,
                      memory_gb (rounded by browsers), secure, isolated, timer_step_ms, device (wasm, webgpu), threads,
                      adapter {vendor, architecture, device, description, fallback} or null, ort; cpu_ns is then ns
    versions          of ppexport, Python, NumPy
    protocol          plan (queries, seconds, warm_change, warm_windows, sensor_seconds, load: busy
                      neighbours, 0 where it is missing), order ("single" or "A B B A"), batch 1, inside_the_clock
    images            [{name, sha256 of the pixels, pure_share}]
    subjects          [{name, artifact, model, arch, scale, size, backend, precision, flavour, mask, capacities, tokens,
                      files (hashes), weights_sha256, card_sha256, bytes, made_with, runtime, runtime_device,
                      runtime_versions, threads, load_ms, first_ms, warm_up {queries, settled}, memory {before, peak} in
                      bytes of a process of its own or null, summary}]
    summary           count, seconds, p50_ms, p90_ms (the headline), p99_ms, min_ms, max_ms, mean_ms, p50_interval_ms,
                      p90_interval_ms (95 %), p50_ms_per_megapixel, p90_ms_per_megapixel (of output), host_p50_ms,
                      droop (sustained runs: first_minute_ms, last_minute_ms, ratio) or null, energy (one subject on a
                      board whose power rails add up: joules_per_image, watts: both of the whole module) or null
    marks             [{kind, text}]: what disturbed the run
    sensors           {name: [number or null]}; "t" is when, in ns
    samples           one object of columns for every subject: image, t_ns, ns, cpu_ns, host_ns, capacity (0: none),
                      impure (-1: not told); integers, in the order of measurement

`layers.json`, `routing.json` and `frames.json` beside it begin with the same fields, and are written by `follow_up`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.job import Job
from ppexport.device.journal import FORMAT as JOURNAL
from ppexport.device.journal import lines_of
from ppexport.device.sensors import joules
from ppexport.errors import InputError
from ppexport.files import atomic_path, finite, read_limited_json, write_text
from ppexport.profile.statistics import (
    browser_marks,
    clock_marks,
    mark,
    sample_marks,
    sensor_marks,
    stalled_marks,
    summary,
)
from ppexport.remote.output import cleaned

FORMAT = "ppexport-profile"
VERSION = 1
PROFILE = "profile.json"
COLUMNS = ("image", "t_ns", "ns", "cpu_ns", "host_ns", "capacity", "impure")
MAX_BYTES = 1 << 29
"""A million samples are about 60 MB."""


class Collected:
    """What a journal holds: integers in arrays, so that 100,000 samples take some megabytes."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a journal that is damaged or not complete."""
        self.header: dict[str, Any] = {}
        self.columns: list[dict[str, array[int]]] = []
        self.once: dict[str, dict[int, int]] = {"load": {}, "first": {}}
        """Nanoseconds of what every subject did once."""
        self.warm: dict[int, tuple[int, bool]] = {}
        self.processes: list[list[dict[str, Any]]] = []
        """The readings that each process made."""
        self.complete = False
        try:
            with path.open("rb") as stream:
                for record in lines_of(stream, str(path)):
                    self._take(record, path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        if not self.complete or any(not len(c["ns"]) for c in self.columns):
            raise InputError(
                f"{path} is not complete: run the same `ppexport profile` command again, which continues it"
            )

    def _take(self, record: list[Any], path: Path) -> None:
        kind = record[0]
        if not self.columns:
            if kind != "header" or record[1].get("format") != JOURNAL:
                raise InputError(f"{path} is not a journal of latencies")
            self.header, subjects = record[1], record[1].get("subjects")
            if not isinstance(subjects, list) or not subjects:
                raise InputError(f"{path}: its header names no subjects")
            self.columns = [{name: array("q") for name in COLUMNS} for _ in subjects]
        elif kind == "q":
            subject, values = record[1], dict(zip(COLUMNS, record[2:], strict=True))
            if not 0 <= subject < len(self.columns) or values["ns"] < 1:
                raise InputError(f"{path}: a query of subject {subject} that took {values['ns']} ns")
            for name, value in values.items():
                self.columns[subject][name].append(value)
        elif kind == "c":
            if not self.processes:
                raise InputError(f"{path}: a reading before the run began")
            self.processes[-1].append({"t": record[1], **record[2]})
        elif kind == "begin":
            self.processes.append([])
        elif kind in self.once:
            self.once[kind][record[1]] = record[2]
        elif kind == "warm":
            self.warm[record[1]] = (record[2], bool(record[3]))
        elif kind == "end":
            self.complete = True

    def sensors(self) -> dict[str, list[float | None]]:
        """The readings as columns; what one reading lacks is None."""
        readings = [reading for made in self.processes for reading in made]
        names = dict.fromkeys(name for reading in readings for name in reading if name not in ("wall", "boot"))
        columns = {name: [reading.get(name) for reading in readings] for name in names}
        return {name: [v if type(v) in (int, float) else None for v in column] for name, column in columns.items()}


def write_profile(folder: Path, journal: Path, memory: Sequence[tuple[int, int] | None]) -> Path:
    """Write `profile.json` into *folder*, atomically, and return its path.

    Args:
        folder: The run's folder.
        journal: A complete journal.
        memory: Of every subject the bytes that a process of its own used before and at its peak, if that is known.

    Raises:
        InputError: The journal is damaged or not complete.
    """
    found = Collected(journal)
    text = json.dumps(finite(_without_samples(found, memory)), indent=1, allow_nan=False)
    target = folder / PROFILE
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text.removesuffix("\n}") + ',\n "samples": [')
        for index, columns in enumerate(found.columns):
            stream.write(",\n  {" if index else "\n  {")
            for number, (name, values) in enumerate(columns.items()):
                # One column at a time, so that a long run takes little memory.
                column = json.dumps(values.tolist(), separators=(",", ":"))
                stream.write(f'{"," if number else ""}\n   "{name}": {column}')
            stream.write("\n  }")
        stream.write("\n ]\n}\n")
    return target


def _without_samples(found: Collected, memory: Sequence[tuple[int, int] | None]) -> dict[str, Any]:
    """Everything of `profile.json` but the samples."""
    header, sensors = found.header, found.sensors()
    machine, several = header["machine"], len(header["subjects"]) > 1
    browser, sustained = machine.get("browser"), header["plan"]["name"] == "sustained"
    marks = [*sensor_marks(sensors, int(machine.get("usable_cores") or 1)), *clock_marks(found.processes)]
    subjects = []
    for index, (facts, spent) in enumerate(zip(header["subjects"], memory, strict=True)):
        columns = {name: np.frombuffer(values, np.int64) for name, values in found.columns[index].items()}
        (h, w), scale = facts["size"], facts["scale"]
        warm, settled = found.warm.get(index, (0, False))
        if not settled:
            marks.append(mark("warm-up", f"{facts['name']}: the median still moved by over 2 % when warm-up ended"))
        marks += sample_marks(facts["name"], columns)
        if browser is not None:
            marks += [*browser_marks(browser, sensors, facts), *stalled_marks(facts["name"], columns)]
        measured = summary(columns, len(header["images"]), h * w * scale**2 / 1e6, sustained=sustained)
        # The power of two that take turns cannot be told apart.
        measured["energy"] = None if several else _energy(columns, sensors)
        subjects.append(
            {
                **facts,
                **{f"{name}_ms": times.get(index, 0) / 1e6 for name, times in found.once.items()},
                "warm_up": {"queries": warm, "settled": settled},
                "memory": None if spent is None else {"before": spent[0], "peak": spent[1]},
                "summary": measured,
            }
        )
    protocol = {"plan": header["plan"], "order": "A B B A" if several else "single", "batch": 1}
    return {
        "format": FORMAT, "version": VERSION, "created": header["created"], "identity": header["identity"],
        "machine": machine, "versions": header["versions"],
        "protocol": {**protocol, "inside_the_clock": header["inside_the_clock"]},
        "images": header["images"], "subjects": subjects, "marks": marks, "sensors": sensors,
    }  # fmt: skip


def _energy(columns: Mapping[str, NDArray[np.int64]], sensors: Mapping[str, Sequence[float | None]]) -> Any:
    """Joules for each query and mean watts of the whole module, None where no rails that add up were read.

    What the module takes at rest is in it, as is what lies between two queries.
    """
    times, watts = sensors.get("t"), sensors.get("watts.total")
    if times is None or watts is None:
        return None
    begin, end = int(columns["t_ns"][0]), int(columns["t_ns"][-1] + columns["ns"][-1])
    total = joules([int(t or 0) for t in times], watts, begin, end)
    count = len(columns["ns"])
    return None if total is None else {"joules_per_image": total / count, "watts": total / ((end - begin) / 1e9)}


class Profile:
    """A `profile.json` that was read and checked.

    Attributes:
        path: The file.
        data: Everything in it.
        subjects: What was measured, each with its `summary`.
        samples: Of every subject its columns (queries,), in the order of measurement.
        images: How many images the queries cycle over.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that is no profile, or is damaged, too large, or of another version."""
        self.path = path
        self.data = read_result(path, FORMAT, VERSION)
        try:
            self.subjects: list[dict[str, Any]] = self.data["subjects"]
            self.samples = [_arrays(entry) for entry in self.data["samples"]]
            self.images = len(self.data["images"])
            valid = 0 < len(self.subjects) == len(self.samples) and self.images > 0
            for subject in self.subjects:
                checked = [subject["summary"][f"{n}_ms"] for n in ("p50", "p90", "p99", "min", "max")]
                valid &= all(isinstance(ms, (int, float)) and ms > 0 for ms in checked)
                valid &= isinstance(subject["name"], str) and isinstance(self.data["machine"]["cpu"], str)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            valid = False
        if not valid:
            raise InputError(f"{path} does not hold what a profile holds")

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `--json` writes it: without samples and readings of sensors, which the file holds."""
        return {key: value for key, value in self.data.items() if key not in ("samples", "sensors")}


def _arrays(entry: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    columns = {name: np.asarray(entry[name], np.int64) for name in COLUMNS}
    lengths = {column.shape for column in columns.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1 or not len(columns["ns"]) or columns["ns"].min() < 1:
        raise ValueError("columns of different lengths")
    return columns


def read_result(path: Path, expected: str, *versions: int) -> dict[str, Any]:
    """The JSON object of the format *expected*, in one of *versions*, its texts made printable. Raises InputError."""
    data = read_limited_json(path, MAX_BYTES, f"a {expected} file")
    if not isinstance(data, dict) or data.get("format") != expected:
        raise InputError(f"{path} is not a {expected} file")
    if data.get("version") not in versions:
        known = " and ".join(map(str, versions))
        raise InputError(f"{path} has version {data.get('version')!r}; this ppexport reads {known}")
    return {key: value if key == "samples" else cleaned(value) for key, value in data.items()}


def follow_up(
    kind: str, job: Job, result: Profile, measure: Callable[[Job, dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure more of what a latency run measured, and write it beside it; returns what is in the files.

    Args:
        kind: Name of the file: `KIND.json` for the first target, `KIND-RUNTIME.json` for others.
        job: The latency run.
        result: What it found.
        measure: Called for every target with a job of it alone and with its subject in *result*; returns the fields
            of the file that follow those that every file begins with.
    """
    made = []
    for index, (target, subject) in enumerate(zip(job.targets, result.subjects, strict=True)):
        found = measure(replace(job, targets=(target,)), subject)
        data = {**beginning(kind, subject, result.data["machine"]), **found}
        name = kind if index == 0 else f"{kind}-{target.name.replace(':', '_')}"
        write_text(job.journal.parent / f"{name}.json", json.dumps(finite(data), allow_nan=False) + "\n")
        made.append(data)
    return made


def beginning(kind: str, subject: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of *kind* begins with."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"format": f"ppexport-{kind}", "version": 1, "created": created, "subject": subject, "machine": machine}
