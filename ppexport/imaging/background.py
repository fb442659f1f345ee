"""Work in a thread of its own, a few items ahead of or behind the caller's."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
POLL = 0.1
"""Seconds after which a waiting thread looks whether it should end."""
PATIENCE = 2.0
"""Seconds that an item which is no longer needed may take."""


class _End:
    """The last entry of a queue: after it nothing comes but, maybe, an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Ahead(Generic[Item]):
    """Iterates *items* in a thread of its own, at most *count* of them ahead. A context manager, which ends it."""

    def __init__(self, items: Iterable[Item], count: int) -> None:
        self._queue: Queue[Item | _End] = Queue(count)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def _fill(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(_End())
        except BaseException as error:
            self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False

    def __iter__(self) -> Iterator[Item]:
        """The items; an error of theirs is raised in their place. Ends early after `stop`."""
        while not self._stopped.is_set():
            try:
                item = self._queue.get(timeout=POLL)
            except Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def stop(self) -> None:
        """End the thread after the item that it is at."""
        self._stopped.set()

    def __enter__(self) -> Ahead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        # A thread that waits for another program's output ends with this one.
        self._thread.join(PATIENCE)


class Behind(Generic[Item]):
    """Calls *work* for every item in a thread of its own, at most *count* of them behind.

    A context manager: leaving it waits for what is left, also after an exception, and raises what *work* raised.
    """

    def __init__(self, work: Callable[[Item], Any], count: int) -> None:
        self._queue: Queue[Item | _End] = Queue(count)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._empty, args=(work,), name="behind", daemon=True)
        self._thread.start()

    def _empty(self, work: Callable[[Item], Any]) -> None:
        while not isinstance(item := self._queue.get(), _End):
            if self._error is None:
                try:
                    work(item)
                except BaseException as error:
                    self._error = error
        self._ended.set()

    def put(self, item: Item) -> None:
        """Hand over *item*; waits where the thread is too far behind. Raises what *work* raised of an earlier one."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> Behind[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended, interrupted = False, None
        # Not by joining the thread: where an exception interrupts that, Python takes the thread for ended.
        while not self._ended.is_set():
            try:
                if not ended:
                    self._queue.put(_End(), timeout=POLL)
                    ended = True
                self._ended.wait(POLL)
            except Full:
                continue
            except KeyboardInterrupt as again:
                # What follows must not begin before the thread has ended.
                interrupted = again
        if interrupted is not None:
            raise interrupted
        self._thread.join()
        if self._error is not None and self._error is not error and kind is None:
            raise self._error


@contextmanager
def usual_priority() -> Iterator[None]:
    """Undo what the block does to the scheduling of this thread, and give the threads that it starts the same.

    Where it may, as root, SVT-AV1 makes the calling thread and its own real-time threads of the highest priority, for
    which every other program waits: as many of them as a machine has processors stop it.
    """
    if sys.platform != "linux":
        yield
        return
    usual, before = (os.sched_getscheduler(0), os.sched_getparam(0)), set(_threads())
    try:
        yield
    finally:
        for thread in {0, *_threads()} - before:
            # A thread may have ended meanwhile.
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, *usual)


def _threads() -> list[int]:
    """The threads of this process, by their numbers."""
    return [int(path.name) for path in Path("/proc/self/task").iterdir()]
