"""What an Android phone says of itself, over `adb shell`: properties, temperatures, throttling, core affinity."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Set

from ppexport.profile.agent.sensors import Reading

PROPERTY = re.compile(r"^\[([A-Za-z0-9_.-]{1,100})\]: \[([^\n]{0,200})\]$", re.MULTILINE)
STATUS = re.compile(r"^\s*Thermal Status: ([0-6])\s*$", re.MULTILINE)
TEMPERATURE = re.compile(r"Temperature\{mValue=(-?\d{1,3}(?:\.\d{1,8})?), mType=(-?\d{1,2}), mName=([^,}]{1,40}),")
CURRENT = "Current temperatures from HAL:"
MAX_CORES = 64
FACTS = {
    "model": "ro.product.model", "maker": "ro.product.manufacturer", "soc": "ro.soc.model",
    "soc_maker": "ro.soc.manufacturer", "board": "ro.board.platform", "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk", "build": "ro.build.fingerprint", "abi": "ro.product.cpu.abi",
}  # fmt: skip


def properties(text: str) -> Dict[str, str]:
    """The facts of a phone from `getprop`; what it does not tell is left out."""
    found = dict(PROPERTY.findall(text))
    return {name: found[key] for name, key in FACTS.items() if found.get(key)}


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
