"""Many pictures through one runner, which waits for no file.

    three threads        each with a picture of its own: read it, wait for its tiles, write it
    two threads          cut and mask the next tile; check and blend the last one (`pipeline.overlap`)
    the caller's thread  the runtime, one tile after the other, whichever picture it is of

While the tiles of one picture run, the next one is read and the last one is written. So three pictures are held at
most, small ones; a large one is alone, see `ROOM`. Of each this is its pixels, its result in 8 or 16 bits, and one band
of that in float32, as high as a tile.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ppexport.device.runner import Runner
from ppexport.errors import InputError, PpexportError
from ppexport.imaging.formats import without_quality
from ppexport.imaging.images import Header, peek
from ppexport.imaging.outputs import Existing, Job, Plan
from ppexport.imaging.tile_queue import AbandonedError, TileQueue
from ppexport.imaging.tiles import plan_grid
from ppexport.imaging.upscaling import Progress, Report, Settings, read_source, write_enlarged

AT_ONCE = 3
"""Pictures at a time: one is read, one is run, one is written."""
ROOM = 128_000_000
"""Pixels that the results of the pictures at a time have together; a larger one waits until it is alone."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input: a report, or the reason why there is none."""

    source: Path
    target: Path | None
    state: str
    """"done", "skipped", "failed" or "not begun"."""
    report: Report | None = None
    reason: str | None = None


class Work(NamedTuple):
    """A picture to enlarge, with what its header says of it."""

    job: Job
    pixels: int
    tiles: int


_DEFAULT = Settings()


class Batch:
    """The pictures of a plan, enlarged one after the other by one runner."""

    def __init__(self, plan: Plan, tile: tuple[int, int], settings: Settings = _DEFAULT) -> None:
        """Look at the headers of all pictures, for a runner whose tiles are *tile* (h, w)."""
        self._outcomes = [Outcome(failure.source, None, "failed", reason=failure.reason) for failure in plan.failures]
        self._outcomes += [Outcome(job.source, job.target, "skipped") for job in plan.skipped]
        self.works: list[Work] = []
        """What there is to do."""
        self.without_quality = Counter[str]()
        """How many pictures of which formats were written without the quality that was asked for."""
        for job in plan.jobs:
            try:
                header = peek(job.source, max_pixels=settings.max_pixels, first_frame=settings.first_frame)
                self.works.append(Work(job, header.size[0] * header.size[1], _runs(header, tile, settings)))
            except PpexportError as error:
                self._outcomes.append(Outcome(*job, "failed", reason=str(error)))
        self._waiting, self._settings, self._existing = iter(self.works), settings, plan.existing
        self._total, self._done = self.tiles, 0
        # `_turn` is held by the one thread that waits for room, so that no picture overtakes a larger one.
        self._turn, self._room, self._free = threading.Lock(), threading.Condition(), ROOM
        self._ended, self._threads = False, AT_ONCE

    @property
    def tiles(self) -> int:
        """Runs that all pictures take."""
        return sum(work.tiles for work in self.works)

    @property
    def outcomes(self) -> list[Outcome]:
        """What has become of every input so far."""
        known = {(outcome.source, outcome.target) for outcome in self._outcomes}
        rest = (work.job for work in self.works if work.job not in known)
        return [*self._outcomes, *(Outcome(*job, "not begun") for job in rest)]

    def run(self, runner: Runner, progress: Progress) -> None:
        """Enlarge all pictures; *progress* is called in this thread with tiles of all of them.

        What a picture lacks becomes its outcome. A full disk ends the run after the pictures that were begun. Raises
        what the runtime raises that is no fault of a picture, and KeyboardInterrupt; all files are whole or absent.
        """
        tiles = TileQueue(runner)

        def ran() -> None:
            self._done += 1
            progress(self._done, max(self._total, self._done))

        with ThreadPoolExecutor(AT_ONCE, "picture") as pictures:
            try:
                progress(0, self._total)
                threads = [pictures.submit(self._enlarge_all, tiles) for _ in range(AT_ONCE)]
                tiles.run(ran)
            except BaseException:
                self._end()
                tiles.abandon()
                raise
        for thread in threads:
            thread.result()
        progress(self._done, self._done)

    def _end(self) -> None:
        """Begin no further picture."""
        with self._room:
            self._ended = True
            self._room.notify_all()

    def _enlarge_all(self, tiles: TileQueue) -> None:
        """One of the threads that each enlarge a picture at a time."""
        try:
            while (taken := self._next(tiles.runner.scale)) is not None:
                work, room = taken
                try:
                    self._enlarge(work, tiles)
                finally:
                    with self._room:
                        self._free += room
                        self._room.notify_all()
        except AbandonedError:
            pass
        except BaseException:
            self._end()
            raise
        finally:
            with self._room:
                self._threads -= 1
                last = not self._threads
            if last:
                tiles.close()

    def _next(self, scale: int) -> tuple[Work, int] | None:
        """The next picture, as soon as there is room for it, and how much it takes; None after the last one."""
        with self._turn:
            work = next(self._waiting, None)
            if work is None:
                return None
            room = min(work.pixels * scale**2, ROOM)
            with self._room:
                self._room.wait_for(lambda: self._ended or self._free >= room)
                if self._ended:
                    return None
                self._free -= room
            return work, room

    def _enlarge(self, work: Work, tiles: TileQueue) -> None:
        source, target = work.job
        report, reason, state = None, None, "failed"
        # Of many formats a quality is for those that have one.
        plain = None if self._settings.write.quality is None else without_quality(target.suffix)
        # Another run may have come first.
        late = self._existing is not Existing.overwrite and os.path.exists(target)
        if late and self._existing is Existing.skip:
            state = "skipped"
        else:
            try:
                if late:
                    raise InputError(f"{target} exists since a moment ago, and is left as it is")
                settings = self._settings
                if plain is not None:
                    settings = replace(settings, write=replace(settings.write, quality=None))
                read = read_source(source, target, tiles.runner.scale, settings, make_folder=True)
                report, state = write_enlarged(read, tiles), "done"
            except PpexportError as error:
                reason = str(error)
                if _disk_is_full(error):
                    self._end()
        with self._room:
            if plain is not None and state == "done":
                self.without_quality[plain.title] += 1
            self._outcomes.append(Outcome(source, target, state, report, reason))
            self._total += (len(report.tiles) if report else 0) - work.tiles


def _runs(header: Header, tile: tuple[int, int], settings: Settings) -> int:
    """Runs that a picture will take, as far as its header tells: fewer where its alpha is the same everywhere."""
    planes = 2 if header.alpha and settings.enlarge.alpha == "network" else 1
    return header.frames * planes * len(plan_grid(header.size, tile))


def _disk_is_full(error: BaseException) -> bool:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        link = link.__cause__ or link.__context__
    return False
