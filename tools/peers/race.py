"""Runs candidates in turns, so that all of them see the same phases of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from peers.candidate import Candidate, Image
from peers.figures import Spread, round_ratios, spread
from ppexport.device.picture import psnr
from ppexport.errors import ExportError, PpexportError
from ppexport.profile.statistics import Interval, median_interval

WARM_UP = 2
"""Runs of every candidate before the first round; the first of them is compared with the network."""
BASELINE = "plain"
CHECK_DB = 90.0
"""What the plain graph must reach against the network before anything is timed."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Heat:
    """Candidates that are compared with the first of them, and therefore run close to each other."""

    name: str
    candidates: tuple[Candidate, ...]


@dataclass
class Outcome:
    """What a race measured."""

    times: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    """Heat -> key -> rounds -> seconds of the runs; a heat's first key is its baseline."""
    names: dict[str, str] = field(default_factory=dict)
    decibel: dict[str, float] = field(default_factory=dict)
    """Key -> dB to the PyTorch network's picture, infinite where equal."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Key -> why it could not run."""

    def spread(self, heat: str, key: str) -> Spread:
        """Median, p10 and p90 of *key* in *heat*, in ms."""
        return spread(self.times[heat][key])

    @property
    def done(self) -> int:
        """Number of rounds."""
        return next((len(rounds) for heat in self.times.values() for rounds in heat.values()), 0)

    def relative(self, heat: str, key: str) -> Interval | None:
        """Time of *key* divided by that of its heat's baseline, None where either is missing."""
        table = self.times.get(heat, {})
        if key not in table:
            return None
        return median_interval(round_ratios(table[key], next(iter(table.values()))))

    def faster(self, heat: str, key: str) -> Interval | None:
        """How many times as fast as its heat's baseline *key* is."""
        table = self.times.get(heat, {})
        if key not in table:
            return None
        return median_interval(round_ratios(next(iter(table.values())), table[key]))


@dataclass(frozen=True)
class Reference:
    """A picture and what a network of PyTorch makes of it."""

    network: str
    """"dense" or "pure_pass"."""
    lr: Image
    sr: Image


def close(candidate: Candidate, sr: Image, references: Sequence[Reference]) -> float | None:
    """dB from the network's picture to *sr*, None where the two may differ."""
    for reference in references:
        if reference.network == candidate.reference and reference.lr is candidate.lr:
            return psnr(sr, reference.sr, 1.0)
    return None


def check_baseline(candidate: Candidate, references: Sequence[Reference]) -> None:
    """Raise ExportError unless *candidate* makes the network's picture of at least one of the *references*.

    Not of all: where two categories are closer than rounding, a right graph may take the other one. A wrong graph is
    wrong on every picture.
    """
    own, reached = candidate.lr, []
    for reference in references:
        if reference.network == candidate.reference:
            candidate.lr = reference.lr
            reached.append(psnr(candidate.run(), reference.sr, 1.0))
    candidate.lr = own
    if reached and max(reached) < CHECK_DB:
        raise ExportError(f"the plain graph is {max(reached):.1f} dB from the network, not {CHECK_DB:.0f}: it is wrong")


def warm_up(candidate: Candidate, references: Sequence[Reference]) -> float | None:
    """Prepare *candidate* and run it; its dB, as in `close`."""
    torch.set_flush_denormal(candidate.flush)
    candidate.prepare()
    if candidate.key == BASELINE:
        check_baseline(candidate, references)
    sr = candidate.run()
    for _ in range(WARM_UP - 1):
        candidate.time()
    return close(candidate, sr, references)


def turn(candidates: Sequence[Candidate], start: int) -> list[tuple[str, float]]:
    """A B C C B A from the *start*-th candidate on; key and seconds of every timed run.

    Each runs twice every time and the second run counts: the first finds the caches full of another candidate's
    weights, which cost the capacity sets up to 6 %, and in use pictures follow each other in one program. The middle of
    all runs of a candidate is that of the turn, so a steady drift of the machine's speed cancels; the start moves on
    from turn to turn.
    """
    order = [candidates[(start + i) % len(candidates)] for i in range(len(candidates))]
    done = []
    for candidate in (*order, *reversed(order)):
        # ONNX Runtime and PyTorch switch denormals for threads they own, but half the work is done on this one.
        torch.set_flush_denormal(candidate.flush)
        candidate.time()
        done.append((candidate.key, candidate.time()))
    return done


def reopen(candidates: Sequence[Candidate]) -> None:
    """Open the sessions of *candidates* anew, so that every round finds them elsewhere in memory.

    Where a session's memory happens to lie changes its times by up to a tenth for as long as it lives: between eight
    processes the ratio of one and the same pair of graphs went from 0.89 to 0.99. Rounds of one session do not show it.
    """
    closed = [candidate for candidate in candidates if candidate.close()]
    for candidate in closed:
        torch.set_flush_denormal(candidate.flush)
        candidate.prepare()
        candidate.time()


def race(
    heats: Sequence[Heat],
    references: Sequence[Reference],
    rounds: int,
    seconds: float,
    say: Say,
    progress: Callable[[int, int], None],
) -> Outcome:
    """Time all candidates in *rounds* rounds; one that cannot run is reported, but a heat's baseline has to.

    Sessions are opened anew for every round. After *seconds* no further round begins.

    Raises PpexportError where a baseline cannot run or the plain graph is wrong.
    """
    outcome = Outcome()
    ready: set[str] = set()
    for candidate in dict.fromkeys(c for heat in heats for c in heat.candidates):
        outcome.names[candidate.key] = candidate.name
        say(f"preparing {candidate.name}")
        try:
            decibel = warm_up(candidate, references)
        except PpexportError as error:
            if candidate in [heat.candidates[0] for heat in heats]:
                raise
            outcome.skipped[candidate.key] = str(error)
            continue
        ready.add(candidate.key)
        if decibel is not None:
            outcome.decibel[candidate.key] = decibel
    running = [(heat.name, [c for c in heat.candidates if c.key in ready]) for heat in heats]
    for name, candidates in running:
        outcome.times[name] = {c.key: [] for c in candidates}
    end = time.monotonic() + seconds
    every = list(dict.fromkeys(c for _, candidates in running for c in candidates))
    for i in range(rounds):
        if i:
            reopen(every)
        for name, candidates in running:
            for c in candidates:
                outcome.times[name][c.key].append([])
            for key, taken in turn(candidates, i):
                outcome.times[name][key][i].append(taken)
        progress(i + 1, rounds)
        if time.monotonic() > end:
            break
    torch.set_flush_denormal(False)
    return outcome
