"""Frames that are ready in time: fewer slots where all that are needed would take too long.

A capacity set can run category attention on fewer slots than a tile has impure tokens. What has no slot then is not
what the network would give, so this is a loss, and it is counted; but a run takes less time. For every tile the
scheduler divides the time that the frame has left among the tiles that it still has to run, and takes the largest
capacity that fits, never more than the tile needs, and the smallest where none fits.

How long a run takes at each capacity is measured before the first frame, at a few of them, and then with every run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from ppexport.device.runner import Prepared, Runner
from ppexport.errors import InputError

PROBES = 5
"""Capacities of a set that are timed at first."""
WEIGHT = 0.25
"""Of a new time in the running mean."""
MARGIN = 0.95
"""Share of the time that is planned with."""


class Deadline:
    """Chooses capacities so that a frame takes at most `budget` seconds.

    Its methods are called in the thread that runs the tiles, except `ended`.
    """

    def __init__(self, fps: float, capacities: Sequence[int]) -> None:
        """Raises InputError unless *fps* is above 0 and finite."""
        if not 0 < fps < float("inf"):
            raise InputError(f"a deadline is a number of frames a second above 0, not {fps}")
        self.fps, self.budget = fps, 1 / fps
        self.capacities = list(capacities)
        self.in_time = self.frames = 0
        self._times: dict[int, float] = {}
        self._around = 0.0
        self._lock = threading.Lock()

    def calibrate(self, runner: Runner) -> None:
        """Time runs of *runner* at a few capacities, twice each, of which the second counts."""
        lr = np.full((1, 3, *runner.size), 0.5, np.float32)
        prepared: Prepared = runner.prepare(lr)
        places = np.linspace(0, len(self.capacities) - 1, min(PROBES, len(self.capacities))).round().astype(int)
        for capacity in [self.capacities[i] for i in places] or [prepared.capacity]:
            for _ in range(2):
                begin = time.perf_counter()
                runner.run(prepared._replace(capacity=capacity))
                seconds = time.perf_counter() - begin
            self._times[capacity] = seconds

    def expected(self, capacity: int) -> float:
        """Seconds that a run with *capacity* slots takes, as far as is known."""
        if not self._times:
            return 0.0
        known = sorted(self._times)
        return float(np.interp(capacity, known, [self._times[c] for c in known]))

    def choose(self, needed: int, tiles: int, passed: float) -> int:
        """The capacity for a tile.

        Args:
            needed: the smallest capacity that holds the tile's impure tokens, or the largest.
            tiles: tiles of the frame that are still to run, this one included.
            passed: seconds since the frame was begun.
        """
        fitting = [c for c in self.capacities if c <= needed]
        share = (self.budget * MARGIN - self._around - passed) / tiles
        return next((c for c in reversed(fitting) if self.expected(c) <= share), fitting[0] if fitting else needed)

    def observe(self, capacity: int, seconds: float) -> None:
        """Learn from a run."""
        before = self._times.get(capacity, seconds)
        self._times[capacity] = before + WEIGHT * (seconds - before)

    def ended(self, seconds: float, around: float) -> None:
        """Count a frame that took *seconds*, of which *around* were not in the runner."""
        with self._lock:
            self.frames += 1
            self.in_time += seconds <= self.budget
            self._around += WEIGHT * (min(around, self.budget) - self._around)
