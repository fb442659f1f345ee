"""What long work says of its time, with a clock that the tests move."""

from __future__ import annotations

import pytest

from ppexport.cli import console
from ppexport.cli.console import Forecast, duration, progress_bar


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


def test_long_work_is_announced_once_from_its_first_steps(clock):
    forecast = Forecast("tiles")
    assert forecast.after(0, 5229) is None
    said = []
    for done in range(1, 100):
        clock.now += 0.06
        said.append(forecast.after(done, 5229))
    assert [line for line in said if line] == ["tiles: 35 of 5,229 done, about 5 min left"]


def test_what_an_earlier_process_did_says_nothing_about_the_speed(clock):
    forecast = Forecast("crops")
    forecast.after(90, 100)
    clock.now += 30
    assert forecast.after(91, 100) is None
    clock.now += 30
    assert forecast.after(92, 100) == "crops: 92 of 100 done, about 4 min left"


def test_warming_up_says_nothing_about_the_speed(clock):
    forecast = Forecast("queries")
    forecast.after(0, 64)
    for done in range(1, 65):
        clock.now += 100 if done == 1 else 0.1
        assert forecast.after(done, 64) is None


def test_short_work_says_nothing(clock):
    forecast = Forecast("tiles")
    for done in range(21):
        assert forecast.after(done, 20) is None
        clock.now += 1


def test_a_log_file_gets_the_announcement_and_no_bar(clock, capsys):
    with progress_bar("pictures") as move:
        for done in range(9):
            move(done, 100)
            clock.now += 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "pictures: 2 of 100 done, about 8 min left\n"
