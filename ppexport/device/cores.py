"""How many threads of a runtime help on this machine: its cores, as far as this process may use them.

    affinity     the processors that `taskset`, a container's cpuset or a batch system leave to the process
    siblings     of the processors that share one core, as hyper-threads do, only one counts as a core
    quota        the time that a container's control group grants, in processors: 1.5 of them keep two threads busy

More threads than processors only wait for each other, and thousands of them stall a machine for minutes. Two on one
core share its arithmetic, so that for dense networks one thread for each core is the usual best.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from pathlib import Path, PurePosixPath

from ppexport.device.machine import read_number, read_text


def usable_processors(root: str = "/") -> int:
    """Processors that this process may keep busy, hyper-threads among them: the most threads that can help."""
    return max(1, math.ceil(min(len(_allowed()), _quota(root))))


def usable_cores(root: str = "/") -> int:
    """Physical cores that this process may keep busy: the usual best number of threads.

    Where the system does not say which processors share a core, as on Windows, each counts as one.
    """
    allowed = _allowed()
    cores = {_siblings(root, number) or str(number) for number in allowed}
    return max(1, math.ceil(min(len(cores), _cores_of_macos() or len(cores), _quota(root))))


def _allowed() -> list[int]:
    """The numbers of the processors that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _siblings(root: str, number: int) -> str | None:
    """The processors that share a core with processor *number*, as Linux lists them, such as "0,4"."""
    topology = Path(root, "sys/devices/system/cpu/cpu{}/topology".format(number))
    # The newer name, and the one that Linux before 5.3 has.
    return read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")


def _cores_of_macos() -> int | None:
    """The physical cores of a Mac, None elsewhere."""
    if platform.system() != "Darwin":
        return None
    count, length = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = ctypes.CDLL(None).sysctlbyname(b"hw.physicalcpu", ctypes.byref(count), ctypes.byref(length), None, 0)
    return None if failed else count.value or None


def _quota(root: str) -> float:
    """How many processors' time control groups grant, the least of all that apply; infinite without a limit."""
    granted = [math.inf]
    for line in (read_text(Path(root, "proc/self/cgroup")) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        # Version 2 has one tree, and no name of a controller.
        second = not controllers
        if not second and "cpu" not in controllers.split(","):
            continue
        tree = Path(root, "sys/fs/cgroup" if second else "sys/fs/cgroup/cpu")
        # A container sees its own group as the root of the tree, and may still be told its name on the host.
        for part in (PurePosixPath(group), *PurePosixPath(group).parents):
            granted.append(_granted(tree / str(part).lstrip("/"), second))
    return min(granted)


def _granted(folder: Path, second: bool) -> float:
    """What the control group of *folder*, of version 2 or 1, grants."""
    if second:
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
        if not (quota.isdigit() and period.isdigit()):
            return math.inf
        numbers = float(quota), float(period)
    else:
        first = read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")
        numbers = first[0] or 0.0, first[1] or 0.0
    # A quota of -1 is none.
    return numbers[0] / numbers[1] if min(numbers) > 0 else math.inf
