"""Statistics of latencies, in milliseconds. Nothing is ever left out of them: what disturbed a run is marked instead.

Neighbouring queries resemble each other: the machine's speed drifts, and images take turns. Intervals therefore come
from a bootstrap of blocks of consecutive queries (Künsch 1989), not of single ones, which would be too sure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of *values*, such as ratios of rounds in which two took turns, which do not resemble their neighbours;
    the same for the same *seed*."""
    sample = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(sample), (MEDIANS, len(sample)))
    low, high = np.percentile(np.median(sample[chosen], axis=1), (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    return Interval(float(low), float(np.median(sample)), float(high))


def percentile(ms: Times, percent: float) -> float:
    """The smallest latency that *percent* of all queries do not exceed: one that was measured."""
    # As np.percentile with method="inverted_cdf", in a tenth of the time, which a bootstrap spends a thousand times.
    place = max(0, math.ceil(len(ms) * percent / 100) - 1)
    return float(np.partition(ms, place)[place])


def block_length(count: int, images: int) -> int:
    """Consecutive queries of a block: whole cycles of the images, about the square root of all."""
    cycles = max(1, round(math.sqrt(count) / images))
    return max(1, min(cycles * images, count // 4 or 1))


def thinned(values: Times, images: int) -> Times:
    """At most `MOST` of *values*, whole cycles of *images* at even distances."""
    if len(values) <= MOST:
        return values
    cycles = len(values) // images
    chosen = np.linspace(0, cycles - 1, MOST // images).astype(np.int64)
    places = (chosen[:, None] * images + np.arange(images)).reshape(-1)
    kept: Times = values[places]
    return kept


def resamples(count: int, images: int, seed: int) -> NDArray[np.int64]:
    """Starts (RESAMPLES, blocks) of the blocks of every resample of *count* queries."""
    length = block_length(count, images)
    blocks = -(-count // length)
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, blocks))


def resampled(count: int, images: int, seed: int, figure: Any) -> NDArray[np.float64]:
    """*figure* of the places (count,) of every resample, one after the other so that memory stays small."""
    length = block_length(count, images)
    offsets = np.arange(length)
    found = [
        figure(((starts[:, None] + offsets).reshape(-1) % count)[:count]) for starts in resamples(count, images, seed)
    ]
    return np.asarray(found, np.float64)


def interval_of(middle: float, found: NDArray[np.float64]) -> Interval:
    """*middle* with the interval of its resamples *found*."""
    low, high = np.percentile(found, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    return Interval(float(low), middle, float(high))


def percentile_interval(ms: Times, percent: float, images: int, seed: int = 0) -> Interval:
    """A percentile of *ms*, in the order of measurement over *images* images in turns, with its interval."""
    some = thinned(ms, images)
    found = resampled(len(some), images, seed, lambda places: percentile(some[places], percent))
    return interval_of(percentile(ms, percent), found)


def ratio_independent(above: Times, below: Times, percent: float, images: tuple[int, int]) -> Interval:
    """The ratio of two percentiles that were measured at different times, with its interval."""
    parts = []
    for seed, (ms, count) in enumerate(zip((above, below), images, strict=True)):
        some = thinned(ms, count)
        parts.append(
            resampled(len(some), count, seed, lambda places, some=some: percentile(some[places], percent))
        )  # fmt: skip
    return interval_of(percentile(above, percent) / percentile(below, percent), parts[0] / parts[1])


def ratio_interleaved(above: Times, below: Times, percent: float, images: int) -> Interval:
    """The ratio of two percentiles that were measured in turns: both are resampled at the same places.

    What the machine did to one it did to the other, so a common drift does not widen the interval.
    """
    count = min(len(above), len(below))
    a, b = thinned(above[:count], images), thinned(below[:count], images)
    found = resampled(len(a), images, 0, lambda at: percentile(a[at], percent) / percentile(b[at], percent))
    return interval_of(percentile(above, percent) / percentile(below, percent), found)


def droop(t: NDArray[np.int64], ms: Times) -> dict[str, float] | None:
    """Medians of the first and last minute of a sustained run; None for one that lasted less than two."""
    if not len(t) or t[-1] - t[0] < 2 * MINUTE:
        return None
    first, last = ms[t < t[0] + MINUTE], ms[t >= t[-1] - MINUTE]
    before, after = float(np.median(first)), float(np.median(last))
    return {"first_minute_ms": before, "last_minute_ms": after, "ratio": after / before}


def summary(
    columns: Mapping[str, NDArray[np.int64]], images: int, megapixels: float, *, sustained: bool
) -> dict[str, Any]:
    """What is reported of one subject: its samples' *columns*, its output in *megapixels*."""
    t, ns, host_ns = (columns[name] for name in ("t_ns", "ns", "host_ns"))
    ms = ns / 1e6
    found: dict[str, Any] = {"count": len(ms), "seconds": float(ns.sum() / 1e9)}
    found |= {f"{name}_ms": percentile(ms, percent) for name, percent in PERCENTILES.items()}
    found |= {"min_ms": float(ms.min()), "max_ms": float(ms.max()), "mean_ms": float(ms.mean())}
    for name in ("p50", "p90"):
        interval = percentile_interval(ms, PERCENTILES[name], images)
        found[f"{name}_interval_ms"] = [interval.low, interval.high]
    found["p90_ms_per_megapixel"] = found["p90_ms"] / megapixels
    found["p50_ms_per_megapixel"] = found["p50_ms"] / megapixels
    found["host_p50_ms"] = percentile(host_ns / 1e6, 50)
    found["droop"] = droop(t, ms) if sustained else None
    return found
