"""Measure again what numerics.yaml and the models' READMEs state: python tools/all_numbers.py --help.

Not called numbers.py: that would hide Python's own module of this name from every program in this folder.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from ablation import PLACE
from rich.console import Console

from ppexport.cli.console import fail
from ppexport.errors import InputError, PpexportError
from ppexport.networks.card import Card, bundled_cards, read_card

ROOT = Path(__file__).resolve().parents[1]
SETS = ("set5", "set14")
TRAINED_ON = ("bsds400_train", "kodak24")
"""Folders that the bundled weights were trained on, in the order of the training runs."""
HELD_OUT = 8

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
console = Console(highlight=False, soft_wrap=True, markup=False)


def bundled_with_weights() -> list[tuple[Card, Path]]:
    """Card and folder of every bundled model that has weights. Raises CardError."""
    found = [(read_card(folder), folder) for folder in bundled_cards().values()]
    return [(card, folder) for card, folder in found if card.weights is not None]


def has_ablation(folder: Path) -> bool:
    """Whether the model in *folder* has a README with a place for the ablation's tables."""
    readme = folder / "README.md"
    return readme.is_file() and f"<!-- {PLACE} -->" in readme.read_text(encoding="utf-8")


def held_out_arguments(images: Path) -> list[str]:
    """Options for the pictures that training held out; none where *images* lacks a folder that was trained on."""
    folders = [images / name for name in TRAINED_ON]
    if not all(folder.is_dir() for folder in folders):
        return []
    return [*(part for folder in folders for part in ("--train-data", str(folder))), "--holdout", str(HELD_OUT)]


def plan(images: Path, state: Path) -> list[list[str]]:
    """All commands, in the order they run. Raises InputError, before any work is done, for a missing folder."""
    evaluations, ablations = [], []
    for card, folder in bundled_with_weights():
        ablation = [sys.executable, str(ROOT / "tools" / "ablation.py"), card.name, "--state", str(state)]
        ablation += ["--out", str(folder / "README.md"), *held_out_arguments(images)]
        ablation += ["--data", f"calibration={ROOT / 'calibration' / 'images'}"]
        for name in SETS:
            pictures = images / name / f"image_SRF_{card.scale}"
            if not pictures.is_dir():
                files = " and ".join(f"NAME_SRF_{card.scale}_{kind}.png" for kind in ("HR", "LR"))
                raise InputError(f"{pictures} is missing: it holds {files}")
            evaluate = ["evaluate", card.name, "--hr", str(pictures), "--lr", str(pictures), "--record", name]
            evaluations.append([sys.executable, "-m", "ppexport", *evaluate])
            ablation += ["--data", f"{name}={pictures}:{pictures}"]
        if has_ablation(folder):
            ablations.append(ablation)
    return evaluations + ablations


@app.command(epilog="Example: make numbers IMAGES=DIR")
def numbers(
    images: Annotated[
        Path,
        typer.Argument(help="Folder with set5/image_SRF_2 and so on, set14; bsds400_train and kodak24 if at hand."),
    ],
    state: Annotated[
        Path, typer.Option(help="Finished results of the ablation; delete it to measure all of them again.")
    ] = ROOT / "runs" / "ablation.json",
) -> None:
    """Record PSNR-Y and SSIM-Y of every bundled model with weights on Set5 and Set14, and run the ablations.

    `ppexport evaluate` writes numerics.yaml of each model; tools/ablation.py writes the tables of each README that has
    a place for them, for the bundled photographs, the held-out pictures (where bsds400_train and kodak24 are at hand)
    and both test sets. After a kill the ablation continues where it was. Fails with the exit code of what failed first.
    """
    try:
        # Commands run in the checkout, wherever this one was started.
        images, state = images.resolve(), state.resolve()
        commands = plan(images, state)
        if not held_out_arguments(images):
            console.print(f"no ablation on held-out pictures: {images} lacks {' or '.join(TRAINED_ON)}")
        state.parent.mkdir(parents=True, exist_ok=True)
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None
    for command in commands:
        console.print(shlex.join(["python", *command[1:]]))
        code = subprocess.run(command, check=False, cwd=ROOT).returncode
        if code:
            raise typer.Exit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    app()
