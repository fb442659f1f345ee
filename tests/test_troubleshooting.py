"""docs/troubleshooting.md quotes messages that the program has, and lacks none of those that people meet."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from shared import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
MET = {
    "InputError", "UnavailableError", "ExportError", "ImageError", "CheckpointError", "CardError", "TwinError",
    "DeviceError",
}  # fmt: skip
"""Errors of what people do. Those of damaged files, of which there are many, are a family on the page."""
LEAST = 9
"""Letters of a message, beside what differs, by which it can be told from others."""
DIFFERS = "\0"


def text_of(node: ast.AST) -> str:
    """The text that *node* makes, with DIFFERS for each part that is not known before the program runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return DIFFERS


def raised(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and text of every message that a `raise` of one of MET has itself."""
    return [
        (node.lineno, text_of(node.exc.args[0]))
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if isinstance(node.exc.func, ast.Name) and node.exc.func.id in MET
    ]


@cache
def sources() -> dict[str, ast.Module]:
    """{path: what is in it} of all files of the program."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "ppexport").rglob("*.py"))
    }


def quoted(page: Path = PAGE) -> list[str]:
    """The messages in the first column of the tables, and in the last section."""
    body, _, last = page.read_text(encoding="utf-8").partition("\n## Damaged files\n")
    cells = [line.split(" | ")[0] for line in body.splitlines() if line.startswith("| `")]
    return [message for cell in (*cells, last) for message in re.findall(r"`([^`]+)`", cell)]


@cache
def pattern_of(message: str) -> re.Pattern[str]:
    """Finds the texts that have the parts of *message* between its "…" in this order."""
    return re.compile(".*".join(re.escape(part.strip()) for part in message.split("…") if part.strip()), re.DOTALL)


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def missing(found: list[tuple[int, str]], messages: list[str]) -> list[tuple[int, str]]:
    """What of *found* no one of *messages* stands for, if it can be told from others at all."""
    patterns = [pattern_of(message) for message in messages if letters(message) >= LEAST]
    return [
        (line, text)
        for line, text in found
        if letters(text) >= LEAST and not any(pattern.search(text) for pattern in patterns)
    ]


def said(tree: ast.Module) -> set[str]:
    """All texts in *tree* that may be a message: docstrings are none."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = {text_of(node) for node in ast.walk(tree) if id(node) not in bare}
    return {text for text in texts if letters(text) >= LEAST}


def test_what_the_page_quotes_is_in_the_program():
    known = set().union(*map(said, sources().values()))
    assert [message for message in quoted() if not any(map(pattern_of(message).search, known))] == []


def test_the_page_has_every_message_that_people_meet():
    messages = quoted()
    found = {path: missing(raised(tree), messages) for path, tree in sources().items()}
    assert {path: lines for path, lines in found.items() if lines} == {}, f"add a line to {PAGE.name}"


def test_a_message_without_a_line_is_found():
    tree = ast.parse('raise InputError(f"{path} has no such colour: choose another")\nraise ValueError("not this")\n')
    assert missing(raised(tree), ["… has no such size"]) == [(1, f"{DIFFERS} has no such colour: choose another")]
    assert missing(raised(tree), ["… has no such colour: …"]) == []
