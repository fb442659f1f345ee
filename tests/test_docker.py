"""The recipes for containers, which nothing here can build, name what exists."""

from __future__ import annotations

import configparser
import re
import shlex

import pytest
from shared import ROOT
from typer.main import get_command

from ppexport.cli import app

FOLDER = ROOT / "docs" / "docker"
RECIPE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
JETSON = (FOLDER / "jetson.Dockerfile").read_text(encoding="utf-8")
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
SENT = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def setup():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_extras_and_versions_are_those_of_the_project(setup):
    (extras,) = re.findall(r"ppexport-\*\.whl\)\[([\w,-]+)\]", RECIPE)
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    assert ".whl)[" not in JETSON, "a board gets no torch"
    pythons = set(re.findall(r"^FROM python:(\d+\.\d+)-slim-bookworm", RECIPE, re.MULTILINE))
    assert len(pythons) == 1
    assert all(
        f"Programming Language :: Python :: {version}" in setup["metadata"]["classifiers"] for version in pythons
    )
    (torch,) = re.findall(r"^ARG TORCH=(.+)$", RECIPE, re.MULTILINE)
    assert f"torch=={torch}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_is_sent_is_what_the_wheel_is_made_of(setup):
    lines = [line for line in SENT.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything else stays out"
    sent = {line[1:] for line in lines if line.startswith("!")}
    needed = {line.split("=")[1].strip() for line in setup["options"]["package_dir"].split("\n") if line}
    needed |= {setup["metadata"]["license_files"], setup["metadata"]["long_description"].removeprefix("file: ")}
    assert sent == needed | {"setup.cfg", "pyproject.toml"}
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.parametrize("text", [RECIPE, JETSON], ids=["cpu", "jetson"])
def test_bases_are_pinned_and_the_command_is_ours(text):
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    assert 'ENTRYPOINT ["ppexport"]' in text


def test_the_image_for_exports_has_no_rights():
    before, _, after = RECIPE.partition("\nUSER 1000\n")
    assert "RUN" in before
    assert "RUN" not in after
    assert "USER" not in after


def test_the_page_names_its_files_and_commands_that_exist():
    group = get_command(app)
    commands = re.findall(r"^pp[xj] (.+)$", PAGE, re.MULTILINE)
    assert len(commands) >= 8
    for words in map(shlex.split, commands):
        group.commands[words[0]].make_context(words[0], words[1:])
    for name in re.findall(r"-f (\S+Dockerfile)", PAGE + RECIPE + JETSON):
        assert (ROOT / name).is_file() or (FOLDER / name).is_file(), name
