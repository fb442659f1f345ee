"""What changes while a machine works: clocks, temperatures, throttling, power, and who else works on it.

A sensor is a callable that returns {name: number}. The first part of a name is its kind: "mhz.cpu0",
"celsius.thermal_zone0", "throttled.cpu0", "load", "stolen", "busy".
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Callable, Dict

from ppexport.device.machine import core_folders, read_number, read_text, said_by

Reading = Dict[str, float]
Sensor = Callable[[], Reading]
OF_CORES = (("mhz", "cpufreq/scaling_cur_freq", 1000), ("throttled", "thermal_throttle/core_throttle_count", 1))
"""Kind of a reading, its file in the folder of a core, and what its number is divided by."""


def system_reading(root: str = "/") -> Reading:
    """What Linux shows of every machine.

    MHz of every core, how often each was throttled since the start, degrees Celsius of every thermal zone, the load
    average, and seconds of all cores since the start: busy, and stolen by other virtual machines.
    """
    found: Reading = {}
    for core in core_folders(root):
        for kind, file, unit in OF_CORES:
            value = read_number(core / file)
            if value is not None:
                found[f"{kind}.{core.name}"] = value / unit
    for zone in sorted(Path(root).glob("sys/class/thermal/thermal_zone*")):
        milli = read_number(zone / "temp")
        # A zone that is switched off reads 0 or absurdly low.
        if milli is not None and -40_000 < milli < 200_000:
            found[f"celsius.{read_text(zone / 'type') or zone.name}"] = milli / 1000
    words = (read_text(Path(root, "proc/loadavg")) or "").split()
    if words:
        found["load"] = float(words[0])
    # user nice system idle iowait irq softirq steal, in hundredths of a second.
    name, *words = (read_text(Path(root, "proc/stat")) or "").partition("\n")[0].split() or [""]
    ticks = [int(word) for word in words if word.isdigit()]
    if name == "cpu" and len(ticks) >= 8:
        found["busy"] = (sum(ticks[:3]) + sum(ticks[5:7])) / 100
        found["stolen"] = ticks[7] / 100
    return found


def read_all(sensors: Iterable[Sensor]) -> Reading:
    """What all *sensors* show; one that fails shows nothing."""
    found: Reading = {}
    for sensor in sensors:
        try:
            found.update(sensor())
        except (OSError, ValueError):
            continue
    return found


# `tegrastats`, which prints the power, temperatures and clocks of a Jetson.
#
# What differs between releases: JetPack 4 prints milliwatts without a unit, from JetPack 5 on `mW` follows; Xavier and
# older boards name a PMIC of 100 degrees that is no sensor; zones without power show -256; the GPU's clock is `0%@305`
# or, with a clock for every cluster, `0%@[305,305]`.


CORES = re.compile(r"\bCPU \[([^\]]{0,400})\]")
CORE = re.compile(r"(\d{1,3})%@(\d{1,5})")
CLOCKS = re.compile(r"\b(EMC|GR3D)_FREQ (\d{1,3})%(?:@\[?(\d{1,5}))?")
TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_-]{0,30})@(-?\d{1,3}(?:\.\d{1,4})?)C\b")
POWER = re.compile(r"\b([A-Z][A-Z0-9_]{1,30}) (\d{1,7})(?:mW)?/(\d{1,7})(?:mW)?(?= |$)")
MEMORY = re.compile(r"\bRAM (\d{1,7})/(\d{1,7})MB")
TOTALS = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    # AGX Orin has no rail for all; what else it lists, VDDQ_VDD2_1V8AO, comes out of VIN_SYS_5V0.
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    # AGX Xavier.
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that add up to the module's power, by board; the first set that is whole counts."""
MAX_LINE = 4096
INTERVAL_MS = 500


def parse_line(line: str) -> Reading:
    """One line of tegrastats as a reading; empty where it is none.

    Names: "watts.RAIL", "watts.total" where the rails add up to the module, "celsius.ZONE", "mhz.cpuN", "mhz.gpu",
    "mhz.memory", "share.gpu" (0 to 1) and "bytes.ram".
    """
    found: Reading = {}
    memory = MEMORY.search(line)
    if memory is None:
        return found
    found["bytes.ram"] = float(int(memory[1]) << 20)
    cores = CORES.search(line)
    for number, text in enumerate(cores[1].split(",") if cores else ()):
        core = CORE.fullmatch(text.strip())
        # A core that is off shows no clock.
        if core is not None:
            found[f"mhz.cpu{number}"] = float(core[2])
    for unit, share, mhz in CLOCKS.findall(line):
        name = "gpu" if unit == "GR3D" else "memory"
        found["share." + name] = int(share) / 100
        if mhz:
            found["mhz." + name] = float(mhz)
    for zone, celsius in TEMPERATURE.findall(line):
        if float(celsius) > -40 and not (zone == "PMIC" and float(celsius) == 100):
            found["celsius." + zone] = float(celsius)
    rails = {name: int(now) / 1000 for name, now, _ in POWER.findall(line) if name not in ("RAM", "SWAP", "NC")}
    found.update((f"watts.{name}", watts) for name, watts in rails.items())
    whole = next((names for names in TOTALS if all(name in rails for name in names)), ())
    if whole:
        found["watts.total"] = sum(rails[name] for name in whole)
    return found


class Tegrastats:
    """A sensor: the last line of a `tegrastats` that runs beside the measurement. Call `close` at the end."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises OSError where the program cannot be started."""
        self._last: Reading = {}
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._read, args=(self._child.stdout,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(MAX_LINE), b""):
            self._last = parse_line(line.decode("utf-8", "replace"))
        # A program that ended says nothing about now.
        self._last = {}

    def __call__(self) -> Reading:
        """What the last line said; empty before the first and after the program has ended."""
        return dict(self._last)

    def close(self) -> None:
        """End the program."""
        self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._thread.join(5)
        if self._child.stdout is not None:
            self._child.stdout.close()


def joules(times_ns: Sequence[int], watts: Sequence[float | None], begin_ns: int, end_ns: int) -> float | None:
    """Energy between two moments from readings of power, by the trapezoidal rule.

    *times_ns* ascend; a reading that is missing is None. None where fewer than two readings lie in the interval, or
    the first and last leave more than a tenth of it uncovered.
    """
    points = [(t, w) for t, w in zip(times_ns, watts) if w is not None and begin_ns <= t <= end_ns]
    if len(points) < 2 or end_ns <= begin_ns or points[-1][0] - points[0][0] < 0.9 * (end_ns - begin_ns):
        return None
    area = sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in zip(points, points[1:]))
    # Where no reading covers the ends, the mean power counts.
    return float(area / (points[-1][0] - points[0][0]) * (end_ns - begin_ns) / 1e9)


# What an Android phone shows of its heat.


STATUS = re.compile(r"^\s*Thermal Status: ([0-6])\s*$", re.MULTILINE)
PHONE_CELSIUS = re.compile(r"Temperature\{mValue=(-?\d{1,3}(?:\.\d{1,8})?), mType=-?\d{1,2}, mName=([^,}]{1,40}),")
DUMP = ("dumpsys", "thermalservice")
SECONDS = 5.0
"""Between two calls of the program, which starts a process each time."""
PAUSES = 20
"""The pause between two calls is at least this many times as long as the last call took."""


def thermal(text: str) -> Reading:
    """`dumpsys thermalservice`: "throttling" 0 (none) to 6 (shutdown), and "celsius.NAME".

    The current temperatures come last in the text, so that they replace those that the service kept from the last
    event.
    """
    found: Reading = {}
    status = STATUS.search(text)
    if status is not None:
        found["throttling"] = float(status[1])
    for celsius, name in PHONE_CELSIUS.findall(text):
        if -40 < float(celsius) < 200:
            found["celsius." + name.strip()] = float(celsius)
    return found


class Thermal:
    """A sensor: `dumpsys thermalservice`, which is called every few seconds; its last answer counts in between."""

    def __init__(self, ask: Callable[[], str] = lambda: said_by(DUMP)) -> None:
        self._ask = ask
        self._last: Reading = {}
        self._next = 0.0

    def __call__(self) -> Reading:
        """Temperatures and throttling."""
        begin = time.monotonic()
        if begin >= self._next:
            self._last = thermal(self._ask())
            now = time.monotonic()
            # A phone that answers slowly, or not at all, is asked less often: the measurement waits meanwhile.
            self._next = now + max(SECONDS, PAUSES * (now - begin))
        return dict(self._last)


@contextmanager
def board_sensors() -> Iterator[list[Sensor]]:
    """The sensors of a Jetson, by `tegrastats`, or of a phone, by `dumpsys`; ended with the block."""
    program, tegrastats = shutil.which("tegrastats"), None
    if program is not None:
        with suppress(OSError):
            tegrastats = Tegrastats((program, "--interval", str(INTERVAL_MS)))
    sensors: list[Sensor] = [] if tegrastats is None else [tegrastats]
    if shutil.which("dumpsys") is not None and shutil.which("getprop") is not None:
        sensors.append(Thermal())
    try:
        yield sensors
    finally:
        if tegrastats is not None:
            tegrastats.close()
