"""What disturbed a run: every mark is a kind and one sentence. Marks are for readers; no sample is removed for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import counted

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
WARMER = 10.0
"""Kelvin."""

Mark = dict[str, str]


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
