"""Options that several commands share, and the network they describe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.console import check_json
from ppexport.device.capacities import capacity_set
from ppexport.device.mask import ATD_LAYOUT, Layout
from ppexport.device.runner import check_threads
from ppexport.errors import InputError

if TYPE_CHECKING:
    from ppexport.networks.card import Card
    from ppexport.networks.network import Network


TRUST = (
    "load a TensorRT engine that this user did not build: engines hold code, so build it here with `ppexport build` if "
    "you do not know where it comes from"
)
Model = Annotated[str | None, typer.Argument(help="a bundled model's name, or a folder with a card.yaml")]
ArtifactFolder = Annotated[Path, typer.Argument(help="an artifact folder, as `export` makes it")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="weights in place of the model's: .safetensors, .pth, .pt, .ckpt or .bin")
]
Arch = Annotated[
    str | None,
    typer.Option(help="an architecture that `ppexport models` lists; the checkpoint's own if left out"),
]
Scale = Annotated[int | None, typer.Option(help="upscaling factor; the model's or the checkpoint's own if left out")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-N",
        "--option",
        metavar="NAME=VALUE",
        help="an option of the network in place of the card's, such as colors=6; `ppexport models` lists them; may be "
        "repeated",
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", callback=check_json, help="write the result as JSON; - is stdout"),
]
Trust = Annotated[bool, typer.Option("--trust", help=TRUST)]
Timeout = Annotated[
    float | None, typer.Option(min=1, metavar="SECONDS", help="stop waiting for a device; what runs on it continues")
]
Identity = Annotated[Path | None, typer.Option(metavar="FILE", help="private key for ssh")]
SshConfig = Annotated[Path | None, typer.Option(metavar="FILE", help="ssh configuration in place of yours")]
AcceptNewHostKey = Annotated[
    bool, typer.Option("--accept-new-host-key", help="take the key of a host that ssh does not know yet")
]
Threads = Annotated[
    int | None,
    # typer would pass its context as the second parameter of `check_threads`.
    typer.Option(
        callback=lambda threads: check_threads(threads),
        help="threads of the runtime, at most one for each processor; one for each physical core if left out",
    ),
]
Load = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="busy neighbours: so many programs compute without a pause beside the artifact, as an app does on a phone",
    ),
]
MaxPixels = Annotated[int, typer.Option(min=1, help="largest picture that is read")]
SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")
CAPACITIES = re.compile(r"\d{1,9}(,\d{1,9})*")


def registered() -> dict[str, str]:
    """What the help of an option may name in braces, of what is registered."""
    from ppexport.backends.backend import backends
    from ppexport.device.target import runtimes

    offered = [f"{backend.name} {', '.join(backend.precisions)}" for backend in backends().values()]
    return {"backends": ", ".join(backends()), "precisions": "; ".join(offered), "runtimes": ", ".join(runtimes())}


def parse_size(text: str) -> tuple[int, int]:
    """HxW -> (h, w)."""
    match = SIZE.fullmatch(text)
    if match is None or not all(map(int, match.groups())):
        raise InputError(f"a size is HEIGHTxWIDTH in pixels, such as 64x64, not {text!r}")
    return int(match[1]), int(match[2])


def parse_capacities(text: str, size: tuple[int, int], steps: int, layout: Layout = ATD_LAYOUT) -> list[int] | None:
    """ "full", "set" or numbers separated by commas -> capacities for LR images of *size*; None is full capacity.

    A set has at most *steps* capacities.
    """
    if text == "full":
        return None
    if text == "set":
        if steps < 2:
            raise InputError("this backend makes no capacity sets: leave --capacity out")
        return capacity_set(size, steps, layout)
    if not CAPACITIES.fullmatch(text):
        raise InputError(f"a capacity is full, set, or numbers such as 1024,2048,4096, not {text!r}")
    return [int(number) for number in text.split(",")]


def parse_pairs(texts: list[str] | None, flag: str, example: str) -> dict[str, str]:
    """Texts NAME=VALUE that were given with *flag* -> {name: value}.

    Raises InputError, which shows *example*, for another form, and for a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InputError(f"{flag} takes NAME=VALUE, such as {flag} {example}, not {text!r}")
        if name in found:
            raise InputError(f"{flag} {name} is given twice")
        found[name] = value.strip()
    return found


def network_options(texts: list[str] | None) -> dict[str, str]:
    """What was given with --option; the network's own model checks it. Raises InputError as `parse_pairs`."""
    return parse_pairs(texts, "--option", "colors=6")


def given(**options: Any) -> dict[str, Any]:
    """Those of *options* that are not left out."""
    return {key: value for key, value in options.items() if value is not None}


def card_and_weights(
    model: str | None, arch: str | None, scale: int | None, checkpoint: Path | None, own: dict[str, Any]
) -> tuple[Card, Path]:
    """The card of the network that the options describe, and its weights file. Needs torch to look into weights."""
    if model is None and checkpoint is not None and (arch is None or scale is None):
        from ppexport.networks.load import find_weights

        return find_weights(model, arch, scale, checkpoint, own)
    from ppexport.networks.card import card_with_weights

    return card_with_weights(model, arch, scale, checkpoint, own)


def load(
    model: str | None, checkpoint: Path | None, arch: str | None, scale: int | None, option: list[str] | None
) -> Network:
    """The network that the options describe."""
    from ppexport.networks.load import find_weights, load_card

    return load_card(*find_weights(model, arch, scale, checkpoint, network_options(option)))
