"""Measures with a benchmark program where a device has no Python: onnxruntime_perf_test, which the user names.

The program runs with every choice as an explicit flag, on the same pictures, and its result file becomes a journal. It
keeps its samples in memory until it ends, so a run that is killed has measured nothing; and it takes the pictures at
random and does not say which. Flags and the result file, `model,seconds,peak bytes,CPU %,number` a line, are those of
onnxruntime/test/perftest (README.md and performance_runner.cc). Untested on hardware.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.device.job import IMAGES
from ppexport.device.journal import FORMAT, VERSION
from ppexport.device.picture import to_input
from ppexport.device.sensors import thermal
from ppexport.errors import InputError, printable, require
from ppexport.files import atomic_path, sha256_file, sha256_text
from ppexport.profile.received import header_from
from ppexport.profile.remote import POLL, ProfileWork, Request, job_prefix
from ppexport.profile.result import Profile, write_profile
from ppexport.remote.address import TransferError
from ppexport.remote.detached import OUTPUT, Pace, Telling
from ppexport.remote.transport import Transport

PROGRAM, RESULT, SENSORS = "perf-program", "perf.csv", "sensors.txt"
INSIDE = (
    "onnxruntime_perf_test: the run of the session, from a tensor in host memory on; not checks, conversion from 8 "
    "bits, tiling. Which picture a query had is not known"
)
MAX_RESULT, MAX_SENSORS = 1 << 27, 1 << 26
SECOND = 1_000_000_000
NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,3})?)"
LINE = re.compile(rf"[^,\n]{{0,200}},{NUMBER},([0-9]{{1,18}}),-?[0-9]{{1,6}},[0-9]{{1,12}}")
FIGURES = {
    "load": (re.compile(rf"^Session creation time cost: ?{NUMBER} s", re.MULTILINE), SECOND),
    "first": (re.compile(rf"^First inference time cost: ?{NUMBER} ms", re.MULTILINE), SECOND // 1000),
}
"""What the program prints of its start, and how many ns its unit has."""
WINDOW = 8
RUN = r"""
mask=$1 seconds=$2 queries=$3 provider=$4 threads=$5 model=$6
for file in set-*.pb; do
    number=${file#set-}
    mkdir -p "test_data_set_${number%.pb}"
    cp "$file" "test_data_set_${number%.pb}/input_0.pb"
done
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
measure() {
    if [ "$mask" = - ]; then set -- ./perf-program "$@"; else set -- taskset "$mask" ./perf-program "$@"; fi
    "$@" -e "$provider" -c 1 -x "$threads" -y 1 -o 99 -C 'session.set_denormal_as_zero|1' "./$model" perf.csv
}
rm -f perf.csv
watch > sensors.txt 2>&1 &
watcher=$!
trap 'kill "$watcher"' EXIT
trap 'exit 143' TERM
code=0
measure -m duration -t "$seconds" || code=$?
if [ "$code" -eq 0 ]; then
    count=$(grep -c , perf.csv) || count=0
    if [ "$count" -lt "$queries" ]; then measure -m times -r "$((queries - count))" || code=$?; fi
fi
exit "$code"
"""
"""The job: affinity mask or -, seconds, queries, provider, threads, model."""


def read_result(text: str) -> tuple[list[int], int]:
    """The samples of a result file in ns, and the peak memory in bytes; statistics after them are not read.

    Raises TransferError for anything else.
    """
    ns, peak = [], 0
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            if "," in line:
                raise TransferError(f"the benchmark program's result file has a line that is no result: {line[:80]!r}")
            continue
        seconds = float(found[1])
        if not 0 < seconds < 1e6:
            raise TransferError(f"the benchmark program reports a query that took {found[1]} s")
        ns.append(max(1, round(seconds * SECOND)))
        peak = max(peak, int(found[2]))
    if not ns:
        raise TransferError("the benchmark program ended well, but its result file holds no query")
    return ns, peak


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


def figure(name: str, output: str) -> int:
    """Nanoseconds of loading or the first query, as the program prints them; 0 where it does not."""
    pattern, unit = FIGURES[name]
    found = pattern.search(output)
    value = float(found[1]) if found else 0.0
    return round(value * unit) if value < 1e9 else 0


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
        if more or target.runtime != "onnxruntime":
            raise InputError("--perf-binary times onnxruntime alone")
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
        # Writes the pictures as the program reads them.
        require("onnx", "export")
        self.request, self.program, self.target = request, program, target
        name = job_prefix(request.artifact) + sha256_text(request.digest + RUN + sha256_file(program))[:12]
        super().__init__(transport, name, telling, pace)

    def _failed_before(self) -> None:
        self.telling.notice(f"the last measurement on {self.transport.name} failed: starting it again")

    def _start(self) -> None:
        from onnx import numpy_helper

        artifact, plan, cores = self.request.artifact, self.request.wanted["plan"], self.request.settings.cores
        self.job.discard((RESULT, SENSORS))
        model = artifact.model_file
        files: dict[str, Path | bytes] = {model.name: artifact.read(model), PROGRAM: self.program}
        for i, rgb in enumerate(np.load(self.request.folder / IMAGES, allow_pickle=False)):
            files[f"set-{i}.pb"] = numpy_helper.from_array(to_input(rgb), "lr").SerializeToString()
        self._send(files)
        # The hexadecimal mask that `taskset` of Android takes: cores 4 to 7 are f0.
        mask = f"{sum(1 << core for core in cores):x}" if cores else "-"
        seconds, queries = max(1, math.ceil(plan["seconds"])), plan["queries"]
        provider, threads = self.target.device.lower(), self.target.threads or 0
        self._run(["sh", "-c", RUN, "sh", mask, str(seconds), str(queries), provider, str(threads), model.name])

    def _kept(self) -> str:
        return "nothing of it is kept: the program writes its result at its end"

    def _collect(self) -> Profile:
        limits = ((RESULT, MAX_RESULT), (SENSORS, MAX_SENSORS), (OUTPUT, MAX_SENSORS))
        result, sensors, output = (printable(self.job.read(name, limit)) for name, limit in limits)
        ns, peak = read_result(result)
        with atomic_path(self.request.journal) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for record in self._records(ns, peak, sensors, output):
                stream.write(json.dumps(record, separators=(",", ":")) + "\n")
        memory = [(0, peak)] if peak else [None]
        return Profile(write_profile(self.request.folder, self.request.journal, memory))

    def _records(self, samples: Sequence[int], peak: int, sensors: str, output: str) -> Iterator[Sequence[Any]]:
        """The journal that an agent would have written."""
        load, first = figure("load", output), figure("first", output)
        yield "header", self._header()
        yield "begin", {"t": 0, "now": 0, "wall": None, "boot": None, "memory": None}
        yield "load", 0, load
        yield "first", 0, first
        yield "warm", 0, 1, settled(samples)
        t, capacity = load + first, self.request.artifact.manifest.capacities[-1]
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
        wanted = {**self.request.wanted, "packages": [("perf_binary",)], "inside_the_clock": INSIDE}
        subjects = [{**subject, "runtime_versions": {"perf_binary": digest[:16]}} for subject in wanted["subjects"]]
        sent = {"format": FORMAT, "version": VERSION, "identity": digest, "subjects": subjects, "machine": machine}
        return header_from(sent, wanted, self.request.digest, facts)
