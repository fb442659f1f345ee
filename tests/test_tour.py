"""The code of docs/tour.md runs as it stands and prints what the page says."""

from __future__ import annotations

import re

import pytest
from shared import ROOT
from small_networks import small_network

import ppexport

PAGE = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(PRINTED,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def tour(tmp_path, monkeypatch, capsys):
    """Runs the page's code in a checkout of nothing but the pictures; returns what it printed and its variables."""

    def run():
        (tmp_path / "calibration").symlink_to(ROOT / "calibration")
        monkeypatch.chdir(tmp_path)
        found = {}
        exec(compile(CODE, "docs/tour.md", "exec"), found)
        return capsys.readouterr().out, found

    return run


def without_numbers(text):
    """The words around the figures, some of which are those of the whole network or of one machine."""
    return re.sub(r"\d[\de.,-]*", "N", text)


def test_the_tour_runs(tour, monkeypatch):
    """With the first layer alone, whose picture is no good, and all else the same."""
    network = small_network()
    monkeypatch.setattr(ppexport, "load_network", lambda name: network)
    printed, found = tour()
    assert without_numbers(printed) == without_numbers(PRINTED)
    assert (found["expected"] - found["computed"]).abs().max() < 1e-5
    assert abs(found["computed"].numpy() - found["sr"]).max() < 1e-5
    assert found["enlarged"].shape == (96, 128, 3)
    # The mask is no matter of the layers.
    figures = [line for line in PRINTED.splitlines() if "pure" in line and "apart" not in line]
    assert all(line in printed.splitlines() for line in figures)
    assert f"{found['impure_tokens']} impure" in PRINTED


@pytest.mark.slow
def test_the_tour_prints_what_the_page_says(tour):
    """The whole network: figures that are no times and no roundings of float32."""
    steady = re.compile(r"takes \d+ ms|\d+e-\d+")
    printed, found = tour()
    assert steady.sub("", printed) == steady.sub("", PRINTED)
    assert (found["expected"] - found["computed"]).abs().max() < 1e-5


def test_it_is_a_tour_of_forty_lines():
    lines = [line for line in CODE.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
