"""Measures with a benchmark program where a device has no Python: the runtime's own, which the user names.

The program runs on the same pictures, and what it writes becomes a journal. Which program, its flags and its output are
the runtime's (`Runtime.program`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.backends.backend import Measured
from ppexport.device.job import IMAGES
from ppexport.device.journal import FORMAT, VERSION
from ppexport.device.sensors import thermal
from ppexport.device.target import runtimes
from ppexport.errors import InputError, printable, require
from ppexport.files import atomic_path, sha256_file, sha256_text
from ppexport.profile.received import header_from
from ppexport.profile.remote import POLL, ProfileWork, Request, job_prefix
from ppexport.profile.result import Profile, write_profile
from ppexport.remote.detached import OUTPUT, Pace, Telling
from ppexport.remote.transport import Transport

PROGRAM, RESULT, SENSORS = "perf-program", "result", "sensors.txt"
MAX_RESULT, MAX_SENSORS = 1 << 27, 1 << 26
SECOND = 1_000_000_000
WINDOW = 8
RUN = r"""
mask=$1 seconds=$2 queries=$3 device=$4 threads=$5 model=$6
chmod 700 perf-program
LD_LIBRARY_PATH=.; export LD_LIBRARY_PATH
watch() {
    while :; do
        echo "@ $(cut -d ' ' -f 1 /proc/uptime)"
        for core in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq; do
            if [ -r "$core" ]; then echo "$core $(cat "$core")"; fi
        done
        if command -v dumpsys > /dev/null; then dumpsys thermalservice; fi
        sleep 2
    done
}
program() {
    if [ "$mask" = - ]; then set -- ./perf-program "$@"; else set -- taskset "$mask" ./perf-program "$@"; fi
    "$@"
}
rm -f result
watch > sensors.txt 2>&1 &
watcher=$!
trap 'kill "$watcher"' EXIT
trap 'exit 143' TERM
"""
"""The job before the runtime's own lines, which call `program` and write the file `result`; its arguments are affinity
mask or -, seconds, queries, device, threads, model."""


def read_sensors(text: str) -> Iterator[tuple[int, dict[str, float]]]:
    """(ns since the first reading, reading) from what the job's watcher wrote."""
    first = None
    for block in text.split("@ ")[1:]:
        moment, _, rest = block.partition("\n")
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,4})?", moment.strip()):
            continue
        now = float(moment)
        first = now if first is None else first
        clocks = re.findall(r"/cpu([0-9]{1,3})/cpufreq/scaling_cur_freq ([0-9]{1,9})$", rest, re.MULTILINE)
        reading = {f"mhz.cpu{core}": int(khz) / 1000 for core, khz in clocks}
        yield max(0, round((now - first) * SECOND)), {**reading, **thermal(rest)}


def settled(ns: Sequence[int]) -> bool:
    """Whether the first queries after the only one of the program's warm-up are as fast as the next."""
    if len(ns) < 2 * WINDOW:
        return False
    first, second = (float(np.median(ns[start : start + WINDOW])) for start in (0, WINDOW))
    return abs(second - first) <= 0.02 * first


class PerfBinary(ProfileWork):
    """A measurement by a benchmark program."""

    def __init__(
        self, transport: Transport, request: Request, program: Path, telling: Telling, pace: Pace = POLL
    ) -> None:
        """Raises InputError for an artifact that needs more than a model run."""
        (target, *more), settings = request.targets, request.settings
        known = {name: runtime.program for name, runtime in runtimes().items() if runtime.program}
        if more or target.runtime not in known:
            raise InputError(f"--perf-binary times one runtime alone, {' or '.join(known)}")
        if request.artifact.manifest.needs_host_mask:
            raise InputError(
                f"{request.artifact.path.name} needs a mask or a capacity from outside, which a benchmark program does "
                "not compute: export it with one capacity and the mask in the graph"
            )
        if settings.power_mode is not None or settings.lock_clocks or settings.python is not None:
            raise InputError(
                "--perf-binary measures without our agent, which alone sets a Jetson and needs a Python: leave the "
                "power mode, the clocks and the Python out"
            )
        if not program.is_file():
            raise InputError(f"{program} is not a file")
        self.request, self.program, self.target = request, program, target
        self.known = import_module(known[target.runtime])
        # Writes the pictures as the program reads them.
        require(*self.known.NEEDS)
        self.script = RUN + self.known.MEASURE
        name = job_prefix(request.artifact) + sha256_text(request.digest + self.script + sha256_file(program))[:12]
        super().__init__(transport, name, telling, pace)

    def _failed_before(self) -> None:
        self.telling.notice(f"the last measurement on {self.transport.name} failed: starting it again")

    def _start(self) -> None:
        artifact, plan, cores = self.request.artifact, self.request.wanted["plan"], self.request.settings.cores
        self.job.discard((RESULT, SENSORS))
        model = artifact.model_file
        files: dict[str, Path | bytes] = {model.name: artifact.read(model), PROGRAM: self.program}
        images = np.load(self.request.folder / IMAGES, allow_pickle=False)
        self._send({**files, **self.known.sent(artifact, images)})
        # The hexadecimal mask that `taskset` of Android takes: cores 4 to 7 are f0.
        mask = f"{sum(1 << core for core in cores):x}" if cores else "-"
        seconds, queries = max(1, math.ceil(plan["seconds"])), plan["queries"]
        device, threads = self.target.device.lower(), self.target.threads or 0
        self._run(["sh", "-c", self.script, "sh", mask, str(seconds), str(queries), device, str(threads), model.name])

    def _kept(self) -> str:
        return "nothing of it is kept: the program writes its result at its end"

    def _collect(self) -> Profile:
        limits = ((RESULT, MAX_RESULT), (SENSORS, MAX_SENSORS), (OUTPUT, MAX_SENSORS))
        result, sensors, output = (printable(self.job.read(name, limit)) for name, limit in limits)
        measured = self.known.read(result, output)
        with atomic_path(self.request.journal) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for record in self._records(measured, sensors):
                stream.write(json.dumps(record, separators=(",", ":")) + "\n")
        memory = [(0, measured.peak)] if measured.peak else [None]
        return Profile(write_profile(self.request.folder, self.request.journal, memory))

    def _records(self, measured: Measured, sensors: str) -> Iterator[Sequence[Any]]:
        """The journal that an agent would have written."""
        samples, peak, load, first = measured
        yield "header", self._header()
        yield "begin", {"t": 0, "now": 0, "wall": None, "boot": None, "memory": None}
        yield "load", 0, load
        yield "first", 0, first
        yield "warm", 0, 1, settled(samples)
        t, capacity = load + first, max(self.request.artifact.manifest.capacities, default=0)
        for ns in samples:
            yield "q", 0, 0, t, ns, ns, 0, capacity, -1
            t += ns
        for moment, reading in read_sensors(sensors):
            yield "c", moment, reading
        yield "end", {"t": t, "memory": peak or None}

    def _header(self) -> dict[str, Any]:
        facts, digest = self.transport.describe(), sha256_file(self.program)
        counts = {name: int(facts[name]) for name in ("processors", "memory_kb") if facts.get(name, "").isdecimal()}
        cores = counts.get("processors", 1)
        named = " ".join(facts[name] for name in ("maker", "board", "soc") if facts.get(name))
        machine = {
            "cpu": named or "unknown processor",
            "architecture": facts.get("machine"),
            "cores": cores,
            "usable_cores": len(self.request.settings.cores) or cores,
            "memory_bytes": counts["memory_kb"] * 1024 if "memory_kb" in counts else None,
            "board": facts.get("board"),
            "system": f"Android {facts['android']}" if "android" in facts else facts.get("os", facts.get("system")),
            "kernel": facts.get("kernel"),
        }
        wanted = {**self.request.wanted, "packages": [("perf_binary",)], "inside_the_clock": self.known.INSIDE}
        subjects = [{**subject, "runtime_versions": {"perf_binary": digest[:16]}} for subject in wanted["subjects"]]
        sent = {"format": FORMAT, "version": VERSION, "identity": digest, "subjects": subjects, "machine": machine}
        return header_from(sent, wanted, self.request.digest, facts)
