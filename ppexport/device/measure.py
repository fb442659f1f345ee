"""How long to measure: the single-stream protocol of MLPerf, with batch 1 and one query at a time."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Callable, NamedTuple

from ppexport.device.journal import Journal, Past
from ppexport.device.machine import Clock, peak_memory
from ppexport.device.neighbours import Neighbours
from ppexport.device.picture import to_input
from ppexport.device.sensors import Sensor, read_all
from ppexport.device.target import Target, open_target

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no numpy.typing.
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan:
    """When warm-up and measurement are over. Seconds are spent inside queries."""

    name: str
    queries: int
    """Timed queries of every subject, at least."""
    seconds: float
    """Seconds of timed queries of every subject, at least."""
    warm_change: float = 0.02
    """Warm-up ends once the median of a window moved less than this from that of the window before."""
    warm_windows: int = 20
    """Warm-up ends after this many windows in any case, and the run is then marked."""
    sensor_seconds: float = 1.0
    """Time between two readings of the sensors."""
    load: int = 0
    """Busy neighbours during all of it, see `neighbours.py`."""


PLANS = {
    "full": Plan("full", 1024, 60.0),
    "quick": Plan("quick", 64, 6.0),
    # Ten minutes show thermal droop; how many queries fit in is the device's business.
    "sustained": Plan("sustained", 64, 600.0),
}


SECOND = 1_000_000_000
WINDOW = 8
"""Queries of a warm-up window, at least; always whole cycles of the images, since cost may follow content."""


INSIDE = (
    "checks of the input and the result; mask and choice of the capacity where the host computes them; the run from "
    "float32 in host memory to float32 in host memory, with copies to the device and back. Not inside: file reading "
    "and decoding, conversion from 8 bits, tiling, blending"
)
"""What the clock of a query holds, for people."""


class Query(NamedTuple):
    """What a subject reports of one query besides its time."""

    host_ns: int
    """Nanoseconds of it for checks, mask and the choice of the capacity."""
    capacity: int
    """Slots of category attention, 0 for a network without it."""
    impure: int
    """Tokens that needed them, -1 where the subject does not report it."""


class Subject(ABC):
    """Something to time."""

    @abstractmethod
    def load(self) -> None:
        """Make ready to run, from the file on."""

    @abstractmethod
    def query(self, image: int) -> Query:
        """Super-resolve image number *image*, from host memory to host memory."""


class ArtifactSubject(Subject):
    """An artifact in a runtime."""

    def __init__(self, target: Target, images: NDArray[np.uint8]) -> None:
        """*images* are (count, h, w, 3)."""
        self.target = target
        self.inputs = [to_input(rgb) for rgb in images]

    def load(self) -> None:
        """Open the artifact, hashes checked, and make a session. Raises PpexportError."""
        self.runner = open_target(self.target)
        self.with_mask = self.runner.artifact.manifest.mask != "none"

    def query(self, image: int) -> Query:
        """Super-resolve one image."""
        begin = time.perf_counter_ns()
        prepared = self.runner.prepare(self.inputs[image])
        host = time.perf_counter_ns() - begin
        result = self.runner.run(prepared)
        return Query(host, result.capacity, result.impure_tokens if self.with_mask else -1)


class Loop:
    """One measurement of several subjects: load, first run, warm-up, timed queries in turns, sensors in between."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        images: int,
        plan: Plan,
        journal: Journal,
        sensors: Sequence[Sensor] = (),
        progress: Callable[[int], object] = lambda queries: None,
        clock: Clock | None = None,
    ) -> None:
        """*images* is how many images the queries cycle over; *progress* receives the queries that are done."""
        self.subjects, self.images, self.plan, self.journal = subjects, images, plan, journal
        self.sensors, self.progress, self.clock = sensors, progress, clock or Clock()
        self.queries = [0] * len(subjects)
        self.neighbours = Neighbours(plan.load)
        self._zero = 0
        self._next_reading = 0

    def run(self, past: Past) -> None:
        """Measure what *past* lacks, and end the journal."""
        with self.neighbours:
            self._run(past)

    def _run(self, past: Past) -> None:
        self.queries = list(past.queries)
        reading = self.clock.reading()
        # t continues where the last process ended, so that an interruption takes no time.
        self._zero = self.clock.now() - past.end
        self.journal.write("begin", {"t": past.end, "memory": peak_memory(), **reading})
        self._read_sensors()
        for index, subject in enumerate(self.subjects):
            begin = self.clock.now()
            subject.load()
            loaded = self.clock.now()
            subject.query(0)
            first = self.clock.now() - loaded
            # In a run that continues after an interruption the first process has written it.
            if not past.loaded[index]:
                self.journal.write("load", index, loaded - begin)
                self.journal.write("first", index, first)
        for index in range(len(self.subjects)):
            self._warm_up(index)
        self._measure(past.ns)
        self._read_sensors()
        self.journal.write("end", {"t": self.clock.now() - self._zero, "memory": peak_memory()})
        self.journal.sync()

    def _read_sensors(self) -> None:
        reading, moment = read_all(self.sensors), self.clock.reading()
        clocks = {
            "own": (self.clock.cpu() + self.neighbours.cpu()) / SECOND,
            "wall": moment["wall"],
            "boot": moment["boot"],
        }
        self.journal.write("c", moment["now"] - self._zero, {**reading, **clocks})
        self.journal.sync()
        self.progress(sum(self.queries))
        self._next_reading = moment["now"] + int(self.plan.sensor_seconds * SECOND)

    def _warm_up(self, index: int) -> None:
        """Query subject number *index* until the median of a window moves less than the plan's share."""
        cycles = -(-WINDOW // self.images)
        previous, done, count = None, False, 0
        for _ in range(self.plan.warm_windows):
            times = []
            for image in list(range(self.images)) * cycles:
                begin = self.clock.now()
                self.subjects[index].query(image)
                times.append(self.clock.now() - begin)
            count += len(times)
            middle = median(times)
            if previous is not None and abs(middle - previous) <= self.plan.warm_change * previous:
                done = True
                break
            previous = middle
        self.journal.write("warm", index, count, done)

    def _measure(self, ns: list[int]) -> None:
        """Query in turns; *ns* is how long every subject was measured before."""
        spent, turn = list(ns), max(self.queries)
        while min(self.queries) < self.plan.queries or min(spent) < self.plan.seconds * SECOND:
            for index in self._order(turn):
                spent[index] += self._query(index, turn % self.images)
            turn += 1

    def _order(self, turn: int) -> list[int]:
        """A B C C B A, beginning one further every turn, so that a steady drift of the machine's speed cancels."""
        count = len(self.subjects)
        if count == 1:
            return [0]
        forth = [(turn + i) % count for i in range(count)]
        return forth + forth[::-1]

    def _query(self, index: int, image: int) -> int:
        """One timed query, written down; returns its nanoseconds."""
        subject = self.subjects[index]
        if len(self.subjects) > 1:
            # The first query after another subject finds caches full of that one's weights, which is no steady state.
            subject.query(image)
        cpu = self.clock.cpu()
        begin = self.clock.now()
        found = subject.query(image)
        taken = self.clock.now() - begin
        cpu = self.clock.cpu() - cpu
        self.journal.write("q", index, image, begin - self._zero, taken, cpu, *found)
        self.queries[index] += 1
        if begin + taken >= self._next_reading:
            self._read_sensors()
        return taken
