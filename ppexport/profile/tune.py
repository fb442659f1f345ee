"""Which runtime, number of threads and options are the fastest for an artifact on this machine, as it is busy now.

Every setting is opened and run once in a process of its own, which tells whether it runs at all and how much memory it
takes. Then all of them take turns in one process, by the protocol of latencies, and each is compared with today's
default. What is shown to be faster, and is again when it takes turns with the default alone, is chosen, the fastest
first, once its pictures have passed the gates of parity against the twin, in that runtime with these options, on this
machine. Where the interval of a ratio to the default holds 1, nothing is shown, and the default stays.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.backends.choices import forget, remember
from ppexport.device.artifact import Artifact, read_artifact
from ppexport.device.cores import usable_cores
from ppexport.device.job import Job
from ppexport.device.launch import ask, memory_of, run
from ppexport.device.machine import memory_bytes
from ppexport.device.measure import Plan
from ppexport.device.target import Target, choose, open_target, runtimes
from ppexport.errors import InputError, PpexportError, UnavailableError
from ppexport.parity.against import judge_pictures
from ppexport.profile.latency_run import prepare
from ppexport.profile.result import Collected
from ppexport.profile.statistics import Interval, percentile_interval, ratio_interleaved

TURNS = 4
"""In which every setting runs, at least; in each it is timed twice."""
SHARE = 0.8
"""Of the memory that is free, what settings that take turns may fill."""
PLAN = Plan("tune", 0, 0.0, warm_windows=0)
"""Without a warm-up: every query that is timed follows one of the same picture that is not."""
PREFIX = "ppexport-tune."
"""Of folders that exist while something is measured."""
Progress = Callable[[str, int, int], None]
"""Receives (what, done, total)."""


@dataclass
class Setting:
    """An artifact in a runtime with a number of threads and options, and what was found of it."""

    target: Target
    ms: Interval | None = None
    """The median latency; None where it did not run."""
    ratio: Interval | None = None
    """To the default of the same artifact, measured in turns with it."""
    passed: bool | None = None
    """Whether its pictures passed; None where nobody had to know."""
    psnr: float | None = None
    """Of its worst input, in dB."""
    reason: str = ""
    """Why it cannot be chosen."""
    peak: int = 0
    """Bytes of a process that runs it."""
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        target = self.target
        return {
            "runtime": target.name,
            "threads": target.threads,
            "options": dict(target.options),
            "ms": None if self.ms is None else vars(self.ms),
            "ratio": None if self.ratio is None else vars(self.ratio),
            "passed": self.passed,
            "psnr": self.psnr,
            "reason": self.reason,
            "chosen": self.chosen,
        }


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads worth a try on *cores*: up to four all of them, above that powers of two, all, and all but
    one, which leaves a core to the neighbours."""
    powers = (1 << i for i in range(cores.bit_length()))
    return sorted({*range(1, min(cores, 4) + 1), *powers, max(1, cores - 1), cores})


def settings_of(path: Path, most: int | None, trust: bool) -> list[Target]:
    """All that can be tried for the artifact *path* here, its default first.

    Args:
        path: the artifact.
        most: threads, at most; None is one for each physical core.
        trust: as of `open_artifact`.

    Raises:
        ArtifactError: it is damaged.
        InputError: it is run elsewhere, such as a page in a browser.
        UnavailableError: no runtime that runs it is installed here.
    """
    cores = usable_cores()
    limit = min(most or cores, cores)
    found = []
    for target in choose(path, "all", None, trust):
        runtime = runtimes()[target.runtime]
        if runtime.place:
            raise InputError(f"{path} runs in a {runtime.place}, which chooses by itself: there is nothing to tune")
        varies = target.device in runtime.threads_on
        # What is used where nothing is asked for.
        usual = replace(target, threads=limit if varies and limit < cores else None)
        found.append(usual)
        for threads in thread_counts(limit) if varies else ():
            # One thread waits for nobody.
            values = runtime.options.values() if threads > 1 else ()
            for one in itertools.product(*values):
                changed = [(n, v) for n, v in zip(runtime.options, one, strict=False) if v != runtime.options[n][0]]
                if changed or threads != limit:
                    found.append(replace(target, threads=threads, options=tuple(changed)))
    return found


def probe(settings: Sequence[Setting], progress: Progress) -> None:
    """Run each of *settings* once, in a process of its own; what does not run gets a reason. Raises PpexportError."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        job = prepare([settings[0].target], PLAN, Path(folder), None)
        for done, setting in enumerate(settings):
            progress("settings opened", done, len(settings))
            try:
                _, setting.peak = memory_of(replace(job, targets=(setting.target,)))
            except PpexportError as error:
                setting.passed, setting.reason = False, str(error)
    progress("settings opened", len(settings), len(settings))


def groups(settings: Sequence[Setting], free: int | None) -> Iterator[list[Setting]]:
    """*settings* in groups that fit the memory that is *free*, in bytes; the first of all is in each."""
    base, *others = settings
    room, group = math.inf if free is None else SHARE * free, [base]
    for setting in others:
        if len(group) > 1 and sum(one.peak for one in group) + setting.peak > room:
            yield group
            group = [base]
        group.append(setting)
    yield group


def race(targets: Sequence[Target], seconds: float, load: int, progress: Progress) -> list[tuple[Interval, Interval]]:
    """Time all *targets* in turns, each for *seconds* at least, beside *load* busy neighbours.

    Returns the median of each in ms, and its ratio to that of the first. Raises PpexportError.
    """
    plan = replace(PLAN, queries=2 * TURNS, seconds=seconds, load=load)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        job = prepare(targets, plan, Path(folder), None)
        run(job, lambda done, wanted: progress("queries in turns", done, wanted))
        times = [np.asarray(column["ns"], np.float64) / 1e6 for column in Collected(job.journal).columns]
    # Of several, each takes every picture twice before the next picture.
    cycle = len(job.header["images"]) * (1 if len(targets) == 1 else 2)
    return [(percentile_interval(ms, 50, cycle), ratio_interleaved(ms, times[0], 50, cycle)) for ms in times]


def in_order(settings: Sequence[Setting]) -> list[Setting]:
    """*settings* that ran, in the order in which they are to be chosen.

    What is shown to be faster than the default, which is the first that ran, the fastest first; the default; the rest.
    """
    ran = [one for one in settings if one.ratio is not None]
    # Settings that are as fast keep their order.
    by_ratio = sorted(ran, key=lambda one: one.ratio.middle if one.ratio else math.inf)
    faster = [one for one in by_ratio if one is not ran[0] and one.ratio is not None and one.ratio.high < 1]
    slower = [one for one in by_ratio if one is not ran[0] and one not in faster]
    return [*faster, *ran[:1], *slower]


def choose_setting(
    settings: Sequence[Setting], again: Callable[[Setting], None], judge: Callable[[Setting], None]
) -> Setting | None:
    """The first of *settings*, in the order of `in_order`, that passes; None where none does.

    *again* measures the ratio of a setting anew, and is called for what is about to be chosen for its time: of many
    settings one looks fast by chance. *judge* fills in `passed`. Neither is called for more than have to be known.
    """
    sure: list[Setting] = []
    while True:
        setting = next((one for one in in_order(settings) if one.passed is not False), None)
        if setting is None:
            return None
        if setting.ratio is not None and setting.ratio.high < 1 and not any(setting is one for one in sure):
            sure.append(setting)
            again(setting)
            continue
        judge(setting)
        if setting.passed:
            setting.chosen = True
            return setting


def judge(setting: Setting, folder: Path) -> None:
    """Fill in whether the pictures of *setting* pass against the run in *folder*, in a process of its own."""
    only = Job((setting.target,), folder.resolve(), PLAN, folder, {})
    try:
        found = ask("ppexport.profile.tune:judged", only)
    except PpexportError as error:
        setting.passed, setting.reason = False, str(error)
    else:
        setting.passed, setting.psnr, setting.reason = bool(found["passed"]), found["psnr"], str(found["reason"])


def judged(job: Job) -> dict[str, Any]:
    """In the process that `judge` starts: whether the only target of *job* passes against the run in its `images`."""
    with open_target(job.targets[0]) as runner:
        pair = judge_pictures(runner, job.images)
    worst, moved = pair.worst, bool(pair.failed_tasks)
    why = worst.reason or ("PSNR-Y against ground truth changes too much" if moved else "")
    psnr = worst.errors.psnr
    return {
        "passed": pair.passed,
        # JSON knows no infinity: of equal pictures.
        "psnr": psnr if math.isfinite(psnr) else None,
        "reason": "" if pair.passed else f"{worst.name}: {why}",
    }


@dataclass
class Tuned:
    """One artifact and its settings."""

    artifact: Artifact
    settings: list[Setting]
    reference: Path
    """The parity run."""

    @property
    def chosen(self) -> Setting | None:
        """What was chosen, None where nothing passed."""
        return next((one for one in self.settings if one.chosen), None)

    def keep(self, load: int) -> Path | None:
        """Remember the choice; returns the file. Where nothing passed, an earlier choice is forgotten.

        Raises InputError where the file cannot be written or removed.
        """
        if self.chosen is None:
            forget(self.artifact)
            return None
        return remember(self.artifact, self.chosen.target, {**self.chosen.to_dict(), "load": load})


def tune(
    path: Path, reference: Path, seconds: float, load: int, most: int | None, trust: bool, progress: Progress
) -> Tuned:
    """Find the fastest setting of the artifact *path*. Nothing is kept.

    Args:
        path: the artifact.
        reference: a parity run of its model.
        seconds: for which every setting is timed, at least.
        load: busy neighbours.
        most, trust: as of `settings_of`.
        progress: receives what is done.

    Raises:
        PpexportError: as `settings_of`, and UnavailableError where no setting runs.
    """
    artifact = read_artifact(path)
    settings = [Setting(target) for target in settings_of(path, most, trust)]
    probe(settings, progress)
    running = [one for one in settings if not one.reason]
    if not running:
        raise UnavailableError(f"no runtime here runs {path}: {settings[0].reason}")
    for group in groups(running, memory_bytes("MemAvailable")):
        for setting, figures in zip(group, race([one.target for one in group], seconds, load, progress), strict=True):
            if setting.ms is None:
                setting.ms, setting.ratio = figures

    def judge_one(setting: Setting) -> None:
        progress(f"parity of {setting.target.name}", 0, 1)
        judge(setting, reference)
        progress(f"parity of {setting.target.name}", 1, 1)

    def time_again(setting: Setting) -> None:
        setting.ms, setting.ratio = race([running[0].target, setting.target], seconds, load, progress)[1]

    choose_setting(running, time_again, judge_one)
    return Tuned(artifact, settings, reference)


def best_of(tuned: Sequence[Tuned], seconds: float, load: int, progress: Progress) -> list[tuple[Tuned, Interval]]:
    """The artifacts for which something was chosen, the fastest first, each with its ratio to the first of *tuned*.

    Their choices take turns once more, for *seconds* each. Raises InputError for artifacts of several sizes or scales.
    """
    able = [(one, one.chosen.target) for one in tuned if one.chosen is not None]
    if not able:
        return []
    figures = race([target for _, target in able], seconds, load, progress)
    found = [(one, ratio) for (one, _), (_, ratio) in zip(able, figures, strict=True)]
    return sorted(found, key=lambda pair: pair[1].middle)
