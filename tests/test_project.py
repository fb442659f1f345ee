"""The project's own files: what its texts name exists, and its tools have one version everywhere."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import shared
import yaml
from build_docs import pages
from typer.main import get_command

from ppexport.backends.backend import find_backend
from ppexport.backends.options import parse_options
from ppexport.cli import app
from ppexport.cli.options import parse_pairs
from ppexport.files import module_command

ROOT, TOOLS = shared.ROOT, shared.TOOLS
TEXTS = pages()
COMMAND = re.compile(r"(?:\S*/)?ppexport (\S.*)")


def anchors(path: Path) -> set[str]:
    """The headings of a text as links name them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_links_to_exists(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


def commands_of(text: str) -> list[list[str]]:
    """The words behind `ppexport` in all lines of the indented and fenced blocks of *text*."""
    found, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        if (fenced or line.startswith("    ")) and (match := COMMAND.match(line.strip())):
            found.append(shlex.split(match[1], comments=True))
    return found


def parse(words: list[str]) -> None:
    """Flags, numbers, backends, their precisions and their options; files need not exist."""
    given = get_command(app).commands[words[0]].make_context(words[0], words[1:]).params
    if "backend" in given:
        backend = find_backend(given["backend"])
        assert given["precision"] in backend.precisions, words
        parse_options(backend, parse_pairs(given["backend_option"], "-O", "flavour=ort"))


@pytest.mark.parametrize("name", TEXTS)
def test_commands_of_a_text_are_those_of_the_command_line(name):
    for words in commands_of((ROOT / name).read_text(encoding="utf-8")):
        parse(words)


@pytest.mark.parametrize(("name", "rows"), [("README.md", 6), ("docs/choosing.md", 9)])
def test_options_in_a_table_of_devices_are_those_of_export(name, rows):
    """They stand alone in their cells, behind `ppexport export MODEL` in the heading or the sentence above."""
    found = re.findall(r"^\|[^|]+\| ((?:`-[^`]+` ?)+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == rows
    for options in found:
        parse(["export", "pp_atd_light_x2", *shlex.split(options.replace("`", ""))])


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size < 8000, "move it into docs/, and link to it"


def test_a_wrong_command_in_a_text_is_found():
    text = "text\n\n    .venv/bin/ppexport parity a \\\n      --aginst b  # new\n```sh\nppexport x\n```\nppexport is\n"
    words, other = commands_of(text)
    assert (words, other) == (["parity", "a", "--aginst", "b"], ["x"])
    with pytest.raises(Exception, match="--aginst"):
        get_command(app).commands["parity"].make_context("parity", words[1:])


def test_programs_that_texts_and_the_makefile_call_exist():
    for name in (*TEXTS, "Makefile"):
        if name == "CHANGELOG.md":  # It names what was removed, too.
            continue
        for program in re.findall(r"tools/[a-z_]+\.(?:py|sh)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / program).is_file(), f"{name}: {program}"


def test_hooks_have_the_versions_of_the_tests():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    pinned = config["options.extras_require"]["test"].split()
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    needed = [package for hook in local["hooks"] for package in hook.get("additional_dependencies", [])]
    assert all("==" in package for package in needed)
    assert [package for package in needed if package.startswith("ruff")] == [
        p for p in pinned if p.startswith("ruff")
    ] * 2


def test_the_packages_of_setup_cfg_are_those_of_the_tree():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ppexport").rglob("*.py")}
    assert sorted(listed) == sorted([*(".".join(f.parts) for f in folders), "ppexport.models", "ppexport.calibration"])
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_names_of_files_tell_the_room():
    """Two files of one name cannot be told apart in a traceback; `__init__` aside, and a command and its room."""
    names = Counter(path.name for path in (ROOT / "ppexport").rglob("*.py") if path.parent.name != "cli")
    assert [name for name, count in names.items() if count > 1 and name != "__init__.py"] == []


def test_no_file_is_long():
    sources = [path for folder in ("ppexport", "tools") for path in (ROOT / folder).rglob("*.py")]
    done = subprocess.run([sys.executable, str(TOOLS / "file_length.py"), *map(str, sources)], check=False)
    assert done.returncode == 0


def test_long_files_are_refused(tmp_path):
    short, long = tmp_path / "short.py", tmp_path / "long.py"
    short.write_text("x = 1\n" * 400)
    long.write_text("x = 1\n" * 401)
    command = [sys.executable, str(TOOLS / "file_length.py")]
    assert subprocess.run([*command, str(short)], check=False).returncode == 0
    done = subprocess.run([*command, str(short), str(long)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{long} has 401 lines, and 400 at most\n")


def test_programs_of_ours_take_no_modules_from_the_current_folder(tmp_path):
    for name in ("json", "numpy", "onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    done = subprocess.run(
        module_command("ppexport.backends.onnx.simplify", "absent.onnx", "out.onnx"),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "a stranger ran" not in done.stderr
    assert "absent.onnx" in done.stderr
