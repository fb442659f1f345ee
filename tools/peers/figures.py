"""Statistics of interleaved timings. All times are in seconds, but for `Spread`, which is in ms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Rounds: TypeAlias = Sequence[Sequence[float]]
"""For every round the times of all its runs of one candidate."""

LEVEL = 0.95
RESAMPLES = 5000


@dataclass(frozen=True)
class Interval:
    """A median and its bootstrap 95 % interval."""

    low: float
    middle: float
    high: float

    def map(self, factor: float, offset: float = 0.0) -> Interval:
        """The interval of factor * x + offset."""
        ends = sorted((self.low * factor + offset, self.high * factor + offset))
        return Interval(ends[0], self.middle * factor + offset, ends[1])


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile of all runs, in ms."""

    median: float
    p10: float
    p90: float


def spread(rounds: Rounds) -> Spread:
    """The spread of all runs of all *rounds*."""
    low, middle, high = np.percentile([1e3 * t for times in rounds for t in times], (10, 50, 90))
    return Spread(float(middle), float(low), float(high))


def round_ratios(above: Rounds, below: Rounds) -> list[float]:
    """Per round, the mean time in *above* divided by that in *below*.

    Within a round the machine is nearly the same for both; over the whole run its speed changes by a third.
    """
    return [float(np.mean(a) / np.mean(b)) for a, b in zip(above, below, strict=True)]


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of *values* with its percentile bootstrap interval, the same for the same *seed*."""
    sample = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    medians = np.median(sample[chosen], axis=1)
    low, high = np.percentile(medians, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    return Interval(float(low), float(np.median(sample)), float(high))
