"""Build the documentation as a site, strictly: python tools/build_docs.py OUT

OUT gets `pages`, in which every page has the place that it has in the repository, so that links are the same in both,
and `site`, which any web server can host, and which asks no other host for anything. Two pages are completed on the
way: the options of all commands, from the program itself, and the Python reference, from docstrings. A file that a page
links to and that is no page becomes one: its text.

It ends with 1 and a line for each problem if a link or an anchor leads nowhere, if a page is missing from the
navigation, or if a page would load something from another host. Needs the extra `docs`.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from ppexport.cli.console import fail
from ppexport.errors import InputError, PpexportError, printable, require

ROOT = Path(__file__).resolve().parents[1]
CONFIG, STYLE = "docs/mkdocs.yml", "docs/site.css"
PATTERNS = ("*.md", "docs/*.md", "docs/*/*.md", "models/*/*.md")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[#)])")
PICTURES = {".png", ".svg", ".webp"}
COMMANDS = "<!-- commands -->"
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""What a browser loads by itself. What of `link` it does not load has a `rel` of NAMES."""
NAMES = {"canonical", "prev", "next", "alternate"}


def pages(root: Path = ROOT) -> list[str]:
    """The pages of the repository, by their paths in it."""
    return sorted(str(path.relative_to(root)) for pattern in PATTERNS for path in root.glob(pattern))


def navigation(nav: list[dict[str, Any]]) -> list[str]:
    """The pages that the *nav* of the configuration names, at any depth."""
    found = []
    for value in (value for entry in nav for value in entry.values()):
        found += [value] if isinstance(value, str) else navigation(value)
    return found


def check_navigation(nav: list[str], there: list[str]) -> list[str]:
    """Pages that the navigation lacks, and pages that it names and that are not *there*."""
    lacks = [f"{page} is missing from the navigation in {CONFIG}" for page in sorted(set(there) - set(nav))]
    return lacks + [f"{CONFIG} names {page}, which does not exist" for page in sorted(set(nav) - set(there))]


def text_page(name: str, text: str) -> str:
    """The page that shows the *text* of the file *name*."""
    return f"{NOT_SEARCHED}# {name}\n\n````{Path(name).suffix[1:]}\n{text}\n````\n"


def write(target: Path, text: str) -> None:
    """Write a page, and the folders that it lies in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def stage(out: Path, root: Path = ROOT) -> list[str]:
    """Lay all pages below *root* and what they link to into *out*; what is wrong with their links."""
    problems, waiting, done = [], pages(root), set()
    while waiting:
        page = waiting.pop()
        done.add(page)
        text = (root / page).read_text(encoding="utf-8")
        links = {}
        for link in set(LINK.findall(text)):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            if "://" in link or link.startswith("mailto:"):
                continue
            if not (root / target).is_file() or target.startswith("../"):
                problems.append(f"{page}: {link} is no file of the repository")
            elif target.endswith(".md"):
                waiting += [target] if target not in done else []
            elif Path(target).suffix in PICTURES:
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / target, out / target)
            else:
                links[link] = f"{link}.md"
                write(out / f"{target}.md", text_page(target, (root / target).read_text(encoding="utf-8")))
        text = LINK.sub(lambda match, links=links: links.get(match[0], match[0]), text)  # type: ignore[misc]
        write(out / page, text.replace(COMMANDS, commands()) if COMMANDS in text else text)
    return problems


def commands() -> str:
    """All commands of the command line, with their arguments and options, as Markdown."""
    from typer.main import get_command

    from ppexport.cli import app
    from ppexport.cli.options import registered

    group: Any = get_command(app)
    parts = []
    for name, command in group.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(["ppexport", name, *command.collect_usage_pieces(context)])
        parts += [f"## {name}", command.help, f"```\n{usage}\n```"]
        records = filter(None, (param.get_help_record(context) for param in command.get_params(context)))
        told = {names: about.format(**registered()) for names, about in records if "--help" not in names}
        parts += [as_list(told)]
        parts += [f"Example: `{command.epilog.removeprefix('Example: ')}`"]
    return "\n\n".join([*parts, *own_options()])


def own_options() -> list[str]:
    """The options of every backend and of every network, as Markdown."""
    from ppexport.backends.backend import backends
    from ppexport.backends.options import describe_options
    from ppexport.networks.architecture import architectures

    parts = ["## Options of the backends", "As `export -O NAME=VALUE` takes them."]
    for backend in backends().values():
        about = f"{backend.summary[:1].upper()}{backend.summary[1:]}, in {', '.join(backend.precisions)}."
        told = describe_options(backend.options()) or {"": "It has no options."}
        parts += [f"### {backend.name}", about, as_list(told)]
    parts += ["## Options of the networks", "As `--option NAME=VALUE` takes them."]
    for architecture in architectures().values():
        if (model := architecture.options()) is not None:
            parts += [f"### {architecture.name}", f"{architecture.summary}.", as_list(describe_options(model))]
    return parts


def as_list(told: dict[str, str]) -> str:
    """A list of names and what is *told* of them; "" is no name."""
    return "\n".join(f"* `{name}`: {about}" if name else about for name, about in told.items())


class Built(HTMLParser):
    """What a built page can be linked to by, and what it links to and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one element."""
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in LOADS and LOADS[tag] in found and not NAMES & set(found.get("rel", "").split()):
            self.loads.append(found[LOADS[tag]])


def check_site(site: Path) -> list[str]:
    """Links and anchors of the built *site* that lead nowhere, and what its pages would load from other hosts."""
    built = {path: Built(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in built.items():
        where = path.relative_to(site)
        for link in page.links + page.loads:
            if re.match(r"(https?:)?//", link):
                problems += [f"{where} loads {link} from another host"] if link in page.loads else []
                continue
            if re.match(r"[a-z]+:", link) or where.name == "404.html":
                continue
            file, _, anchor = unquote(link.partition("?")[0]).partition("#")
            target = (path.parent / file).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                problems.append(f"{where} links to {link}, which does not exist")
            elif target in built and anchor not in built[target].anchors:
                problems.append(f"{where} links to {link}, but there is no such heading")
    return sorted(set(problems))


def build(out: Path) -> list[str]:
    """Build the site into *out*; what is wrong with it. Raises InputError for a folder with anything else in it."""
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()) and not (out / "mkdocs.yml").is_file():
        raise InputError(f"{out} holds something else than a site: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / CONFIG, out / "mkdocs.yml")
    for folder in ("pages", "site"):
        shutil.rmtree(out / folder, ignore_errors=True)
    config = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))
    problems = check_navigation(navigation(config["nav"]), pages())
    problems += stage(out / "pages")
    shutil.copyfile(ROOT / STYLE, out / "pages" / STYLE)
    if problems:
        return problems
    # Docstrings are read from the sources here, whatever is installed.
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(out / "mkdocs.yml")]
    done = subprocess.run(
        command, cwd=out, env={**os.environ, "PYTHONPATH": found}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [printable(done.stdout + done.stderr)]
    return check_site(out / "site")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the site, empty or with an earlier one")
    given = parser.parse_args()
    try:
        require("zensical", "docs")
        sys.exit("\n".join(build(given.out)) or 0)
    except PpexportError as error:
        fail(str(error))
        sys.exit(error.exit_code)
