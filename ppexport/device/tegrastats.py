"""`tegrastats`, which a Jetson prints power, temperatures and clocks with: its lines, and a sensor that reads them.

What differs between releases: JetPack 4 prints milliwatts without a unit, from JetPack 5 on `mW` follows; Xavier and
older name a 100 degree PMIC that is no sensor; zones without power show -256; the GPU's clock is `0%@305` or, with
a clock for every cluster, `0%@[305,305]`.
"""

from __future__ import annotations

import re
import subprocess
import threading
from typing import IO, Dict, List, Optional, Sequence, Tuple

from ppexport.device.sensors import Reading

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
    found["bytes.ram"] = float(int(memory.group(1)) << 20)
    cores = CORES.search(line)
    for number, text in enumerate(cores.group(1).split(",") if cores else ()):
        core = CORE.fullmatch(text.strip())
        # A core that is off shows no clock.
        if core is not None:
            found["mhz.cpu%d" % number] = float(core.group(2))
    for unit, share, mhz in CLOCKS.findall(line):
        name = "gpu" if unit == "GR3D" else "memory"
        found["share." + name] = int(share) / 100
        if mhz:
            found["mhz." + name] = float(mhz)
    for zone, celsius in TEMPERATURE.findall(line):
        if float(celsius) > -40 and not (zone == "PMIC" and float(celsius) == 100):
            found["celsius." + zone] = float(celsius)
    rails = {name: int(now) / 1000 for name, now, _ in POWER.findall(line) if name not in ("RAM", "SWAP", "NC")}
    for name, watts in rails.items():
        found["watts." + name] = watts
    total = total_power(rails)
    if total is not None:
        found["watts.total"] = total
    return found


def total_power(rails: Dict[str, float]) -> Optional[float]:
    """Watts of the module, None where *rails* {name: watts} do not add up to it."""
    for names in TOTALS:
        if all(name in rails for name in names):
            return sum(rails[name] for name in names)
    return None


class Tegrastats:
    """A sensor: the last line of a `tegrastats` that runs beside the measurement. Call `close` at the end."""

    OPTIONS = ("--interval", str(INTERVAL_MS))

    def __init__(self, command: Sequence[str]) -> None:
        """Raises OSError where the program cannot be started."""
        self._last: Reading = {}
        self._child = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._read, args=(self._child.stdout,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        while True:
            line = stream.readline(MAX_LINE)
            if not line:
                # A program that ended says nothing of now.
                self._last = {}
                return
            self._last = parse_line(line.decode("utf-8", "replace"))

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


def joules(times_ns: Sequence[int], watts: Sequence[Optional[float]], begin_ns: int, end_ns: int) -> Optional[float]:
    """Energy between two moments from readings of power, by the trapezoidal rule.

    *times_ns* ascend; a reading that is missing is None. None where fewer than two readings lie in the interval, or
    the first and last leave more than a tenth of it uncovered.
    """
    points: List[Tuple[int, float]] = [
        (t, w) for t, w in zip(times_ns, watts) if w is not None and begin_ns <= t <= end_ns
    ]
    if len(points) < 2 or end_ns <= begin_ns or points[-1][0] - points[0][0] < 0.9 * (end_ns - begin_ns):
        return None
    area = sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in zip(points, points[1:]))
    # The ends that no reading covers go on at the mean power.
    return float(area / (points[-1][0] - points[0][0]) * (end_ns - begin_ns) / 1e9)
