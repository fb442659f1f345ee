"""Threads that work ahead of and behind the caller."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from ppexport.imaging.background import Ahead, Behind


def test_items_come_in_their_order_from_another_thread_and_few_ahead() -> None:
    made: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append((i, threading.get_ident()))
            yield i

    with Ahead(items(), 2) as ahead:
        for i, item in enumerate(ahead):
            assert item == i
            assert len(made) <= i + 4
    assert len(made) == 20
    assert threading.get_ident() not in {thread for _, thread in made}


def test_an_error_of_the_items_comes_in_their_place_and_stop_ends_them() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("two")

    got: list[int] = []
    # Libraries that other tests use may have threads of their own.
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="two"), Ahead(items(), 2) as ahead:
        got.extend(ahead)
    assert got == [1]
    with Ahead(iter(int, 1), 2) as ahead:
        ahead.stop()
        assert len(list(ahead)) == 0
    assert threading.active_count() == before


def give(behind: Behind[int], count: int, error: Exception | None = None) -> None:
    """Give *behind* the numbers below *count*, and raise *error*."""
    with behind:
        for i in range(count):
            behind.put(i)
        if error is not None:
            raise error


def test_work_is_done_behind_to_its_end_and_its_error_comes_out() -> None:
    done: list[int] = []
    with Behind(done.append, 2) as behind:
        for i in range(9):
            behind.put(i)
    assert done == list(range(9))

    def fail(item: int) -> None:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError, match="0"):
        give(Behind(fail, 1), 99)
    with pytest.raises(KeyError):
        give(Behind(done.append, 2), 3, KeyError())
    assert done[-3:] == [0, 1, 2]


def test_ctrl_c_while_waiting_does_not_go_on_before_the_thread_has_ended() -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        if item == 3:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        give(Behind(slow, 8), 6)
    assert done == list(range(6))
