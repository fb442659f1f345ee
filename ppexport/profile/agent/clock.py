"""The clocks. Durations come from the monotonic one alone; the others tell what happened to the machine meanwhile."""

from __future__ import annotations

import time
from typing import Dict, Optional

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
        """As `now`, but goes on while the machine sleeps; None where the system has none."""
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
