"""What changes while a machine works: clocks, temperatures, throttling, and who else works on it.

A sensor is a callable that returns {name: number}; a device's own, such as a power meter, is one more in the list. A
name's first part is its kind: "mhz.cpu0", "celsius.thermal_zone0", "throttled.cpu0", "load", "stolen", "busy".
"""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List

from ppexport.device.machine import names_in, read_number, read_text

Reading = Dict[str, float]
Sensor = Callable[[], Reading]


def cpu_clocks(root: str = "/") -> Reading:
    """MHz of every core that shows it."""
    base = ("sys", "devices", "system", "cpu")
    found: Reading = {}
    for core in names_in(root, *base):
        if core.startswith("cpu") and core[3:].isdigit():
            khz = read_number(root, *base, core, "cpufreq", "scaling_cur_freq")
            if khz is not None:
                found["mhz." + core] = khz / 1000
    return found


def throttling(root: str = "/") -> Reading:
    """How often every core was throttled for its heat since the start of the system."""
    base = ("sys", "devices", "system", "cpu")
    found: Reading = {}
    for core in names_in(root, *base):
        if core.startswith("cpu") and core[3:].isdigit():
            count = read_number(root, *base, core, "thermal_throttle", "core_throttle_count")
            if count is not None:
                found["throttled." + core] = count
    return found


def temperatures(root: str = "/") -> Reading:
    """Degrees Celsius of every thermal zone."""
    base = ("sys", "class", "thermal")
    found: Reading = {}
    for zone in names_in(root, *base):
        if zone.startswith("thermal_zone"):
            milli = read_number(root, *base, zone, "temp")
            # A zone that is switched off reads 0 or absurdly low.
            if milli is not None and -40_000 < milli < 200_000:
                kind = read_text(root, *base, zone, "type")
                found["celsius.%s" % (kind or zone)] = milli / 1000
    return found


def others(root: str = "/") -> Reading:
    """The load average, and seconds of all cores since the start: busy, and stolen by other virtual machines."""
    found: Reading = {}
    words = (read_text(root, "proc", "loadavg") or "").split()
    if words:
        found["load"] = float(words[0])
    for line in (read_text(root, "proc", "stat") or "").splitlines()[:1]:
        # user nice system idle iowait irq softirq steal, in hundredths of a second.
        ticks = [int(word) for word in line.split()[1:] if word.isdigit()]
        if line.startswith("cpu ") and len(ticks) >= 8:
            found["busy"] = (sum(ticks[:3]) + sum(ticks[5:7])) / 100
            found["stolen"] = ticks[7] / 100
    return found


def local_sensors(root: str = "/") -> List[Sensor]:
    """Those of this machine that show anything."""
    candidates = (cpu_clocks, throttling, temperatures, others)
    return [_bind(sensor, root) for sensor in candidates if sensor(root)]


def _bind(sensor: Callable[[str], Reading], root: str) -> Sensor:
    return lambda: sensor(root)


def read_all(sensors: Iterable[Sensor]) -> Reading:
    """What all *sensors* show; one that fails shows nothing."""
    found: Reading = {}
    for sensor in sensors:
        try:
            found.update(sensor())
        except (OSError, ValueError):
            continue
    return found
