"""Three overlapping stages: order, bounds, errors, and no thread left behind. Nothing here depends on timing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from ppexport.imaging.pipeline import overlap

SECONDS = 60
"""No test waits so long unless it fails."""


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Log:
    """What every stage saw, and in which thread; `fail` are (stage, item) that raise, with what."""

    def __init__(self, **fail: tuple[int, BaseException]) -> None:
        self.fail = fail
        self.seen: dict[str, list[int]] = {"prepare": [], "run": [], "finish": []}
        self.threads: dict[str, set[int]] = {stage: set() for stage in self.seen}

    def note(self, stage: str, item: int) -> int:
        self.seen[stage].append(item)
        self.threads[stage].add(threading.get_ident())
        bad, error = self.fail.get(stage, (None, None))
        if item == bad:
            assert error is not None
            raise error
        return item

    def prepare(self, item: int) -> int:
        return self.note("prepare", item)

    def run(self, item: int) -> int:
        return self.note("run", item)

    def finish(self, item: int) -> None:
        self.note("finish", item)

    def overlap(self, items: int = 9) -> None:
        overlap(range(items), self.prepare, self.run, self.finish)


@pytest.mark.parametrize("items", [0, 1, 2, 3, 50])
def test_every_stage_sees_all_items_in_order(items: int) -> None:
    log = Log()
    log.overlap(items)
    assert log.seen == {stage: list(range(items)) for stage in ("prepare", "run", "finish")}


def test_results_pass_from_stage_to_stage() -> None:
    results: list[str] = []
    overlap("abc", str.upper, lambda text: text * 2, results.append)
    assert results == ["AA", "BB", "CC"]


def test_each_stage_has_a_thread_and_run_has_the_callers() -> None:
    log = Log()
    log.overlap()
    assert log.threads["run"] == {threading.get_ident()}
    assert len(set.union(*log.threads.values())) == 3


def test_the_next_is_prepared_and_the_last_finished_while_one_runs() -> None:
    n = 6
    preparing, finishing = ([threading.Event() for _ in range(n)] for _ in range(2))

    def run(item: int) -> int:
        # Without overlap neither would ever begin before this returns.
        assert item + 1 == n or preparing[item + 1].wait(SECONDS)
        assert item == 0 or finishing[item - 1].wait(SECONDS)
        return item

    def prepare(item: int) -> int:
        preparing[item].set()
        return item

    overlap(range(n), prepare, run, lambda item: finishing[item].set())
    assert all(event.is_set() for event in preparing + finishing)


def test_a_slow_finish_does_not_hold_up_the_next_run() -> None:
    n = 6
    running = [threading.Event() for _ in range(n)]

    def run(item: int) -> int:
        running[item].set()
        return item

    def finish(item: int) -> None:
        assert item + 1 == n or running[item + 1].wait(SECONDS)

    overlap(range(n), lambda item: item, run, finish)


def test_no_stage_is_more_than_one_item_ahead() -> None:
    done = {"run": 0, "finish": 0}

    def prepare(item: int) -> int:
        # While item - 1 runs, at the earliest.
        assert done["run"] >= item - 1
        return item

    def run(item: int) -> int:
        # At most item - 1 is still being finished.
        assert done["finish"] >= item - 1
        done["run"] += 1
        return item

    def finish(item: int) -> None:
        done["finish"] += 1

    overlap(range(200), prepare, run, finish)
    assert done == {"run": 200, "finish": 200}


@pytest.mark.parametrize("stage", ["prepare", "run", "finish"])
@pytest.mark.parametrize("item", [0, 4, 8])
@pytest.mark.parametrize("kind", [ValueError, MemoryError, KeyboardInterrupt, SystemExit, StopIteration])
def test_an_error_comes_out_as_it_was_raised(stage: str, item: int, kind: type[BaseException]) -> None:
    error = kind("as it was")
    log = Log(**{stage: (item, error)})
    with pytest.raises(kind) as caught:
        log.overlap()
    assert caught.value is error
    assert error.__context__ is None
    # Later stages never see the item; of the failing stage it is the last.
    assert log.seen[stage] == list(range(item + 1))
    assert item not in {"prepare": log.seen["run"], "run": log.seen["finish"], "finish": []}[stage]
    # A finish is looked at once the next run is over.
    assert len(log.seen["run"]) <= item + 2


def test_of_several_errors_the_same_one_always_comes_out() -> None:
    for _ in range(50):
        log = Log(prepare=(5, ValueError("prepare")), finish=(4, ValueError("finish")))
        with pytest.raises(ValueError, match="prepare"):
            log.overlap()
        log = Log(run=(5, ValueError("run")), finish=(4, ValueError("finish")))
        with pytest.raises(ValueError, match="run"):
            log.overlap()


def test_an_error_of_the_items_comes_out() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("no more")

    log = Log()
    with pytest.raises(ValueError, match="no more"):
        overlap(items(), log.prepare, log.run, log.finish)
    assert log.seen["run"] == [0, 1, 2]


def test_items_that_wait_end_when_they_are_told_to() -> None:
    told = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert told.wait(SECONDS)

    def run(item: int) -> int:
        raise ValueError("the run failed")

    with pytest.raises(ValueError, match="the run failed"):
        overlap(items(), lambda item: item, run, lambda item: None, told.set)


def test_finishing_what_was_run_ends_before_an_error_comes_out() -> None:
    begun, finished = threading.Event(), threading.Event()

    def run(item: int) -> int:
        if item == 1:
            assert begun.wait(SECONDS)
            raise ValueError("stop")
        return item

    def finish(item: int) -> None:
        begun.set()
        # Given every chance to leave early, the call must not.
        threading.Event().wait(0.05)
        finished.set()

    with pytest.raises(ValueError, match="stop"):
        overlap(range(3), lambda item: item, run, finish)
    assert finished.is_set()


@pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to a thread")
def test_ctrl_c_while_the_runtime_is_busy() -> None:
    log = Log()

    def run(item: int) -> int:
        if item == 3:
            signal.raise_signal(signal.SIGINT)
        return log.run(item)

    with pytest.raises(KeyboardInterrupt):
        overlap(range(9), log.prepare, run, log.finish)
    assert log.seen["run"] == [0, 1, 2]
    assert log.seen["finish"] == [0, 1, 2]


@pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to a thread")
@pytest.mark.parametrize("stage", ["prepare", "finish"])
def test_ctrl_c_while_the_caller_waits_for_a_thread(stage: str) -> None:
    caller, interrupted = threading.get_ident(), threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def work(name: str, item: int) -> int:
        if name == stage and item == 3:
            # The caller has nothing to do but to wait for this item, and is interrupted there. A signal that comes in
            # the instant before it waits is not seen until it has waited, so that one is not enough.
            for _ in range(20 * SECONDS):
                signal.pthread_kill(caller, signal.SIGINT)
                if interrupted.wait(0.05):
                    break
            assert interrupted.is_set()
        return item

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            overlap(range(9), lambda item: work("prepare", item), lambda item: item, lambda item: work("finish", item))
    finally:
        signal.signal(signal.SIGINT, before)
