"""`ppexport info`: parameters, multiply-adds and pure shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli import options as shared
from ppexport.cli.console import emit_json, giga, people, percent, progress_bar, table
from ppexport.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ppexport.networks.architecture import Macs
    from ppexport.networks.network import Network

EXAMPLE = "Example: ppexport info pp_atd_light_x2 --image photo.png"


def info(
    model: shared.Model = None,
    image: Annotated[Path | None, typer.Option(help="an LR picture: its cost and pure share")] = None,
    images: Annotated[Path | None, typer.Option(help="a folder of LR pictures: their pure shares")] = None,
    size: Annotated[str | None, typer.Option(help="LR size HxW for the cost; of 1280x720 output if left out")] = None,
    checkpoint: shared.Checkpoint = None,
    arch: shared.Arch = None,
    scale: shared.Scale = None,
    colors: shared.Colors = None,
    window: shared.Window = None,
    csmf: shared.Csmf = None,
    centres: shared.Centres = None,
    compensation: shared.Compensation = None,
    json: shared.Json = None,
) -> None:
    """Parameters and multiply-adds of a network, and what Pure-Pass saves on given pictures."""
    from ppexport.networks.load import load_untrained

    if sum(v is not None for v in (image, images, size)) > 1:
        raise InputError("give one of --image, --images and --size")
    options = shared.given(colors=colors, window=window, csmf=csmf, centres=centres, compensation=compensation)
    # The cost does not depend on the weights, which may not be here.
    if checkpoint is None:
        network = load_untrained(model, arch, scale, options)
    else:
        network = shared.load(model, checkpoint, arch, scale, **options)
    if images is not None:
        _folder(network, images, json)
    else:
        _cost(network, image, None if size is None else shared.parse_size(size), json)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one picture, dense and with Pure-Pass."""

    dense: Macs
    actual: Macs
    tokens: int
    impure: int

    @property
    def saving(self) -> float:
        """Share of the multiply-adds (published counting) that Pure-Pass saves, the mask's own included."""
        return 1 - self.actual.published / self.dense.published


def default_size(scale: int) -> tuple[int, int]:
    """LR size (h, w) of a 1280x720 output, for which papers count, rounded to whole pixels."""
    return round(720 / scale), round(1280 / scale)


def cost(network: Network, size: tuple[int, int], pure: NDArray[np.bool_] | None = None) -> Cost:
    """Cost of *network* on a picture of *size* with the mask *pure* (H', W'); without one nothing is pure."""
    from ppexport.networks.architecture import find_architecture

    architecture = find_architecture(network.arch)
    tokens = network.layout.tokens(size)
    impure = tokens if pure is None else network.routed(pure)
    colors = (_options_of(network) or {}).get("colors", 0)
    dense = architecture.cost(network.scale, size)
    actual = architecture.cost(network.scale, size, None if pure is None else impure, colors)
    return Cost(dense, actual, tokens, impure)


def _options_of(network: Network) -> dict[str, Any] | None:
    """Pure-Pass options of *network*'s card, None without Pure-Pass."""
    from ppexport.networks.architecture import find_architecture
    from ppexport.networks.load import card_of

    if find_architecture(network.arch).masks == ("none",):
        return None
    options = card_of(network).options
    return None if options is None else options.model_dump()


def _folder(network: Network, images: Path, json: str | None) -> None:
    """Print pure shares of a folder of LR pictures, without and with cross-shift mask fusion."""
    from ppexport.device.mask import mask_from_labels, pixel_labels
    from ppexport.imaging.images import pictures_in, read_levels

    options = _options_of(network)
    if options is None:
        raise InputError(f"{network.arch} has no Pure-Pass mask: name a model of an architecture that has one")
    paths = pictures_in(images)
    shares: list[dict[str, Any]] = []
    with progress_bar("pictures") as progress:
        for done, path in enumerate(paths):
            progress(done, len(paths))
            rgb = read_levels(path)
            labels = pixel_labels(rgb, options["colors"], network.layout, options["centres"])
            grid, fused = (float(mask_from_labels(labels, options["window"], c).mean()) for c in (False, True))
            shares.append({"name": path.name, "size": rgb.shape[:2], "grid": grid, "fused": fused})
        progress(len(paths), len(paths))
    mean = {key: sum(share[key] for share in shares) / len(shares) for key in ("grid", "fused")}
    emit_json(json, {"options": options, "images": shares, "mean": mean})
    shown = [*shares, {"name": "mean", "size": (), **mean}]
    rows = [[s["name"], "x".join(map(str, s["size"])), percent(s["grid"]), percent(s["fused"])] for s in shown]
    title = f"pure pixels, {options['colors']} {options['centres']} colours, window {options['window']}"
    people(json).print(table(title, ["picture", "HxW", "without CSMF", "with CSMF"], rows, numbers=2))


def _cost(network: Network, image: Path | None, size: tuple[int, int] | None, json: str | None) -> None:
    """Print parameters, multiply-adds and, for a picture, its pure share and saving."""
    from ppexport.device.mask import pure_mask
    from ppexport.imaging.images import read_levels
    from ppexport.networks.load import card_of

    options, pure, grid = _options_of(network), None, None
    if image is not None:
        rgb = read_levels(image)
        size = (rgb.shape[0], rgb.shape[1])
        if options is not None:
            grid, pure = (
                pure_mask(rgb, options["colors"], options["window"], c, network.layout, options["centres"])
                for c in (False, options["csmf"])
            )
    size = size or default_size(network.scale)
    result = cost(network, size, pure)
    dense, actual, share = result.dense, result.actual, 1 - result.impure / result.tokens
    name, count = card_of(network).name, sum(p.numel() for p in network.parameters())
    data = {
        "model": name,
        "parameters": count,
        "options": options,
        "image": str(image) if image else None,
        "lr_size": size,
        "tokens": result.tokens,
        "impure_tokens": result.impure,
        "pure_share": share,
        "saving": result.saving,
        "macs_published": actual.published,
        "macs_pure": actual.pure,
        "dense_macs_published": dense.published,
        "dense_macs_pure": dense.pure,
        "branches": dict(actual.branches),
    }
    emit_json(json, data)
    h, w = size
    scale = network.scale
    rows = [
        ["parameters", f"{count:,}"],
        [f"multiply-adds as published, LR {h}x{w} -> {h * scale}x{w * scale} (HxW)", giga(dense.published)],
        ["  of which convolutions, linear layers and matmuls", giga(dense.pure)],
    ]
    if grid is not None:
        rows += [
            ["pure pixels", percent(share)],
            ["  without cross-shift mask fusion", percent(float(grid.mean()))],
            ["multiply-adds with Pure-Pass, as published", giga(actual.published)],
            ["  of which convolutions, linear layers and matmuls", giga(actual.pure)],
            ["saved", percent(result.saving)],
        ]
    people(json).print(table(name, ["figure", "value"], rows))
