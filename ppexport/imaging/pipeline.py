"""Three stages of one item each that overlap: prepare, run, finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Done = TypeVar("Done")


POLL = 0.5
"""Seconds after which a waiting caller looks for Ctrl-C."""


def _awaited(future: Future[Done]) -> Done:
    """The result of *future*.

    A signal that comes just before a wait without an end does not end it: items may be awaited for ever.
    """
    while True:
        try:
            return future.result(POLL)
        except FutureTimeout:
            if future.done():
                return future.result()


def overlap(
    items: Iterable[Item],
    prepare: Callable[[Item], Ready],
    run: Callable[[Ready], Done],
    finish: Callable[[Done], object],
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Call finish(run(prepare(item))) for all *items*, so that the slow stage in the middle never waits for the others.

        preparing thread    item k + 1, prepare(k + 1)
        calling thread      run(k)
        finishing thread    finish(k - 1)

    The runtimes release Python's lock while they compute, and NumPy does for all but the smallest arrays, so that
    threads are enough. No stage is more than one item ahead of the next one: what is held does not grow with the number
    of items. A stage gets the items in their order, one at a time, so what only it touches needs no lock. An exception
    of a stage or of *items* comes out as it was raised, once; if there are several, which one does not depend on the
    clock. Whatever ends the call, KeyboardInterrupt too, both threads have then ended, after what they already had.
    *Items* that wait for something must end when *stop* is called, which happens where an exception ends the call.
    """
    source = iter(items)

    def prepare_next() -> list[Ready]:
        """The next prepared item, or nothing after the last one."""
        for item in source:
            return [prepare(item)]
        return []

    with ThreadPoolExecutor(1, "prepare") as preparing, ThreadPoolExecutor(1, "finish") as finishing:
        try:
            upcoming = preparing.submit(prepare_next)
            last: Future[object] | None = None
            while prepared := _awaited(upcoming):
                upcoming = preparing.submit(prepare_next)
                result = run(prepared[0])
                if last is not None:
                    last.result()
                last = finishing.submit(finish, result)
            if last is not None:
                last.result()
        except BaseException:
            stop()
            raise
