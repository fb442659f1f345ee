"""The project's own files: what its texts name exists, and its tools have one version everywhere."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from shared import ROOT, TOOLS

TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_links_to_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (ROOT / link).exists(), link


def test_programs_that_texts_and_the_makefile_call_exist():
    for name in ("README.md", "CONTRIBUTING.md", "Makefile", "models/pp_atd_light_x2/SPEED.md"):
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
