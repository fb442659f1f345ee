"""`ppexport export`: network -> artefact folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.commands.options import (
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
from ppexport.console import emit_json, people, stages

EXAMPLE = "Example: ppexport export pp_atd_light_x2 --size 64x64 -o x2_64"


def export(
    model: Model = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="artefact folder to make")] = Path("artifact"),
    backend: Annotated[str, typer.Option(help="onnx")] = "onnx",
    size: Annotated[str | None, typer.Option(help="LR size HxW before padding; the card's default if left out")] = None,
    precision: Annotated[str, typer.Option(help="fp32")] = "fp32",
    capacity: Annotated[int | None, typer.Option(help="slots of category attention; full capacity if left out")] = None,
    keep: Annotated[Path | None, typer.Option(help="folder for the intermediate graphs")] = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    scale: Scale = None,
    colors: Colors = None,
    window: Window = None,
    csmf: Csmf = None,
    compensation: Compensation = None,
    json: Json = None,
) -> None:
    """Export a network for one LR size into an artefact folder."""
    from ppexport.artifact import read_artifact
    from ppexport.exporting import export as run_export
    from ppexport.networks.load import card_of

    pixels = None if size is None else parse_size(size)
    options = {"colors": colors, "window": window, "csmf": csmf, "compensation": compensation}
    with stages("export") as step:
        step("loading the network")
        network = load(model, checkpoint, arch, scale, **options)
        pixels = pixels or card_of(network).default_size
        capacities = None if capacity is None else [capacity]
        run_export(
            network,
            backend=backend,
            size=pixels,
            out=out,
            precision=precision,
            capacities=capacities,
            keep=keep,
            step=step,
        )
    artifact = read_artifact(out)
    folder_bytes = sum(f.stat().st_size for f in out.iterdir())
    emit_json(json, {"artifact": str(out), "bytes": folder_bytes, "manifest": vars(artifact.manifest)})
    m = artifact.manifest
    people(json).print(
        f"{out}: {m.name} x{m.scale} for {m.size[0]}x{m.size[1]}, {m.backend} {m.precision}, "
        f"{m.capacities[-1]} of {m.tokens} slots, {folder_bytes / 1e6:.2f} MB"
    )
