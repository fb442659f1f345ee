"""The command line. Every command is one file in `ppexport.cli`.

Exit codes: 0 success; 1 a gate, a check or a lint rule failed; 2 bad input; 3 something this machine lacks; 143 after a
request to end (SIGTERM), when what was begun is cleared up.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

# Before torch is loaded: idle OpenMP threads that spin slow a busy machine of few cores many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ppexport
from ppexport.cli import (
    backends,
    build,
    calibrate,
    compare,
    demo,
    diverge,
    evaluate,
    export,
    info,
    lint,
    models,
    parity,
    profile,
    quantize_search,
    report,
    upscale,
)
from ppexport.cli.console import fail, show_every_character
from ppexport.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, PpexportError
from ppexport.files import system_sentence

EXPORT_MODULES = {"torch", "safetensors", "pydantic", "yaml", "onnx"}
"""What the `export` extra brings and a device may lack."""
COMMANDS: dict[str, ModuleType] = {
    "export": export,
    "calibrate": calibrate,
    "quantize-search": quantize_search,
    "build": build,
    "parity": parity,
    "profile": profile,
    "compare": compare,
    "report": report,
    "upscale": upscale,
    "evaluate": evaluate,
    "info": info,
    "lint": lint,
    "diverge": diverge,
    "models": models,
    "backends": backends,
    "demo": demo,
}


def _without_type(params: list[Any]) -> list[Any]:
    """*params* of which flags, which take no value, show no type of one in the help."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command as its help shows it."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters."""
        return _without_type(super().get_params(ctx))


class Commands(TyperGroup):
    """All commands as their help shows them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters."""
        return _without_type(super().get_params(ctx))


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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppexport {ppexport.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Exports PP-ATD-light to edge runtimes, proves that each export computes the same picture, and times it."""


def _end_in_order(number: int, frame: FrameType | None) -> None:
    """End as an exception does, so that what was begun is cleared up; a second signal ends at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _heed_signals() -> None:
    """Have a request to end, and a terminal that goes away, clear up as Ctrl-C does; `nohup` stays in force."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end_in_order)


def run() -> None:
    """Entry point: expected failures end with one sentence and their exit code."""
    _heed_signals()
    show_every_character()
    try:
        app()
    except PpexportError as error:
        fail(str(error))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in EXPORT_MODULES:
            raise
        fail(f"{error.name} is not installed: pip install 'ppexport[export]'")
        sys.exit(EXIT_UNAVAILABLE)
    except MemoryError:
        fail("this needs more memory than there is: take a smaller picture or size")
        sys.exit(EXIT_UNAVAILABLE)
    except OSError as error:
        fail(system_sentence(error))
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    run()
