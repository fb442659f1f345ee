"""`ppexport evaluate`: PSNR-Y and SSIM-Y on folders of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.commands.options import Arch, Checkpoint, Colors, Compensation, Csmf, Json, Scale, Window, load
from ppexport.console import emit_json, people, progress_bar, table
from ppexport.errors import InputError

EXAMPLE = "Example: ppexport evaluate pp_atd_light_x2 --hr Set5 --scale 2"


def evaluate(
    target: Annotated[
        str | None, typer.Argument(metavar="MODEL|ARTIFACT", help="a model or an artefact folder")
    ] = None,
    hr: Annotated[Path, typer.Option(help="folder of HR pictures (NAME_HR.png, or all pictures in it)")] = ...,  # type: ignore[assignment]
    lr: Annotated[Path | None, typer.Option(help="folder of their LR files; made by bicubic if left out")] = None,
    scale: Scale = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    colors: Colors = None,
    window: Window = None,
    csmf: Csmf = None,
    compensation: Compensation = None,
    record: Annotated[
        str | None, typer.Option(help="data set name: write the means to the model's numerics.yaml")
    ] = None,
    json: Json = None,
) -> None:
    """PSNR-Y and SSIM-Y on folders of pictures, beside bicubic enlargement."""
    from ppexport.artifact import MANIFEST
    from ppexport.evaluate import artifact_upscaler, find_pairs, network_upscaler
    from ppexport.evaluate import evaluate as run_evaluate

    options = {"colors": colors, "window": window, "csmf": csmf, "compensation": compensation}
    own = any(v is not None for v in (checkpoint, arch, *options.values()))
    if target is not None and (Path(target) / MANIFEST).is_file():
        from ppexport.opening import open_artifact

        runner = open_artifact(Path(target))
        if own or record is not None:
            raise InputError("an artefact has its weights and options inside, and no card to record figures beside")
        if scale not in (None, runner.scale):
            raise InputError(f"{target} is for scale {runner.scale}, not {scale}")
        run, factor, name = artifact_upscaler(runner), runner.scale, target
    else:
        from ppexport.cards import find_card
        from ppexport.networks.load import card_of
        from ppexport.numerics import check_record
        from ppexport.numerics import record as write_record

        if record is not None and (target is None or own):
            raise InputError("--record writes beside a model's card: name a model, without a checkpoint or options")
        if record is not None:
            check_record(find_card(str(target))[1], record)
        network = load(target, checkpoint, arch, scale, **options)
        run, factor, name = network_upscaler(network), network.config.scale, card_of(network).name
    pairs = find_pairs(hr, lr, factor)
    with progress_bar("pictures") as progress:
        result = run_evaluate(run, pairs, factor, progress)
    if record is not None:
        card, folder = find_card(str(target))
        people(json).print(f"recorded in {write_record(folder, record, card, result)}")
    emit_json(json, {"model": name, "hr": str(hr), **result.to_dict()})
    rows = [
        [s.name, f"{s.psnr_y:.3f}", f"{s.ssim_y:.4f}", f"{s.bicubic_psnr_y:.3f}", f"{s.bicubic_ssim_y:.4f}"]
        for s in (*result.scores, result.mean)
    ]
    columns = ["picture", "PSNR-Y dB", "SSIM-Y", "bicubic dB", "bicubic SSIM-Y"]
    people(json).print(table(f"{name} x{factor}", columns, rows))
