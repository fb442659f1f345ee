"""Busy neighbours: programs that keep cores busy while something is measured, as the apps of a phone or a board do.

A runtime that is alone on a machine may let its threads spin while they wait for each other. Beside a neighbour they
spin in the place of the thread that they wait for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from ppexport.device.machine import read_text

MOST = 64
"""More would say nothing of a neighbour, and take a machine from its users."""
# Ends by itself once the measuring process has ended, however that happened.
PROGRAM = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100000):
        pass
"""


class Neighbours:
    """A number of programs that compute without a pause while the `with` block runs, on the cores of this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Neighbours:
        command = [sys.executable, "-S", "-c", PROGRAM, str(os.getpid())]
        for _ in range(self.count):
            self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for neighbour in self._running:
            neighbour.kill()
        for neighbour in self._running:
            neighbour.wait()
        self._running.clear()

    def cpu(self) -> int:
        """Nanoseconds of processor time that they have used, 0 where the system does not say."""
        return sum(_spent(neighbour.pid) for neighbour in self._running)


def _spent(process: int) -> int:
    # The name, in brackets, may hold spaces.
    fields = (read_text(Path("/proc/{}/stat".format(process))) or "").rpartition(")")[2].split()
    if len(fields) < 13:
        return 0
    return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
