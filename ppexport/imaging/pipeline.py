"""Three stages side by side, so that the slow one in the middle never waits for the other two. Standard library only.

    preparing thread    prepare(k + 1)
    calling thread      run(k)
    finishing thread    finish(k - 1)

The runtimes release Python's lock while they compute, and NumPy does for all but the smallest arrays, so that threads
are enough. No stage is more than one item ahead of the next one: what is held does not grow with the number of items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


def overlap(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    run: Callable[[Prepared], Result],
    finish: Callable[[Result], None],
) -> None:
    """Call finish(run(prepare(item))) for all *items*, each stage in a thread of its own, *run* in the caller's.

    A stage gets the items in their order, one at a time, so what only it touches needs no lock. An exception of a stage
    or of *items* comes out as it was raised, once; if there are several, which one does not depend on the clock.
    Whatever ends the call, KeyboardInterrupt too, both threads have then ended, after what was already handed to them.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "prepare") as preparing, ThreadPoolExecutor(1, "finish") as finishing:

        def prepare_next() -> Future[Prepared] | None:
            for item in source:
                return preparing.submit(prepare, item)
            return None

        upcoming = prepare_next()
        last: Future[None] | None = None
        while upcoming is not None:
            prepared = upcoming.result()
            upcoming = prepare_next()
            result = run(prepared)
            if last is not None:
                last.result()
            last = finishing.submit(finish, result)
        if last is not None:
            last.result()
