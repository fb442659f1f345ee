"""What a machine is, as far as the system shows it: Linux in full, other systems what Python knows."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable

MAX_TEXT = 4096
SECONDS = 30.0
"""Time that a program of the system may take."""
ENVIRONMENT = ("OMP_", "KMP_", "OPENBLAS_", "MKL_", "GOMP_", "ORT_", "OV_")
"""Prefixes of the environment variables that change how fast a runtime is."""


def read_text(path: Path) -> str | None:
    """The stripped text of a small file, None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(MAX_TEXT).replace("\0", "").strip()
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """The number in a small file, None where there is none."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def core_folders(root: str) -> list[Path]:
    """The folder of every core in the system's tree below *root*."""
    return sorted(Path(root).glob("sys/devices/system/cpu/cpu[0-9]*"))


def _fields(path: Path, separator: str = ":") -> dict[str, str]:
    """The `name : value` lines of a small file; the first one where a name comes several times."""
    found: dict[str, str] = {}
    for line in (read_text(path) or "").splitlines():
        name, parted, value = line.partition(separator)
        if parted:
            found.setdefault(name.strip(), value.strip().strip('"'))
    return found


Run = Callable[["Sequence[str]"], "subprocess.CompletedProcess[str]"]


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run *command* without input. Raises OSError, subprocess.TimeoutExpired."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )  # fmt: skip


def said_by(command: Sequence[str], run: Run = run_command) -> str:
    """What a program prints, empty where it is missing, fails or does not end in time."""
    try:
        done = run(command)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def cpu_name(root: str) -> str:
    """The processor's name, and its number where a hypervisor hides the name."""
    cpu = _fields(Path(root, "proc/cpuinfo"))
    # ARM boards name the whole board instead, and a core design that many have.
    model = read_text(Path(root, "proc/device-tree/model")) or read_text(Path(root, "sys/devices/soc0/machine"))
    name = model or cpu.get("model name") or cpu.get("Hardware") or platform.processor() or platform.machine()
    if "cpu family" in cpu and "model" in cpu:
        name += f" (family {cpu['cpu family']}, model {cpu['model']})"
    return name


def _kilobytes(path: Path, field: str) -> int | None:
    """Bytes by a line such as `MemTotal: 2048 kB`; None where there is none."""
    words = _fields(path).get(field, "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def memory_bytes(field: str, root: str = "/") -> int | None:
    """Bytes of memory by a line of /proc/meminfo, such as "MemTotal"; None where the system does not say."""
    return _kilobytes(Path(root, "proc/meminfo"), field)


def describe(root: str = "/") -> dict[str, Any]:
    """The machine: names, cores, memory, system, frequency governors. What is not known is null or empty."""
    system = _fields(Path(root, "etc/os-release"), "=").get("PRETTY_NAME")
    governors = {read_text(core / "cpufreq/scaling_governor") for core in core_folders(root)}
    cores = os.cpu_count() or 1
    return {
        "cpu": cpu_name(root),
        "architecture": platform.machine(),
        "cores": cores,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        "memory_bytes": memory_bytes("MemTotal", root),
        "board": read_text(Path(root, "proc/device-tree/model")),
        "system": system or f"{platform.system()} {platform.release()}",
        "kernel": platform.release(),
        "governors": sorted(governor for governor in governors if governor),
        "virtual": "hypervisor" in (read_text(Path(root, "proc/cpuinfo")) or "").split(),
        "python": platform.python_version(),
        "environment": environment(os.environ),
    }


def environment(values: Any) -> dict[str, str]:
    """The environment variables that change how fast a runtime is, and nothing else of the environment *values*."""
    return {name: values[name][:200] for name in sorted(values) if name.startswith(ENVIRONMENT)}


def peak_memory() -> int | None:
    """Most memory that this process has had in use so far (resident), in bytes; None where the system is silent."""
    # Not ru_maxrss on Linux: that begins with the size of the process that started this one.
    peak = _kilobytes(Path("/proc/self/status"), "VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) if sys.platform == "darwin" else int(used) * 1024


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of *packages* that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


TRIES = 5
TOGETHER = 1_000_000
"""Nanoseconds within which readings count as made at one moment."""


class Clock:
    """The clocks of this machine, in nanoseconds.

    Durations come from the monotonic one alone; the others show what happened to the machine meanwhile.
    """

    def now(self) -> int:
        """Monotonic: never set, stops while the machine sleeps."""
        return time.perf_counter_ns()

    def cpu(self) -> int:
        """Processor time of all threads of this process: what a paused process does not use."""
        return time.process_time_ns()

    def wall(self) -> int:
        """Time of day, which may be set."""
        return time.time_ns()

    def boot(self) -> int | None:
        """As `now`, but continues while the machine sleeps; None where the system has no such clock."""
        clock = getattr(time, "CLOCK_BOOTTIME", None)
        return None if clock is None else time.clock_gettime_ns(clock)

    def reading(self) -> dict[str, Any]:
        """ "now", "wall" and "boot" at one moment: of a few tries the one that was interrupted least."""
        tries = []
        for _ in range(TRIES):
            now = self.now()
            found = {"now": now, "wall": self.wall(), "boot": self.boot()}
            tries.append((self.now() - now, found))
            if tries[-1][0] < TOGETHER:
                break
        return min(tries, key=lambda taken: taken[0])[1]
