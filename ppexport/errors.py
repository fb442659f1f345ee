"""Errors that end a command with one clear sentence, and the exit codes they stand for."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")
EXIT_GATE_FAILED = 1
"""A gate, a check or a lint rule failed; the command itself worked."""
EXIT_BAD_INPUT = 2
"""A file, an option or a combination of them cannot be used."""
EXIT_UNAVAILABLE = 3
"""A package, a device or weights that this machine lacks are needed."""

EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells report it."""

ESCAPES = re.compile(
    # Control sequences and strings of terminals, 7-bit and 8-bit, also those that never end; then any other escape.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Controls but tab and newline, and the marks that turn the direction of text.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def printable(data: bytes | str) -> str:
    """*data* without anything that a terminal would obey."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    text = ESCAPES.sub("", text.replace("\r\n", "\n"))
    return CONTROLS.sub("", text)


class PpexportError(Exception):
    """Base of every expected failure: its text is one sentence a user can act on."""

    exit_code = EXIT_BAD_INPUT

    def __str__(self) -> str:
        """The sentence, in which the names of files and the words of libraries may hold codes for a terminal."""
        return printable(super().__str__())


class InputError(PpexportError):
    """An option or a value that cannot be used."""


class CheckpointError(PpexportError):
    """A weights file that is unreadable, incomplete or of another network."""


class CardError(PpexportError):
    """A model card that is missing, unreadable or invalid."""


class ArtifactError(PpexportError):
    """An artifact folder whose manifest or files cannot be used."""


class ImageError(PpexportError):
    """A picture that cannot be read or written."""


class TwinError(InputError):
    """A network or a size that the static rewrite cannot express."""


class ExportError(PpexportError):
    """A graph that cannot be exported or fails its own checks."""


class UnavailableError(PpexportError):
    """A package, a device or weights that this machine lacks."""

    exit_code = EXIT_UNAVAILABLE


def present(value: T | None, what: str) -> T:
    """*value*. Raises InputError for None, also under `python -O`, which leaves assertions out; *what* names it."""
    if value is None:
        raise InputError(f"{what} is missing")
    return value


UNSAFE = re.compile(r"weights_only|allow_pickle|pickle\.load|\btrust", re.IGNORECASE)
"""In the messages of NumPy and PyTorch that advise to load a file which may run code."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the kind of *error* where it says nothing.

    Advice to load a file unsafely is never passed on.
    """
    line = (printable(str(error)).strip() or type(error).__name__).splitlines()[0]
    return "it could only be read unsafely, which ppexport never does" if UNSAFE.search(line) else line


def imported(module: str, extra: str) -> Any:
    """The *module* of an optional package, which comes with *extra*.

    Raises UnavailableError where the package is broken or incomplete, or a native library of it does not load.
    """
    try:
        # By name: type checkers would ask for packages that few have.
        return import_module(module)
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"{module} cannot be loaded here ({first_line(error)}): install the extra {extra!r} of ppexport again"
        ) from None


def counted(number: float, noun: str) -> str:
    """ "1 tile", "2 tiles"; of a noun that takes -ies, "1 query"."""
    several = noun[:-1] + "ies" if noun.endswith("ry") else noun + "s"
    return f"{number:,.0f} {noun if number == 1 else several}"


def change(value: float, digits: int) -> str:
    """A difference with its sign, which a difference that rounds to zero has as well: it is never "-0.0000"."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def how_to_install(extra: str) -> str:
    """What installs *extra*, for the end of a sentence: ppexport is on no package index."""
    return (
        f"pip install -e '.[{extra}]' in a checkout, or pip install './ppexport-<version>-py3-none-any.whl[{extra}]' "
        "elsewhere"
    )


def require(module: str, extra: str) -> None:
    """Raise `UnavailableError`, naming the extra to install, when *module* cannot be imported."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UnavailableError(f"{module} is not installed: {how_to_install(extra)}")
