"""Copies pictures to train on to a place inside the project: python tools/train_data.py --help."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from training.data import find_images

from ppexport.cli.console import fail
from ppexport.errors import ImageError, InputError, PpexportError
from ppexport.files import is_plain_name, system_sentence
from ppexport.folders import new_folder

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
console = Console(highlight=False, soft_wrap=True, markup=False)


def summary(images: list[Path]) -> str:
    """How many pictures these are, and how large. Raises ImageError for one that cannot be read."""
    pixels = 0
    for path in images:
        try:
            with Image.open(path) as image:
                image.load()
                pixels += image.width * image.height
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise ImageError(f"{path} cannot be used: {error}") from None
    size = sum(path.stat().st_size for path in images)
    return f"{len(images)} pictures, {pixels / 1e6:.1f} million pixels, {size / 2**20:.1f} MiB"


def is_copy(images: list[Path], source: Path, target: Path) -> bool:
    """Whether *target* holds the *images* of *source* and no others."""
    inside = [path.relative_to(source) for path in images]
    there = [path.relative_to(target) for path in find_images([target])]
    return inside == there and all(filecmp.cmp(source / p, target / p, shallow=False) for p in inside)


@app.command()
def train_data(
    source: Annotated[Path, typer.Argument(help="Folder with HR pictures, also in folders below it.")],
    target: Annotated[Path, typer.Argument(help="Folder that a folder with the name of SOURCE is added to.")],
) -> None:
    """Copy the pictures below SOURCE into TARGET, in a folder with the name of SOURCE that appears whole or not at all.

    Every picture is read once, so that a broken one is found now. Pictures of public test sets are refused. A folder of
    that name with the same pictures is left as it is; with others it is never overwritten.
    """
    try:
        # A link or `..` has the name of what it leads to.
        name = source.resolve().name
        if not is_plain_name(name) or target.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{source} cannot be copied into {target}: name a folder of pictures that is not hidden")
        images = find_images([source])
        place = target / name
        told = summary(images)
        if place.exists():
            if not place.is_dir() or not is_copy(images, source, place):
                raise InputError(
                    f"{place} is there already and holds other things than {source}: delete it, or rename {source}"
                )
            console.print(f"{place} holds these {told} already")
        else:
            target.mkdir(parents=True, exist_ok=True)
            with new_folder(place) as folder:
                for path in images:
                    copy = folder / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
            console.print(f"{place}: {told}")
        console.print(f"{target} holds {summary(find_images([target]))}")
    except OSError as error:
        fail(system_sentence(error))
        raise typer.Exit(InputError.exit_code) from None
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
