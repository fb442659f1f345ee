"""What a machine is, as far as it tells: Linux in full, other systems what Python knows."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set

MAX_TEXT = 4096
SECONDS = 30.0
"""Time of a program of the system."""
MAX_CORES = 64


def read_text(root: str, *parts: str) -> Optional[str]:
    """The stripped text of a small file below *root*, None where it cannot be read."""
    try:
        with open(os.path.join(root, *parts), encoding="utf-8", errors="replace") as stream:
            return stream.read(MAX_TEXT).replace("\0", "").strip()
    except OSError:
        return None


def read_number(root: str, *parts: str) -> Optional[float]:
    """The number in a small file below *root*, None where there is none."""
    try:
        return float(read_text(root, *parts) or "")
    except ValueError:
        return None


def names_in(root: str, *parts: str) -> List[str]:
    """The sorted names in a folder below *root*, none where it cannot be read."""
    try:
        return sorted(os.listdir(os.path.join(root, *parts)))
    except OSError:
        return []


def fields(text: Optional[str], separator: str = ":") -> Dict[str, str]:
    """`name : value` lines, the first of every name."""
    found: Dict[str, str] = {}
    for line in (text or "").splitlines():
        name, colon, value = line.partition(separator)
        if colon:
            found.setdefault(name.strip(), value.strip().strip('"'))
    return found


Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_command(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run *command* without input. Raises OSError, subprocess.TimeoutExpired."""
    return subprocess.run(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def said_by(command: Sequence[str], run: Run = run_command) -> str:
    """What a program prints, empty where it is missing, fails or does not end."""
    try:
        done = run(command)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def cpu_name(root: str) -> str:
    """The processor's name, and its number where a hypervisor hides the name."""
    cpu = fields(read_text(root, "proc", "cpuinfo"))
    # ARM boards name the whole board instead, and a core design that many have.
    model = read_text(root, "proc", "device-tree", "model") or read_text(root, "sys", "devices", "soc0", "machine")
    name = model or cpu.get("model name") or cpu.get("Hardware") or platform.processor() or platform.machine()
    if "cpu family" in cpu and "model" in cpu:
        name += " (family %s, model %s)" % (cpu["cpu family"], cpu["model"])
    return name


def governors(root: str) -> List[str]:
    """The different frequency governors of the cores; empty where the system shows none."""
    base = ("sys", "devices", "system", "cpu")
    cores = [n for n in names_in(root, *base) if n.startswith("cpu") and n[3:].isdigit()]
    found = {read_text(root, *base, core, "cpufreq", "scaling_governor") for core in cores}
    return sorted(g for g in found if g)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def memory_bytes(field: str, root: str = "/") -> Optional[int]:
    """Bytes of memory by a line of /proc/meminfo, such as "MemTotal"; None where the system does not say."""
    words = fields(read_text(root, "proc", "meminfo")).get(field, "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def describe(root: str = "/") -> Dict[str, Any]:
    """The machine: names, cores, memory, system, governor. What is not known is null or left out."""
    release = fields(read_text(root, "etc", "os-release"), "=")
    return {
        "cpu": cpu_name(root),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "memory_bytes": memory_bytes("MemTotal", root),
        "board": read_text(root, "proc", "device-tree", "model"),
        "system": release.get("PRETTY_NAME") or "%s %s" % (platform.system(), platform.release()),
        "kernel": platform.release(),
        "governors": governors(root),
        "virtual": "hypervisor" in (read_text(root, "proc", "cpuinfo") or "").split(),
        "python": platform.python_version(),
        "environment": environment(os.environ),
    }


def environment(values: Any) -> Dict[str, str]:
    """The environment variables that change how fast a runtime is, and nothing else of the environment."""
    prefixes = ("OMP_", "KMP_", "OPENBLAS_", "MKL_", "GOMP_", "ORT_", "OV_")
    return {name: values[name][:200] for name in sorted(values) if name.startswith(prefixes)}


def peak_memory(root: str = "/") -> Optional[int]:
    """Most memory that this process has had in use so far (resident), in bytes; None where the system is silent."""
    # Not ru_maxrss on Linux: that begins with the size of the process that started this one.
    words = fields(read_text(root, "proc", "self", "status")).get("VmHWM", "").split()
    if words and words[0].isdigit():
        return int(words[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def versions(packages: Iterable[str]) -> Dict[str, str]:
    """The versions of those of *packages* that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# The clocks. Durations come from the monotonic one alone; the others tell what happened to the machine meanwhile.


_BOOT: Optional[int] = getattr(time, "CLOCK_BOOTTIME", None)


TRIES = 5
TOGETHER = 1_000_000
"""Nanoseconds within which readings count as made at one moment."""


class Clock:
    """Nanoseconds. Tests replace it."""

    def now(self) -> int:
        """Monotonic: never set, stops while the machine sleeps."""
        return time.perf_counter_ns()

    def cpu(self) -> int:
        """Processor time of all threads of this process: what a paused process does not use."""
        return time.process_time_ns()

    def wall(self) -> int:
        """Time of day, which may be set."""
        return time.time_ns()

    def boot(self) -> Optional[int]:
        """As `now`, but continues while the machine sleeps; None where the system has none."""
        return None if _BOOT is None else time.clock_gettime_ns(_BOOT)

    def reading(self) -> Dict[str, Optional[int]]:
        """All of them at one moment: of a few tries the one that was interrupted least."""
        best: Dict[str, Optional[int]] = {}
        least = None
        for _ in range(TRIES):
            now = self.now()
            found = {"now": now, "wall": self.wall(), "boot": self.boot()}
            taken = self.now() - now
            if least is None or taken < least:
                best, least = found, taken
            if taken < TOGETHER:
                break
        return best
