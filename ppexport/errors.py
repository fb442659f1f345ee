"""Errors that end a command with one clear sentence, and the exit codes they stand for."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")
EXIT_GATE_FAILED = 1
"""A gate, a check or a lint rule failed; the command itself worked."""
EXIT_BAD_INPUT = 2
"""A file, an option or a combination of them cannot be used."""
EXIT_UNAVAILABLE = 3
"""A package, a device or weights that this machine lacks are needed."""


class PpexportError(Exception):
    """Base of every expected failure: its text is one sentence a user can act on."""

    exit_code = EXIT_BAD_INPUT


class InputError(PpexportError):
    """An option or a value that cannot be used."""


class CheckpointError(PpexportError):
    """A weights file that is unreadable, incomplete or of another network."""


class CardError(PpexportError):
    """A model card that is missing, unreadable or invalid."""


class ArtifactError(PpexportError):
    """An artefact folder whose manifest or files cannot be used."""


class ImageError(PpexportError):
    """A picture that cannot be read or written."""


class TwinError(PpexportError):
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


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the kind of *error* where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require(module: str, extra: str) -> None:
    """Raise `UnavailableError`, naming the extra to install, when *module* cannot be imported."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UnavailableError(f"{module} is not installed: pip install 'ppexport[{extra}]'")
