"""Statistics of latencies, in milliseconds. Nothing is ever left out of them: what disturbed a run is marked instead.

Neighbouring queries resemble each other: the machine's speed drifts, and images take turns. Intervals therefore come
from a bootstrap of blocks of consecutive queries (Künsch 1989), not of single ones, which would be too sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000
MEDIANS = 5000
"""Resamples of a median alone."""
MOST = 20_000
"""Queries that are resampled; of more, an even choice stands for all, so that time and memory stay bounded."""
MINUTE = 60e9
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap 95 % interval."""

    low: float
    middle: float
    high: float

    def map(self, factor: float, offset: float = 0.0) -> Interval:
        """The interval of factor * x + offset."""
        ends = sorted((self.low * factor + offset, self.high * factor + offset))
        return Interval(ends[0], self.middle * factor + offset, ends[1])


def interval_of(middle: float, found: Sequence[float] | Times) -> Interval:
    """*middle* with the 95 % interval of its resamples *found*."""
    low, high = np.percentile(found, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    return Interval(float(low), middle, float(high))


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of *values* that do not resemble their neighbours, such as ratios of rounds in which two took turns.

    The same *seed* gives the same interval.
    """
    sample = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(sample), (MEDIANS, len(sample)))
    return interval_of(float(np.median(sample)), np.median(sample[chosen], axis=1))


def percentile(ms: Times, percent: float) -> float:
    """The smallest latency that *percent* (0 to 100) of all queries do not exceed: one that was measured."""
    # As np.percentile with method="inverted_cdf", in a tenth of the time, which a bootstrap spends a thousand times.
    place = max(0, math.ceil(len(ms) * percent / 100) - 1)
    return float(np.partition(ms, place)[place])


def _thinned(values: Times, images: int) -> Times:
    """At most `MOST` of *values*, whole cycles of *images* at even distances."""
    if len(values) <= MOST:
        return values
    chosen = np.linspace(0, len(values) // images - 1, MOST // images).astype(np.int64)
    kept: Times = values[(chosen[:, None] * images + np.arange(images)).reshape(-1)]
    return kept


def _resampled(count: int, images: int, seed: int, figure: Callable[[NDArray[np.int64]], float]) -> Times:
    """*figure* of the places (count,) of every resample of *count* queries over *images* images in turns."""
    # A block is whole cycles of the images, about the square root of all queries long.
    cycles = max(1, round(math.sqrt(count) / images))
    length = max(1, min(cycles * images, count // 4 or 1))
    starts = np.random.default_rng(seed).integers(0, count, (RESAMPLES, -(-count // length)))
    # One after the other, so that memory stays small.
    places = (((of_one[:, None] + np.arange(length)).reshape(-1) % count)[:count] for of_one in starts)
    return np.asarray([figure(at) for at in places], np.float64)


def _percentiles(ms: Times, percent: float, images: int, seed: int) -> Times:
    """The percentile of every resample of *ms*."""
    some = _thinned(ms, images)
    return _resampled(len(some), images, seed, lambda at: percentile(some[at], percent))


def percentile_interval(ms: Times, percent: float, images: int, seed: int = 0) -> Interval:
    """A percentile (0 to 100) of the latencies *ms* (queries,), in the order of measurement, with its interval.

    *images* is how many images the queries cycled over. The same *seed* gives the same interval.
    """
    return interval_of(percentile(ms, percent), _percentiles(ms, percent, images, seed))


def ratio_independent(above: Times, below: Times, percent: float, images: tuple[int, int]) -> Interval:
    """The ratio of two percentiles that were measured at different times, with its interval."""
    resamples = _percentiles(above, percent, images[0], 0) / _percentiles(below, percent, images[1], 1)
    return interval_of(percentile(above, percent) / percentile(below, percent), resamples)


def ratio_interleaved(above: Times, below: Times, percent: float, images: int) -> Interval:
    """The ratio of two percentiles that were measured in turns: both are resampled at the same places.

    What the machine did to one it did to the other, so a common drift does not widen the interval.
    """
    count = min(len(above), len(below))
    a, b = _thinned(above[:count], images), _thinned(below[:count], images)
    found = _resampled(len(a), images, 0, lambda at: percentile(a[at], percent) / percentile(b[at], percent))
    return interval_of(percentile(above, percent) / percentile(below, percent), found)


def _droop(t: NDArray[np.int64], ms: Times) -> dict[str, float] | None:
    """Medians of the first and last minute of a sustained run; None for one that lasted less than two."""
    if not len(t) or t[-1] - t[0] < 2 * MINUTE:
        return None
    before, after = float(np.median(ms[t < t[0] + MINUTE])), float(np.median(ms[t >= t[-1] - MINUTE]))
    return {"first_minute_ms": before, "last_minute_ms": after, "ratio": after / before}


def summary(
    columns: Mapping[str, NDArray[np.int64]], images: int, megapixels: float, *, sustained: bool
) -> dict[str, Any]:
    """What is reported of one subject: its samples' *columns*, its output in *megapixels*."""
    ns = columns["ns"]
    ms = ns / 1e6
    figures = {f"{name}_ms": percentile(ms, percent) for name, percent in PERCENTILES.items()}
    intervals = {name: percentile_interval(ms, PERCENTILES[name], images) for name in ("p50", "p90")}
    return {
        "count": len(ms),
        "seconds": float(ns.sum() / 1e9),
        **figures,
        "min_ms": float(ms.min()),
        "max_ms": float(ms.max()),
        "mean_ms": float(ms.mean()),
        **{f"{name}_interval_ms": [interval.low, interval.high] for name, interval in intervals.items()},
        **{f"{name}_ms_per_megapixel": figures[f"{name}_ms"] / megapixels for name in ("p90", "p50")},
        "host_p50_ms": percentile(columns["host_ns"] / 1e6, 50),
        "droop": _droop(columns["t_ns"], ms) if sustained else None,
    }
