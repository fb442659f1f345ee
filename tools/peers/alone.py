"""What a candidate takes in a process of its own: memory, and for larger pictures time. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

from peers.candidate import Candidate
from peers.child import peak_bytes


@dataclass(frozen=True)
class Alone:
    """One candidate in its own process."""

    seconds: tuple[float, ...]
    """Of every run after the first."""
    loaded: int
    """Peak bytes once it was prepared."""
    peak: int
    """Peak bytes after all runs."""


def run_alone(candidate: Candidate, runs: int, budget: float) -> Alone:
    """Prepare *candidate*, run it once, then up to *runs* times, but no longer than *budget* seconds; at least once."""
    candidate.prepare()
    loaded = peak_bytes()
    candidate.run()
    seconds: list[float] = []
    end = time.perf_counter() + budget
    while not seconds or (len(seconds) < runs and time.perf_counter() < end):
        seconds.append(candidate.time())
    return Alone(tuple(seconds), loaded, peak_bytes())


def peak_of_one_run(candidate: Candidate) -> int:
    """Peak bytes of loading and one run."""
    candidate.prepare()
    candidate.run()
    return peak_bytes()
