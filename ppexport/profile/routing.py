"""Latency against what Pure-Pass finds: the pure share of real images, and the capacity.

`routing.json`, version 1:

    format, version, created, subject, machine
    images       [{name, pure_share, impure, capacity, ms: [one per round]}]
    capacities   [{capacity, ms: [one per round]}], all on one image that every capacity holds; empty without a set
    line         least squares over the images' medians, ms = at_zero_ms + slope_ms * pure share; saving is what a
                 wholly pure image would save of it, as a share; each {low, middle, high} by bootstrap over images
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.job import Job
from ppexport.device.machine import Clock
from ppexport.device.mask import padded_size
from ppexport.device.measure import Plan
from ppexport.device.picture import to_input
from ppexport.device.runner import Prepared
from ppexport.device.target import Target, open_target
from ppexport.profile.statistics import LEVEL, RESAMPLES

FORMAT = "ppexport-routing"
VERSION = 1
ROUNDS = {"quick": 8, "full": 24, "sustained": 24}
PLACES = 5
"""Crops of every photograph."""
STEPS = 8
"""Capacities of a set that are measured, the largest among them."""


def spread(values: list[int], count: int) -> list[int]:
    """At most *count* of the ascending *values*, at even distances, the last among them."""
    if len(values) <= count:
        return values
    places = np.linspace(0, len(values) - 1, count).round().astype(int)
    return [values[i] for i in places]


def measure_routing(target: Target, images: NDArray[np.uint8], plan: Plan) -> dict[str, Any]:
    """Times of all *images* (count, h, w, 3) and capacities, in rounds, so that all see the same machine.

    Every query follows one of its own kind that is not timed. Raises PpexportError as the runner does.
    """
    runner, clock = open_target(target), Clock()
    manifest = runner.artifact.manifest
    inputs = [to_input(rgb) for rgb in images]
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = [{"ms": []} for _ in inputs]
    capacities = spread(manifest.capacities, STEPS) if len(manifest.capacities) > 1 else []
    pure = np.ones((padded_size(runner.size[0]), padded_size(runner.size[1])), np.bool_)
    flat = np.full((1, 3, *runner.size), 0.5, np.float32) * np.array([0.3, 0.7, 1.5], np.float32).reshape(1, 3, 1, 1)
    slots: list[dict[str, Any]] = [{"capacity": capacity, "ms": []} for capacity in capacities]
    for _ in range(ROUNDS[plan.name]):
        for i in rng.permutation(len(inputs)):
            runner(inputs[i])
            begin = clock.now()
            result = runner(inputs[i])
            found[i]["ms"].append((clock.now() - begin) / 1e6)
            found[i] |= {"impure": result.impure_tokens, "capacity": result.capacity}
        for i in rng.permutation(len(slots)):
            prepared = Prepared(flat, pure, slots[i]["capacity"])
            runner.run(prepared)
            begin = clock.now()
            runner.run(prepared)
            slots[i]["ms"].append((clock.now() - begin) / 1e6)
    return {"images": found, "capacities": slots}


def fit(shares: NDArray[np.float64], ms: NDArray[np.float64]) -> tuple[float, float]:
    """Least squares: (ms at share 0, slope)."""
    slope, zero = np.polyfit(shares, ms, 1)
    return float(zero), float(slope)


def line(images: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The line through the medians of *images*; None where their pure shares hardly differ."""
    shares = np.array([image["pure_share"] for image in images], np.float64)
    ms = np.array([np.median(image["ms"]) for image in images], np.float64)
    if len(images) < 4 or np.ptp(shares) < 0.1:
        return None
    rng = np.random.default_rng(0)
    found: list[tuple[float, float, float]] = []
    while len(found) < RESAMPLES:
        chosen = rng.integers(0, len(images), len(images))
        # A resample of one share only has no slope.
        if np.ptp(shares[chosen]) > 0.05:
            zero, slope = fit(shares[chosen], ms[chosen])
            found.append((zero, slope, -slope / zero))
    zero, slope = fit(shares, ms)
    low, high = np.percentile(np.array(found), (50 * (1 - LEVEL), 50 * (1 + LEVEL)), axis=0)
    names = ("at_zero_ms", "slope_ms", "saving")
    middles = (zero, slope, -slope / zero)
    return {
        name: {"low": float(low[i]), "middle": middles[i], "high": float(high[i])} for i, name in enumerate(names)
    }  # fmt: skip


def print_routing(job: Job) -> None:
    """Print time against pure share and capacity as JSON, for the measuring process."""
    images = np.load(job.images, allow_pickle=False)
    print(json.dumps(measure_routing(job.targets[0], images, job.plan)))
