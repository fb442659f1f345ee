"""Statistics of interleaved timings. All times are in seconds, but for `Spread`, which is in ms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Rounds: TypeAlias = Sequence[Sequence[float]]
"""For every round the times of all its runs of one candidate."""


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
