"""Histograms of many tensors that grow with what they see: fixed memory, and the same whatever the order.

A tensor's histogram has BINS bins over [-R, R), R the smallest power of two above every magnitude seen. When a larger
one comes, R doubles and bins join in pairs, exactly, since bins meet at multiples of a power of two:

    R      |-4|-3|-2|-1| 0| 1| 2| 3|          bins relative to zero
    2R     |-4   |-3   |-2 |-1 | 0 |...       floor(bin / 2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 2048
HALF = BINS // 2
SAMPLE = 1 << 13
"""Most numbers of one tensor and crop that enter its histogram; minimum and maximum are always of all."""
LEAST_EXPONENT = -100
"""Magnitudes below 2 ** -100 count as zero."""
SMALLEST_NORMAL = 2.0**-14
"""Of fp16; below it precision is lost bit by bit."""
COLUMNS = ("low", "high", "count", "power", "half_error", "subnormal", "not_finite")
"""Figures of every tensor: minimum, maximum, numbers in the histogram, the sum of their squares, of the squares of what
rounding to fp16 changes, how many are neither zero nor normal in fp16, and how many are not finite."""


def sampled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most about SAMPLE of the flat *values*, in steps that share no factor with their number, hence no axis."""
    if values.size <= SAMPLE:
        return values
    step = -(-values.size // SAMPLE)
    while math.gcd(step, values.size) != 1:
        step += 1
    return values[::step]


def widen(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """*counts* (BINS,) for a range 2 ** *doublings* as wide."""
    bins = (np.arange(BINS) - HALF) >> min(doublings, 62)
    wide: NDArray[np.int64] = np.zeros(BINS, np.int64)
    np.add.at(wide, bins + HALF, counts)
    return wide


@dataclass
class Histograms:
    """The histograms and figures of tensors, one row each."""

    counts: NDArray[np.int64]
    """(tensors, BINS)."""
    exponents: NDArray[np.int32]
    """(tensors,): log2 of R; LEAST_EXPONENT before anything was seen."""
    figures: NDArray[np.float64]
    """(tensors, len(COLUMNS))."""

    @classmethod
    def empty(cls, tensors: int) -> Histograms:
        """Of *tensors* that have not been seen."""
        figures = np.zeros((tensors, len(COLUMNS)))
        figures[:, 0], figures[:, 1] = math.inf, -math.inf
        return cls(np.zeros((tensors, BINS), np.int64), np.full(tensors, LEAST_EXPONENT, np.int32), figures)

    def add(self, row: int, values: NDArray[np.float32]) -> None:
        """Count the float32 *values* of any shape into *row*."""
        flat, figures = values.reshape(-1), self.figures[row]
        finite = np.isfinite(flat)
        if not finite.all():
            figures[6] += flat.size - int(finite.sum())
            flat = flat[finite]
        if not flat.size:
            return
        figures[0], figures[1] = min(figures[0], float(flat.min())), max(figures[1], float(flat.max()))
        if largest := self.largest(row):
            # The smallest power of two above it.
            exponent = math.frexp(largest)[1]
            if exponent > self.exponents[row]:
                self.counts[row] = widen(self.counts[row], exponent - int(self.exponents[row]))
                self.exponents[row] = exponent
        part = sampled(flat)
        # The width is a power of two, so that the quotient is exact and a bin does not depend on rounding.
        bins = np.clip(np.floor(part.astype(np.float64) / self.width(row)).astype(np.int64), -HALF, HALF - 1)
        self.counts[row] += np.bincount(bins + HALF, minlength=BINS)
        with np.errstate(over="ignore", invalid="ignore"):
            half = part.astype(np.float16).astype(np.float64)
        magnitude = np.abs(part)
        error = np.where(np.isfinite(half), half - part, 0.0)
        figures[2] += part.size
        figures[3] += float(np.square(part, dtype=np.float64).sum())
        figures[4] += float(np.square(error).sum())
        figures[5] += int(((magnitude > 0) & (magnitude < SMALLEST_NORMAL)).sum())

    def largest(self, row: int) -> float:
        """The largest magnitude of *row*, 0 before anything was seen."""
        return max(-float(self.figures[row, 0]), float(self.figures[row, 1]), 0.0)

    def width(self, row: int) -> float:
        """Of the bins of *row*: R / HALF, a power of two."""
        return 2.0 ** int(self.exponents[row]) / HALF

    def magnitudes(self, row: int) -> NDArray[np.int64]:
        """(HALF,): the counts of *row* by magnitude, bin i from i to i + 1 widths."""
        return np.asarray(self.counts[row, HALF:] + self.counts[row, HALF - 1 :: -1], np.int64)

    def percentile(self, row: int, share: float) -> float:
        """The magnitude that *share* (0 to 1) of the numbers of *row* do not exceed, to a bin's upper edge."""
        sums = np.cumsum(self.magnitudes(row))
        if not sums[-1]:
            return 0.0
        index = int(np.searchsorted(sums, share * sums[-1]))
        return min((index + 1) * self.width(row), self.largest(row))
