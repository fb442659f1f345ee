"""One runner for many threads: they bring arrays, and one thread runs the tiles of all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppexport.device.runner import Prepared, Runner
from ppexport.errors import ArtifactError, ImageError, InputError
from ppexport.imaging.images import Pixels
from ppexport.imaging.passes import Pass, Upscaled
from ppexport.imaging.pipeline import overlap


class AbandonedError(Exception):
    """The run has ended before this picture."""


Waiting: TypeAlias = Future[Upscaled]


class TileQueue:
    """Takes arrays from any threads, and runs the tiles of all of them in the thread that calls `run`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._lock, self._closed = threading.Lock(), False
        self._passes: SimpleQueue[tuple[Pass, Waiting] | None] = SimpleQueue()
        self._unfinished: set[Waiting] = set()

    def begin(
        self, rgb: Pixels, depth: int = 8, emit: Callable[[NDArray[Any]], None] | None = None
    ) -> Future[Upscaled]:
        """Bring an array, as `upscale_array` takes it, from any thread; its result comes later.

        Cancelling it leaves out the tiles that have not run. With *emit*, complete rows go there, in another thread,
        and the result has none. The result raises what `upscale_array` raises, and AbandonedError where `run` ends
        before.
        """
        one, waiting = Pass(self.runner, rgb, depth, emit), Waiting()
        waiting.add_done_callback(self._unfinished.discard)
        with self._lock:
            if self._closed:
                raise AbandonedError
            self._unfinished.add(waiting)
            self._passes.put((one, waiting))
        return waiting

    def close(self) -> None:
        """No further array will come: `run` ends after those that have."""
        self._passes.put(None)

    def run(self, ran: Callable[[], None]) -> None:
        """Run all tiles until `close`, and call *ran* after each one. What an array lacks is raised where it came from.

        Raises what the runtime raises that is no fault of an array, such as that a device is gone.
        """
        overlap(self._tiles(), self._prepare, lambda tile: self._run(*tile, ran), self._finish, self.abandon)

    def abandon(self) -> None:
        """End at once: whatever was begun, or is later, raises AbandonedError."""
        with self._lock:
            self._closed = True
            unfinished = list(self._unfinished)
        for waiting in unfinished:
            _settle(waiting, AbandonedError())
        self.close()

    def _tiles(self) -> Iterator[tuple[Pass, Waiting, tuple[int, int]]]:
        while (entry := self._passes.get()) is not None:
            one, waiting = entry
            for origin in one.grid:
                if waiting.done():
                    break
                yield one, waiting, origin

    def _prepare(self, tile: tuple[Pass, Waiting, tuple[int, int]]) -> tuple[Pass, Waiting, Prepared | None]:
        one, waiting, origin = tile
        prepared = None
        with _faults_of(one, waiting):
            prepared = one.prepare(origin)
        return one, waiting, prepared

    def _run(
        self, one: Pass, waiting: Waiting, prepared: Prepared | None, ran: Callable[[], None]
    ) -> tuple[Pass, Waiting, NDArray[np.float32] | None]:
        sr = None
        if prepared is not None and not waiting.done():
            with _faults_of(one, waiting):
                sr = one.run(prepared)
            ran()
        return one, waiting, sr

    def _finish(self, done: tuple[Pass, Waiting, NDArray[np.float32] | None]) -> None:
        one, waiting, sr = done
        if sr is not None and not waiting.done():
            with _faults_of(one, waiting):
                if one.finish(sr):
                    with suppress(InvalidStateError):
                        waiting.set_result(one.result())


@contextmanager
def _faults_of(one: Pass, waiting: Waiting) -> Iterator[None]:
    """Pass on what is the array's fault, and end only its tiles."""
    try:
        with one.memory():
            yield
    except (InputError, ImageError, ArtifactError) as error:
        _settle(waiting, error)


def _settle(waiting: Waiting, error: Exception) -> None:
    # Another stage may have failed, or the result may have been cancelled, at the same time.
    with suppress(InvalidStateError):
        waiting.set_exception(error)
