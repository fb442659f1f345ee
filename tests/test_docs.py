"""The documentation's site builds strictly, and what it would not tell by itself is found."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest
import shared
import yaml
from build_docs import CONFIG, build, check_navigation, check_site, navigation, pages, stage

import ppexport
from ppexport.device import artifact
from ppexport.errors import InputError


def described() -> list[str]:
    """What docs/api.md has the site describe, members of classes included."""
    found = []
    for name, members in re.findall(
        r"^::: (\S+)\n(?: +options:\n +members: \[([^]]*)\])?",
        (shared.ROOT / "docs" / "api.md").read_text(),
        re.MULTILINE,
    ):
        found += [name, *(f"{name}.{member}" for member in re.findall(r"\w+", members))]
    return found


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    assert build(tmp_path) == []
    site = tmp_path / "site"
    options = (site / "docs" / "commands.html").read_text(encoding="utf-8")
    # Of a command, a backend and a network.
    assert all(f"<code>{name}" in options for name in ("--flavour, --flavor", "partitioner", "compensation"))
    # From docstrings.
    reference = (site / "docs" / "api.html").read_text(encoding="utf-8")
    assert "in eval mode" in reference
    assert [name for name in described() if f'id="{name}"' not in reference] == []
    assert (site / "search.json").is_file()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "site").mkdir()
    with pytest.raises(InputError, match="holds something else"):
        build(tmp_path)
    assert (tmp_path / "site").is_dir()


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--out", 2)])
def test_an_option_is_no_folder(tmp_path, argument, code):
    done = subprocess.run(
        [sys.executable, str(shared.TOOLS / "build_docs.py"), argument],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert "usage: build_docs.py [-h] OUT" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_artifact_page_describes_every_field():
    text = (shared.ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    table = text.partition("\n## The manifest\n")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(described) == sorted(["format", "version", *(field.name for field in fields(artifact.Manifest))])
    assert f"describes version {artifact.VERSION} of the manifest" in text
    assert f"Versions {artifact.READABLE[0]} to {artifact.READABLE[-2]} are read as well" in text


def test_the_reference_has_every_public_name():
    assert {f"ppexport.{name}" for name in ppexport.__all__ if name != "__version__"} <= set(described())


def test_every_page_is_in_the_navigation():
    nav = navigation(yaml.safe_load((shared.ROOT / CONFIG).read_text(encoding="utf-8"))["nav"])
    assert check_navigation(nav, pages()) == []
    assert len(nav) == len(set(nav))
    assert check_navigation(nav[1:], pages()) == [f"{nav[0]} is missing from the navigation in {CONFIG}"]
    assert check_navigation([*nav, "docs/x.md"], pages()) == [f"{CONFIG} names docs/x.md, which does not exist"]


def test_a_page_keeps_its_links_and_its_files_become_pages(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "a.md").write_text("[code](../b.py) [gone](c.md#there) [else](https://example.org) ![](p.svg)")
    (root / "docs" / "p.svg").write_text("<svg/>")
    (root / "b.py").write_text("x = 1")
    assert stage(out, root) == ["docs/a.md: c.md is no file of the repository"]
    assert "[code](../b.py.md)" in (out / "docs" / "a.md").read_text()
    assert "x = 1" in (out / "b.py.md").read_text()
    assert (out / "docs" / "p.svg").is_file()


def test_links_of_a_built_site_are_followed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="#here"></a><a href="b.html#there"></a><a href="c.html"></a>'
        '<a href="https://example.org"></a><script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text("<p></p>")
    assert check_site(tmp_path) == [
        "a.html links to b.html#there, but there is no such heading",
        "a.html links to c.html, which does not exist",
        "a.html loads https://example.org/x.js from another host",
    ]
