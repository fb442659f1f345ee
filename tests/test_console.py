"""What long work says of its time, with a clock that the tests move."""

from __future__ import annotations

import pytest

from ppexport.cli import console
from ppexport.cli.console import duration, progress_bar
from ppexport.errors import change


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(console.time, "monotonic", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (331, "6 min"), (3600, "1 h"), (7800, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(-0.00004, "+0.0000"), (-0.00005001, "-0.0001"), (0.25, "+0.2500")])
def test_a_change_that_rounds_to_zero_is_not_negative(value, text):
    assert change(value, 4) == text


def said(clock, capsys, what, total, steps, first=0, unit=""):
    """What a log file gets of *steps*, the seconds that each step of a work takes, after *first* earlier ones."""
    with progress_bar(what, unit) as move:
        move(first, total)
        for done, seconds in enumerate(steps, first + 1):
            clock.now += seconds
            move(done, total)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_long_work_is_announced_once_from_its_first_steps(clock, capsys):
    assert said(clock, capsys, "tiles", 5229, [0.06] * 99) == "tiles: 34 of 5,229 done, about 5 min left\n"


def test_a_unit_tells_the_speed(clock, capsys):
    text = said(clock, capsys, "frames", 1000, [0.5] * 9, unit="fps")
    assert text == "frames: 4 of 1,000 done, 2.00 fps, about 8 min left\n"


def test_what_an_earlier_process_did_says_nothing_about_the_speed(clock, capsys):
    assert said(clock, capsys, "crops", 100, [30, 30], first=90) == "crops: 92 of 100 done, about 4 min left\n"


def test_warming_up_says_nothing_about_the_speed(clock, capsys):
    assert said(clock, capsys, "queries", 64, [100, *[0.1] * 63]) == ""


def test_short_work_says_nothing(clock, capsys):
    assert said(clock, capsys, "tiles", 20, [1] * 20) == ""


def test_slow_steps_are_announced_as_well(clock, capsys):
    assert said(clock, capsys, "pictures", 14, [90, 80, 80]) == "pictures: 2 of 14 done, about 16 min left\n"
