"""`ppexport info`: parameters, multiply-adds and pure shares, of one network or of several beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli import options as shared
from ppexport.cli.console import emit_json, giga, people, percent, progress_bar, table
from ppexport.errors import InputError

if TYPE_CHECKING:
    from ppexport.networks.network import Network

EXAMPLE = "Example: ppexport info pp_atd_light_x2 --image photo.png"


def info(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help="a bundled model's name, a folder with a card.yaml, an architecture (with --scale) or a weights file; "
            "several are compared, and each may have settings of its own: FILE,arch=NAME,ratio=0.25",
        ),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="an LR picture: its cost and pure share")] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="a folder of LR pictures: their pure shares; may be repeated")
    ] = None,
    size: Annotated[str | None, typer.Option(help="LR size HxW for the cost; of 1280x720 output if left out")] = None,
    checkpoint: shared.Checkpoint = None,
    arch: shared.Arch = None,
    scale: shared.Scale = None,
    option: shared.Options = None,
    json: shared.Json = None,
) -> None:
    """Parameters and multiply-adds of a network, and what Pure-Pass saves on given pictures.

    Several subjects, or folders of pictures, become one table: what the masks save there, and the cost at --size.
    """
    from ppexport.networks.load import load_untrained
    from ppexport.networks.subject import parse_subjects, told_apart

    folders, pixels = images or [], None if size is None else shared.parse_size(size)
    named, own = parse_subjects(subjects or []), shared.network_options(option)
    if checkpoint is not None and len(named) > 1:
        raise InputError("--checkpoint is for one subject: name the weights file as a subject instead")
    # The cost does not depend on the weights, which may not be here.
    if checkpoint is not None:
        networks = [shared.load(named[0].text if named else None, checkpoint, arch, scale, option)]
    elif named:
        networks = [one.network(arch, scale, own) for one in named]
    else:
        networks = [load_untrained(None, arch, scale, own)]
    if len(networks) > 1 or len(folders) > 1:
        if image is not None:
            raise InputError("--image is for one subject: give a folder of pictures with --images")
        labels = [one.label(network.arch) for one, network in zip(named, networks, strict=False)]
        _compare(networks, told_apart(labels, named) or [networks[0].arch], folders, pixels, json)
        return
    if sum((image is not None, size is not None, bool(folders))) > 1:
        raise InputError("give one of --image, --images and --size")
    if folders:
        _folder(networks[0], folders[0], json)
    else:
        _cost(networks[0], image, pixels, json)


def _compare(
    networks: list[Network], labels: list[str], folders: list[Path], size: tuple[int, int] | None, json: str | None
) -> None:
    """Print a row for every network: parameters, cost at *size*, and what its mask saves on pictures of *folders*."""
    from ppexport.imaging.images import pictures_in
    from ppexport.networks.cost import cost, default_size, options_of, saved_on

    paths = {str(folder): pictures_in(folder) for folder in folders}
    with progress_bar("pictures") as progress:
        savings = {folder: saved_on(networks, found, progress) for folder, found in paths.items()}
    data: list[dict[str, Any]] = []
    for i, (network, label) in enumerate(zip(networks, labels, strict=True)):
        lr_size = size or default_size(network.scale)
        macs = cost(network, lr_size).dense
        found = {folder: saved[i] for folder, saved in savings.items()}
        data.append(
            {
                "subject": label,
                "arch": network.arch,
                "scale": network.scale,
                "options": options_of(network),
                "parameters": sum(p.numel() for p in network.parameters()),
                "lr_size": lr_size,
                "macs_published": macs.published,
                "macs_pure": macs.pure,
                "images": {folder: None if s is None else vars(s) for folder, s in found.items()},
            }
        )
    emit_json(json, {"subjects": data})
    columns = ["subject", "scale", "parameters", "LR HxW", "G as\npublished", "G without\nnorms"]
    rows = [
        [
            row["subject"],
            f"x{row['scale']}",
            f"{row['parameters']:,}",
            "x".join(map(str, row["lr_size"])),
            *(f"{row[kind] / 1e9:.2f}" for kind in ("macs_published", "macs_pure")),
        ]
        for row in data
    ]
    console = people(json)
    console.print(table("networks", columns, rows))
    console.print(
        "G: 10^9 multiply-adds of one picture of this size without pure pixels; without norms, convolutions, linear "
        "layers and matmuls count alone."
    )
    if not paths:
        return
    columns = ["subject", *(f"{what} in\n{Path(folder).name}" for folder in paths for what in ("pure", "saved"))]
    rows = []
    for row in data:
        shares = [(s["pure_share"], s["saving"]) if s else (None, None) for s in row["images"].values()]
        figures = ["no mask" if share is None else percent(share) for pair in shares for share in pair]
        rows.append([row["subject"], *figures])
    console.print(table("what Pure-Pass masks save on pictures", columns, rows))
    console.print(
        "Pure: the share of pixels. Saved: the share of multiply-adds, as published, less what the mask itself takes. "
        "Both are means over the pictures."
    )


def _folder(network: Network, images: Path, json: str | None) -> None:
    """Print pure shares of a folder of LR pictures, without and with cross-shift mask fusion."""
    from ppexport.device.mask import mask_from_labels
    from ppexport.imaging.images import pictures_in, read_levels
    from ppexport.networks.cost import labels_and_mask, options_of

    options = options_of(network)
    paths = pictures_in(images)
    shares: list[dict[str, Any]] = []
    with progress_bar("pictures") as progress:
        for done, path in enumerate(paths):
            progress(done, len(paths))
            rgb = read_levels(path)
            found = labels_and_mask(network, rgb)
            if found is None:
                raise InputError(f"{network.arch} has no Pure-Pass mask: name a model of an architecture that has one")
            labels = found[0]
            grid, fused = (float(mask_from_labels(labels, options["window"], c).mean()) for c in (False, True))
            shares.append({"name": path.name, "size": rgb.shape[:2], "grid": grid, "fused": fused})
        progress(len(paths), len(paths))
    mean = {key: sum(share[key] for share in shares) / len(shares) for key in ("grid", "fused")}
    emit_json(json, {"options": options, "images": shares, "mean": mean})
    shown = [*shares, {"name": "mean", "size": (), **mean}]
    rows = [[s["name"], "x".join(map(str, s["size"])), percent(s["grid"]), percent(s["fused"])] for s in shown]
    title = f"pure pixels, {options['colors']} colours, window {options['window']}"
    people(json).print(table(title, ["picture", "HxW", "without CSMF", "with CSMF"], rows, numbers=2))


def _cost(network: Network, image: Path | None, size: tuple[int, int] | None, json: str | None) -> None:
    """Print parameters, multiply-adds and, for a picture, its pure share and saving."""
    from ppexport.device.mask import mask_from_labels
    from ppexport.imaging.images import read_levels
    from ppexport.networks.cost import cost, default_size, labels_and_mask, options_of
    from ppexport.networks.load import card_of

    options, pure, grid = options_of(network), None, None
    if image is not None:
        rgb = read_levels(image)
        size = (rgb.shape[0], rgb.shape[1])
        found = labels_and_mask(network, rgb)
        if found is not None:
            grid, pure = mask_from_labels(found[0], options["window"], False), found[1]
    size = size or default_size(network.scale)
    result = cost(network, size, pure)
    dense, actual, share = result.dense, result.actual, result.pure_share
    name, count = card_of(network).name, sum(p.numel() for p in network.parameters())
    data = {
        "model": name,
        "parameters": count,
        "options": options or None,
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
