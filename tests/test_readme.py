"""The README's first commands work as they stand there, and print what it says, on a smaller size and picture."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from PIL import Image
from shared import ROOT
from typer.testing import CliRunner

from ppexport.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d.]*(?:x\d+)?(?:e-\d+)?(?![\w.])")
FULL, SMALL = "64", "16"
"""The sides of a tile in the README and in the test; a run of 16x16 takes a sixteenth of the time."""


def blocks(section: str, language: str) -> list[list[str]]:
    """The lines of the fenced blocks of the README's *section*."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [block.splitlines() for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def stable(line: str) -> str:
    """A line of output without what depends on size and machine: numbers, with a plural, and the width of columns."""
    return re.sub(r"\bN (\w+)s\b", r"N \1", re.sub(r"\s+", " ", NUMBER.sub("N", line))).strip()


def assert_shown(shown: list[str], printed: str) -> None:
    """The *shown* lines are among those *printed*, in this order; "…" stands for whatever was left out."""
    rest = iter(map(stable, printed.splitlines()))
    for line in shown:
        start, cut, _ = line.partition("…")
        wanted = stable(start)
        assert any(there.startswith(wanted) if cut else there == wanted for there in rest), line


@pytest.fixture
def fresh_folder(tmp_path, monkeypatch):
    """The current folder, with the photograph of the README, smaller."""
    photo = tmp_path / "calibration" / "images" / "chelsea.png"
    photo.parent.mkdir(parents=True)
    with Image.open(ROOT / "calibration" / "images" / "chelsea.png") as picture:
        picture.crop((100, 100, 116, 116)).save(photo)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_commands_do_what_the_readme_shows(fresh_folder):
    commands, outputs = blocks("First success", "sh"), blocks("First success", "text")
    assert len(commands) == len(outputs) == 3
    for (command,), shown in zip(commands, outputs, strict=True):
        words = shlex.split(command.replace(f"{FULL}x{FULL}", f"{SMALL}x{SMALL}"))
        assert words[0] == "ppexport"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
        assert_shown(shown, done.output)
    with Image.open("chelsea_x2.png") as picture:
        assert picture.size == (32, 32)
    # What stands there in Python runs with the artifact that the first command made.
    ((*lines,),) = blocks("From Python", "python")
    found: dict = {}
    exec("\n".join(lines).replace(f"{FULL}, {FULL}", f"{SMALL}, {SMALL}"), found)
    assert found["sr"].shape == (1, 3, 32, 32)
    assert found["impure_tokens"] <= found["capacity"] == 256


def test_a_line_that_is_not_printed_is_found():
    assert_shown(["…", "b: 3 of 4, …"], "a\nb:  1 of 20, 3 s\n")
    for shown in ("b: 3 of 4", "c", "b: 3 off 4, …"):
        with pytest.raises(AssertionError):
            assert_shown([shown], "a\nb:  1 of 20, 3 s\n")


def test_the_latency_shown_is_the_recorded_one():
    ((machine, *shown),) = blocks("Check and measure", "text")
    records = yaml.safe_load((ROOT / "models" / "pp_atd_light_x2" / "latency.yaml").read_text(encoding="utf-8"))
    (record,) = records[machine].values()
    (low, high), p90, p50 = (record[key] for key in ("p90_interval_ms", "p90_ms", "p50_ms"))
    wanted = {"p90, ms": f"{p90:.1f}", "95 % interval": f"{low:.1f} to {high:.1f}", "p50, ms": f"{p50:.1f}"}
    assert dict(tuple(map(str.strip, line.split("│")[1:3])) for line in shown if "│" in line) == wanted
