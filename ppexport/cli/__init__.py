"""The command line. Every command is one file in `ppexport.cli`.

Exit codes: 0 success; 1 a gate, a check or a lint rule failed; 2 bad input; 3 something this machine lacks; 143 after a
request to end (SIGTERM), when what was begun is cleared up.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from importlib import import_module
from inspect import cleandoc
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

# Before torch is loaded: on a busy machine of few cores, idle OpenMP threads that spin slow everything down a lot.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ppexport
from ppexport.cli.console import fail, show_every_character
from ppexport.cli.options import registered
from ppexport.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    InputError,
    PpexportError,
    how_to_install,
)
from ppexport.files import system_sentence

EXPORT_MODULES = {"torch", "safetensors", "pydantic", "yaml", "onnx"}
"""What the `export` extra brings and a device may lack."""
DEBUG = "PPEXPORT_DEBUG"
"""The environment variable that asks for debug messages and tracebacks."""
COMMANDS = {
    name: import_module(f"ppexport.cli.{name.replace('-', '_')}")
    for name in (
        "export", "calibrate", "quantize-search", "build", "parity", "profile", "tune", "compare", "report", "upscale",
        "evaluate", "info", "lint", "diverge", "models", "backends", "serve", "demo",
    )
}  # fmt: skip


class _PlainFlags:
    """In the help, flags, which take no value, show no type of one."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class Command(_PlainFlags, TyperCommand):
    """A command as its help shows it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With a way out for files whose names begin with a hyphen."""
        given = list(args)
        try:
            parsed: list[str] = super().parse_args(ctx, args)
            return parsed
        except Exception as error:
            # By name: typer brings a copy of click in some versions, and uses the installed one in others.
            name = next((text for text in given if text.startswith("-") and os.path.lexists(text)), None)
            if name is None or type(error).__name__ != "NoSuchOption":
                raise
        raise InputError(f"{name} is read as an option: write {os.path.join(os.curdir, name)} for the file")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """With what is registered in place of {names}, which only the help looks up.

        typer would keep the line breaks of a docstring's later paragraphs, which are those of the source.
        """
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(self.help or "").split("\n\n"))
        for param in self.params:
            text = getattr(param, "help", None)
            if text and "{" in text:
                param.help = text.format(**registered())  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


class Commands(_PlainFlags, TyperGroup):
    """All commands as their help shows them."""


app = typer.Typer(
    name="ppexport",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _module in COMMANDS.items():
    app.command(_name, cls=Command, epilog=_module.EXAMPLE)(getattr(_module, _name.replace("-", "_")))


def _version(given: bool) -> None:
    if given:
        typer.echo(f"ppexport {ppexport.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Exports super-resolution transformers to edge runtimes, proves that exports compute the same, and times them."""


def _end_in_order(number: int, frame: FrameType | None) -> None:
    """End as an exception does, so that what was begun is cleared up; a second request to end ends at once.

    In the middle of an import an exception can crash a library that is written in C++, such as onnx. There the signal
    is sent once more, a little later.
    """
    inside = frame
    while inside is not None:
        if inside.f_code.co_filename == "<frozen importlib._bootstrap>":
            # To the main thread, so that what blocks there is interrupted; Windows can only raise it anywhere.
            kill = getattr(signal, "pthread_kill", lambda thread, number: signal.raise_signal(number))
            again = threading.Timer(0.02, kill, (threading.main_thread().ident, number))
            again.daemon = True
            again.start()
            return
        inside = inside.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _catch_signals() -> None:
    """Have a request to end, and a terminal that goes away, clear up as Ctrl-C does; `nohup` stays in force."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end_in_order)


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an expected *error*; any other is raised again."""
    if isinstance(error, PpexportError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name in EXPORT_MODULES:
        return f"{error.name} is not installed: {how_to_install('export')}", EXIT_UNAVAILABLE
    if isinstance(error, MemoryError):
        return "this needs more memory than there is: take a smaller picture or size", EXIT_UNAVAILABLE
    if isinstance(error, OSError):
        return system_sentence(error), EXIT_BAD_INPUT
    raise error


def _print_traceback(error: BaseException) -> None:
    """Print the traceback of *error*, and those of the errors that `raise ... from None` left out."""
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    traceback.print_exception(type(error), error, error.__traceback__)


def run() -> None:
    """Entry point. An expected failure ends with one sentence and its exit code.

    With PPEXPORT_DEBUG=1 it ends with its traceback and the same exit code, and the package's debug messages go to
    standard error.
    """
    _catch_signals()
    show_every_character()
    debug = os.environ.get(DEBUG) == "1"
    if debug:
        logging.basicConfig(format="%(relativeCreated)8d ms %(module)s: %(message)s")
        logging.getLogger("ppexport").setLevel(logging.DEBUG)
    try:
        app()
    except KeyboardInterrupt:
        # Before typer listens, which then says the rest.
        fail("interrupted before anything was begun")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        sentence, code = _explain(error)
        if debug:
            _print_traceback(error)
        else:
            fail(sentence)
        sys.exit(code)


if __name__ == "__main__":
    run()
