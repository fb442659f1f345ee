"""Statistics of latencies, in milliseconds, and marks of what disturbed a run. No sample is left out for a mark.

Neighbouring queries resemble each other: the machine's speed drifts, and images take turns. Intervals therefore come
from a bootstrap of blocks of consecutive queries (Künsch 1989), not of single ones, which would be too sure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import counted

LEVEL = 0.95
RESAMPLES = 1000
MEDIANS = 5000
"""Resamples of a median alone."""
MOST = 20_000
"""Queries that are resampled; of more, an even choice stands for all, so that time and memory stay bounded."""
MINUTE = 60e9
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
CLOCK_CHANGE = 0.05
"""Share of a core's highest clock that it may differ by."""
OTHERS = 0.10
"""Cores that other programs may use on average."""
TICK = 0.1
"""Seconds by which a counter of processor time may be off."""
STOLEN = 0.01
"""Share of the cores that other virtual machines may take."""
SPREAD = 0.10
"""Distance between the quartiles of the latency, each image against its own median."""
DRIFT = 0.05
"""Change of the median between the first and the last tenth of a run."""
WAITED = 3.0
"""A query that took this factor of the median, but no more processor time than usual, did not run: it waited."""
SET, SLEPT = 0.5, 0.5
"""Seconds that the time of day, or the clock that counts sleep, may move against the monotonic one."""
TIMER_STEP = 0.01
"""Milliseconds; pages that are isolated have a finer clock."""
GAP = 1000.0
"""Milliseconds between two queries."""
STALLED = 10.0
"""A factor of the median, for queries in a browser, which does not tell processor time."""
WARMER = 10.0
"""Kelvin."""

Times = NDArray[np.float64]
Mark = dict[str, str]
"""A kind and one sentence, for readers."""


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


def mark(kind: str, text: str) -> Mark:
    """One mark."""
    return {"kind": kind, "text": text}


def sensor_marks(sensors: Mapping[str, Sequence[float | None]], cores: int) -> Iterator[Mark]:
    """The marks of the *sensors*' readings on a machine with this number of usable *cores*."""

    def known(kind: str) -> dict[str, NDArray[np.float64]]:
        """{name: readings} of the sensors of this kind that have shown something."""
        named = {name: values for name, values in sensors.items() if name.partition(".")[0] == kind}
        arrays = {name: np.asarray([v for v in values if v is not None], np.float64) for name, values in named.items()}
        return {name: values for name, values in arrays.items() if len(values)}

    clocks, heat = known("mhz"), known("celsius")
    moved = [v for v in clocks.values() if v.max() - v.min() > CLOCK_CHANGE * v.max()]
    if moved:
        low, high = min(v.min() for v in moved), max(v.max() for v in moved)
        yield mark("clock", f"clocks changed during the run, from {low:.0f} to {high:.0f} MHz")
    times = sum(float(v[-1] - v[0]) for v in known("throttled").values())
    if times > 0:
        yield mark("throttled", f"cores were throttled {counted(times, 'time')} for their heat")
    status = max((v.max() for v in known("throttling").values()), default=0)
    if status > 0:
        yield mark("throttled", f"the phone reported thermal status {status:.0f} of 6: it was throttled")
    risen = {name: float(v.max() - v[0]) for name, v in heat.items()}
    if risen and max(risen.values()) > WARMER:
        zone = max(risen, key=lambda n: risen[n])
        yield mark("heat", f"{zone.partition('.')[2]} rose by {risen[zone]:.0f} K to {heat[zone].max():.0f} °C")
    hidden = [what for what, seen in (("clocks", clocks), ("temperatures", heat)) if not seen]
    if hidden:
        yield mark("blind", f"this machine shows no {' and no '.join(hidden)}: throttling would not be seen")
    yield from _load_marks(sensors, cores)


def browser_marks(
    browser: Mapping[str, Any], sensors: Mapping[str, Sequence[float | None]], subject: Mapping[str, Any]
) -> Iterator[Mark]:
    """The marks of a run in a *browser* (`machine.browser` of a profile) of one *subject*."""

    def largest(name: str) -> float:
        return max((value for value in sensors.get(name, ()) if value is not None), default=0.0)

    hidden = sum(1 for value in sensors.get("page.hidden", ()) if value)
    if hidden:
        of = len(sensors["page.hidden"])
        yield mark("hidden", f"the page was not in front at {hidden} of {of} readings: browsers slow such pages down")
    step = browser.get("timer_step_ms")
    if step is not None and step > TIMER_STEP:
        yield mark("timer", f"the browser's clock moves in steps of {step:g} ms")
    threads, cores, asked = browser["threads"], browser.get("cores") or 1, subject["threads"]
    if browser["device"] == "wasm" and threads < (asked or min(2, cores)):
        missing = f"of {asked} that were asked for" if asked else f"of {cores} cores"
        yield mark("threads", f"the browser computed in {counted(threads, 'thread')} {missing}")
    adapter = browser.get("adapter")
    if browser["device"] != "wasm" and adapter and adapter["fallback"]:
        name = " ".join(filter(None, (adapter["vendor"], adapter["architecture"]))) or "a fallback adapter"
        yield mark("fallback", f"WebGPU was computed by the processor ({name}): this is no GPU's time")
    if not browser.get("secure"):
        why = "so the browser gave it one thread, no WebGPU and a coarse clock"
        yield mark("insecure", f"the page came over plain http from another machine, {why}")
    gap = largest("longest.gap.ms")
    if gap > GAP:
        yield mark("gap", f"the browser let the page wait between two queries, up to {gap / 1000:.1f} s")


def stalled_marks(name: str, columns: Mapping[str, NDArray[np.int64]]) -> Iterator[Mark]:
    """The mark of queries of *name* that stood still, where nothing tells the processor time."""
    ns = columns["ns"].astype(np.float64)
    stalled = ns > STALLED * np.median(ns)
    if stalled.any():
        held, longest = counted(stalled.sum(), "query"), ns[stalled].max() / 1e9
        yield mark("waited", f"{name}: {held} took over {STALLED:g} times the median, up to {longest:.1f} s")


def _load_marks(sensors: Mapping[str, Sequence[float | None]], cores: int) -> Iterator[Mark]:
    """What others did on the machine, of readings that have all of t, busy, own and stolen."""
    rows = zip(*(sensors.get(name, ()) for name in ("t", "busy", "own", "stolen")), strict=False)
    table = np.asarray([row for row in rows if None not in row], np.float64).reshape(-1, 4)
    step = np.diff(table, axis=0)
    # Across an interruption the clock of the run stands still while the machine's counters move, and a process that
    # takes over counts its own time from zero. No core is busy for longer than the interval, but for a tick's rounding.
    possible = step[:, 1] <= cores * (step[:, 0] / 1e9 + TICK)
    step = step[(step[:, 0] > 0) & (step[:, 2] >= 0) & possible]
    seconds = step[:, 0].sum() / 1e9
    if seconds <= 0:
        return
    others = (step[:, 1].sum() - step[:, 2].sum()) / seconds
    if others > OTHERS:
        yield mark("others", f"other programs used {others:.2f} of {cores} cores")
    stolen = step[:, 3].sum() / seconds / cores
    if stolen > STOLEN:
        yield mark("stolen", f"other virtual machines took {100 * stolen:.1f} % of the processor")


def clock_marks(processes: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Mark]:
    """The marks of the clocks in the readings that each of the run's *processes* made.

    A reading is {"t", "wall", "boot"} in ns; a clock that is missing or None tells nothing. The clocks of different
    processes are not compared.
    """
    jump = slept = 0.0
    for readings in processes:
        for last, now in itertools.pairwise(readings):
            step = now["t"] - last["t"]
            if last.get("wall") is not None and now.get("wall") is not None:
                jump = max(jump, abs(now["wall"] - last["wall"] - step) / 1e9)
            if last.get("boot") is not None and now.get("boot") is not None:
                slept += max(0.0, (now["boot"] - last["boot"] - step) / 1e9)
    if slept > SLEPT:
        yield mark("slept", f"the machine slept for {slept:.1f} s during the run")
    if jump > SET + slept:
        yield mark("time set", f"the time of day jumped by {jump:.1f} s; durations use the monotonic clock")
    if len(processes) > 1:
        times = counted(len(processes) - 1, "time")
        yield mark("resumed", f"the run was interrupted {times} and continued in another process")


def sample_marks(name: str, columns: Mapping[str, NDArray[np.int64]]) -> Iterator[Mark]:
    """The marks of the samples of the subject *name*."""
    ns, cpu, image = (columns[key].astype(np.float64) for key in ("ns", "cpu_ns", "image"))
    waited = (ns > WAITED * np.median(ns)) & (cpu < 1.5 * np.median(cpu))
    if waited.any():
        held, longest = counted(waited.sum(), "query"), ns[waited].max() / 1e9
        yield mark("waited", f"{name}: {held} held up without computing, up to {longest:.1f} s")
    relative = ns.copy()
    for number in np.unique(image):
        relative[image == number] /= np.median(ns[image == number])
    low, high = np.percentile(relative, (25, 75))
    if high - low > SPREAD:
        apart = f"{100 * (high - low):.0f} % apart on the same image"
        yield mark("noise", f"{name}: the quartiles of the latency are {apart}")
    tenth = len(ns) // 10
    if tenth >= 8:
        change = float(np.median(relative[-tenth:]) / np.median(relative[:tenth]) - 1)
        if abs(change) > DRIFT:
            yield mark("drift", f"{name}: the median of the last tenth is {100 * change:+.0f} % from that of the first")
    over = int(np.count_nonzero(columns["impure"] > columns["capacity"]))
    if over:
        queries = counted(over, "query")
        yield mark("capacity", f"{name}: more impure tokens than slots in {queries}, whose pictures are wrong")
