"""What an Android phone says of its heat, and core affinity."""

from __future__ import annotations

import re
import time
from typing import Callable, Iterable, List, Set

from ppexport.device.jetson import said_by
from ppexport.device.sensors import Reading

STATUS = re.compile(r"^\s*Thermal Status: ([0-6])\s*$", re.MULTILINE)
TEMPERATURE = re.compile(r"Temperature\{mValue=(-?\d{1,3}(?:\.\d{1,8})?), mType=(-?\d{1,2}), mName=([^,}]{1,40}),")
CURRENT = "Current temperatures from HAL:"
MAX_CORES = 64
DUMP = ("dumpsys", "thermalservice")
SECONDS = 5.0
"""Between two questions, each of which starts a program there."""
PAUSES = 20
"""Between two questions, at least so many times as long as the answer took."""


def thermal(text: str) -> Reading:
    """`dumpsys thermalservice`: "throttling" 0 (none) to 6 (shutdown), and "celsius.NAME".

    Readings from the hardware now are preferred to those that the service kept from the last event.
    """
    found: Reading = {}
    status = STATUS.search(text)
    if status is not None:
        found["throttling"] = float(status.group(1))
    kept, title, current = text.partition(CURRENT)
    for part in (kept, current if title else ""):
        for celsius, _, name in TEMPERATURE.findall(part):
            if -40 < float(celsius) < 200:
                found["celsius." + name.strip()] = float(celsius)
    return found


class Thermal:
    """A sensor: what `dumpsys thermalservice` says, asked every few seconds and told again in between."""

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


def core_list(text: str) -> List[int]:
    """The cores that "4-7" or "0,2,6-7" names, ascending. Raises ValueError with one sentence."""
    cores: Set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", part.strip())
        if match is None:
            raise ValueError("cores are such as 4-7 or 0,2,6-7, not %r" % text)
        first = int(match.group(1))
        last = first if match.group(2) is None else int(match.group(2))
        if last < first or last >= MAX_CORES:
            raise ValueError("cores count up from 0 to %d, which %r does not" % (MAX_CORES - 1, part))
        cores.update(range(first, last + 1))
    return sorted(cores)


def affinity_mask(cores: Iterable[int]) -> str:
    """The hexadecimal mask that `taskset` of Android takes: {4, 5, 6, 7} -> "f0"."""
    return "%x" % sum(1 << core for core in set(cores))
