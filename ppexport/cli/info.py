"""`ppexport info`: parameters, multiply-adds and pure shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.console import emit_json, giga, people, percent, progress_bar, table
from ppexport.cli.options import (
    Arch,
    Checkpoint,
    Colors,
    Compensation,
    Csmf,
    Json,
    Model,
    Scale,
    Window,
    load,
    parse_size,
)
from ppexport.errors import InputError

if TYPE_CHECKING:
    from ppexport.networks.network import Network

EXAMPLE = "Example: ppexport info pp_atd_light_x2 --image photo.png"


def info(
    model: Model = None,
    image: Annotated[Path | None, typer.Option(help="an LR picture: its cost and pure share")] = None,
    images: Annotated[Path | None, typer.Option(help="a folder of LR pictures: their pure shares")] = None,
    size: Annotated[str | None, typer.Option(help="LR size HxW for the cost; of 1280x720 output if left out")] = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    scale: Scale = None,
    colors: Colors = None,
    window: Window = None,
    csmf: Csmf = None,
    compensation: Compensation = None,
    json: Json = None,
) -> None:
    """Parameters and multiply-adds of a network, and what Pure-Pass saves on given pictures."""
    if sum(v is not None for v in (image, images, size)) > 1:
        raise InputError("give one of --image, --images and --size")
    options = {"colors": colors, "window": window, "csmf": csmf, "compensation": compensation}
    network = describe_network(model, checkpoint, arch, scale, options)
    if images is not None:
        _folder(network, images, json)
    else:
        _cost(network, image, None if size is None else parse_size(size), json)


def _folder(network: Network, images: Path, json: str | None) -> None:
    """Pure shares of a folder of LR pictures."""
    from ppexport.cli.cost import options_of, share
    from ppexport.imaging.images import pictures_in

    options = options_of(network)
    if options is None:
        raise InputError(f"{network.arch} has no Pure-Pass mask: name a pp_atd_light model")
    paths = pictures_in(images)
    shares = []
    with progress_bar("pictures") as progress:
        for done, path in enumerate(paths):
            progress(done, len(paths))
            shares.append(share(path, options))
        progress(len(paths), len(paths))
    mean = [sum(getattr(s, key) for s in shares) / len(shares) for key in ("grid", "fused")]
    data = {"options": options, "images": [vars(s) for s in shares], "mean": {"grid": mean[0], "fused": mean[1]}}
    emit_json(json, data)
    rows = [[s.name, f"{s.size[0]}x{s.size[1]}", percent(s.grid), percent(s.fused)] for s in shares]
    rows.append(["mean", "", *map(percent, mean)])
    title = f"pure pixels, {options['colors']} colours, window {options['window']}"
    people(json).print(table(title, ["picture", "HxW", "without CSMF", "with CSMF"], rows, numbers=2))


def _cost(network: Network, image: Path | None, size: tuple[int, int] | None, json: str | None) -> None:
    """Parameters, multiply-adds and, for a picture, its pure share and saving."""
    import numpy as np

    from ppexport.cli.cost import cost, default_size, options_of, parameters
    from ppexport.device.mask import pure_mask
    from ppexport.imaging.images import read_levels
    from ppexport.networks.load import card_of

    options, pure = options_of(network), None
    if image is not None:
        rgb = read_levels(image)
        size = (rgb.shape[0], rgb.shape[1])
        if options is not None:
            pure = pure_mask(rgb, options["colors"], options["window"], options["csmf"])
    result = cost(network, size or default_size(network.scale), pure)
    name, count = card_of(network).name, parameters(network)
    data = {"model": name, "parameters": count, "options": options, "image": str(image) if image else None}
    emit_json(json, {**data, **result.to_dict()})
    h, w = result.size
    scale = network.scale
    rows = [
        ["parameters", f"{count:,}"],
        [f"multiply-adds as published, LR {h}x{w} -> {h * scale}x{w * scale} (HxW)", giga(result.dense.published)],
        ["  of which convolutions, linear layers and matmuls", giga(result.dense.pure)],
    ]
    if pure is not None:
        grid = pure_mask(np.asarray(rgb), options["colors"], options["window"], csmf=False)  # type: ignore[index]
        rows += [
            ["pure pixels", percent(result.pure_share)],
            ["  without cross-shift mask fusion", percent(float(grid.mean()))],
            ["multiply-adds with Pure-Pass, as published", giga(result.actual.published)],
            ["  of which convolutions, linear layers and matmuls", giga(result.actual.pure)],
            ["saved", percent(result.saving)],
        ]
    people(json).print(table(name, ["figure", "value"], rows))


def describe_network(
    model: str | None, checkpoint: Path | None, arch: str | None, scale: int | None, options: dict[str, Any]
) -> Network:
    """The network, untrained where no weights are at hand: its cost does not depend on them."""
    from ppexport.networks.load import load_untrained

    if checkpoint is not None:
        return load(model, checkpoint, arch, scale, **options)
    return load_untrained(model, arch, scale, {k: v for k, v in options.items() if v is not None})
