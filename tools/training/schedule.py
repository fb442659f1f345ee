"""How far training has come, and the learning rate that belongs to it.

Progress runs from 0 to 1. A run of N steps adds 1/N per step. A run of so many hours, or until a certain moment, adds
to every step the share of the remaining time that the step took. Only time spent in steps counts: being killed,
stopped (SIGSTOP) or suspended costs nothing, and a moment to end at is kept by going through the rest faster.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import median

from ppexport.errors import InputError

_OUTLIER = 4.0
"""A step this many times slower than usual was stopped in between and counts as a usual one."""
_WINDOW = 51
_MINIMUM = 5
"""Steps needed to know what is usual."""


@dataclass
class StepClock:
    """Seconds a step really trained: its duration, but the usual one if it was stopped or suspended in between."""

    paces: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """Seconds per LR pixel of the last steps."""

    def count(self, seconds: float, pixels: int) -> float:
        """Seconds to count for a step of *pixels* LR pixels that lasted *seconds*."""
        pace = seconds / pixels
        usual = median(self.paces) if len(self.paces) >= _MINIMUM else pace
        # The true pace is remembered, so that a machine that has become slow is believed after half a window.
        self.paces.append(pace)
        return pixels * usual if pace > _OUTLIER * usual else seconds


@dataclass(frozen=True)
class Schedule:
    """End of the run (exactly one of three) and the learning rate: linear warm-up, then half a cosine to the floor."""

    lr: float
    floor: float
    warmup: int
    steps: int | None = None
    hours: float | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.steps, self.hours, self.until)) != 1:
            raise InputError("the length of a run is given by one of --steps, --hours and --until")
        if (self.steps is not None and self.steps < 1) or (self.hours is not None and self.hours <= 0):
            raise InputError("a run has at least one step and takes some time")
        if not 0 <= self.floor <= self.lr:
            raise InputError(f"the learning rate falls from --lr {self.lr} to --floor {self.floor}, which is above it")

    def advance(self, progress: float, step: int, trained: float, seconds: float, now: datetime) -> float:
        """Progress after step number *step* (from 1), which counted for *seconds* of *trained* seconds in all."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        if self.hours is not None:
            return min(1.0, trained / (3600 * self.hours))
        assert self.until is not None
        left = (self.until - now).total_seconds() + seconds
        # A step that would end after the moment is not begun: half a step's time left is no time.
        return 1.0 if left <= 1.5 * seconds else progress + (1 - progress) * seconds / left

    def resume(self, progress: float, step: int, trained: float) -> float:
        """Progress of a run that is continued, perhaps with another number of steps or hours than before."""
        if self.until is not None:
            return progress
        return self.advance(progress, step, trained, 0.0, datetime.now(timezone.utc))

    def rate(self, progress: float, step: int) -> float:
        """Learning rate of step number *step* (from 0) at *progress*."""
        cosine = self.floor + (self.lr - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        return cosine * min(1.0, (step + 1) / max(1, self.warmup))
