"""Measures again whatever depends on the bundled weights and was measured with others: make numbers IMAGES=DIR."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from figures.steps import SETS, CommandError, Lacking, Model, Step
from figures.tables import make_pages, write_tables

from ppexport.cli.console import fail
from ppexport.errors import EXIT_UNAVAILABLE, InputError, PpexportError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)


def models_of(root: Path) -> list[Path]:
    """The folders of models with weights."""
    return sorted(path.parent for path in root.glob("models/*/weights.safetensors"))


def plan(models: Sequence[Model]) -> list[tuple[Model, Step]]:
    """The steps of all *models*, cheap and important ones first. Raises InputError where pictures are missing."""
    for model in models:
        for name in SETS:
            if not model.pictures(name).is_dir():
                raise InputError(f"{model.pictures(name)} is missing")
    groups = [(number, model, steps) for model in models for number, steps in enumerate(model.steps())]
    return [(model, step) for _, model, steps in sorted(groups, key=lambda g: g[0]) for step in steps]


def renew(models: Sequence[Model], only: str, say: Callable[[str], None]) -> list[str]:
    """Run what is not fresh of the steps whose name holds *only*, a line each, which *say* gets in parts.

    Returns what this machine cannot renew. Raises PpexportError of the first step that fails otherwise.
    """
    steps, kept = [(model, step) for model, step in plan(models) if only in step.name], []
    root = models[0].root
    (root / "runs").mkdir(exist_ok=True)
    for number, (model, step) in enumerate(steps, 1):
        line, begin = f"[{number}/{len(steps)}] {model.name} {step.name}", time.monotonic()
        if step.fresh():
            say(f"{line}: of these weights already\n")
            continue
        say(f"{line}: ")
        try:
            step.run()
        except (CommandError, Lacking) as error:
            if not step.may_lack or error.exit_code != EXIT_UNAVAILABLE:
                say("failed\n")
                raise
            reason = error.last if isinstance(error, CommandError) else str(error)
            kept.append(f"{model.name} {step.name}: {reason}")
            say(f"kept as it was, {reason}\n")
            continue
        say(f"{time.monotonic() - begin:.0f} s\n")
        make_pages(model.folder)
        write_tables(root, models_of(root))
    for path in write_tables(root, models_of(root)):
        say(f"tables: {path}\n")
    return kept


def stop(number: int, _frame: FrameType | None) -> None:
    """End, with the command that runs; temporary files are removed."""
    raise SystemExit(128 + number)


def say(text: str) -> None:
    """Print *text*, a part of a line."""
    print(text, end="", flush=True)


@app.command(epilog="Example: make numbers IMAGES=DIR MODEL=pp_atd_light_x2")
def main(
    images: Annotated[
        Path, typer.Argument(help="Folder with set5/image_SRF_2, set14/image_SRF_2 and so on; kodak24, bsds400_train.")
    ],
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    only: Annotated[str, typer.Option(help="Only steps whose name holds this, such as evaluation.")] = "",
    cores: Annotated[int, typer.Option(min=1, help="Processor cores that are used.")] = 2,
) -> None:
    """Measure again what depends on the bundled weights: card, numerics.yaml, ranges, recipe, tables, pictures.

    Test sets hold files NAME_SRF_2_HR.png and NAME_SRF_2_LR.png. Without kodak24 no recipe is searched for, and what
    needs one stays as it is; without it and bsds400_train the ablation leaves out the pictures that training held out.
    latency.yaml stays: times do not depend on what the weights are. Stops at the first step that fails, with its exit
    code; the same command continues there.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    root = Path(__file__).resolve().parents[1]
    try:
        folders = [folder for folder in models_of(root) if model in (None, folder.name)]
        if not folders:
            raise InputError(f"models/{model or '*'}/weights.safetensors is missing")
        kept = renew([Model(root, folder, images.resolve()) for folder in folders], only, say)
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None
    for line in kept:
        print(f"not renewed: {line}")


if __name__ == "__main__":
    app()
