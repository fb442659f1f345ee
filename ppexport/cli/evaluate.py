"""`ppexport evaluate`: PSNR-Y and SSIM-Y on folders of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import emit_json, people, progress_bar, table
from ppexport.cli.options import Arch, Centres, Checkpoint, Colors, Compensation, Csmf, Json, Scale, Window, load
from ppexport.errors import InputError

EXAMPLE = "Example: ppexport evaluate pp_atd_light_x2 --hr Set5 --scale 2"


def evaluate(
    target: Annotated[
        str | None, typer.Argument(metavar="MODEL|ARTIFACT", help="a model or an artifact folder")
    ] = None,
    hr: Annotated[
        Path, typer.Option(help="folder of HR pictures; if some are called NAME_HR.png, only these are used")
    ] = ...,  # type: ignore[assignment]
    lr: Annotated[
        Path | None, typer.Option(help="folder of their LR pictures; without it they are made by bicubic shrinking")
    ] = None,
    scale: Scale = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    colors: Colors = None,
    window: Window = None,
    csmf: Csmf = None,
    centres: Centres = None,
    compensation: Compensation = None,
    record: Annotated[
        str | None,
        typer.Option(help="also write the means into the model's numerics.yaml, under this name of the data set"),
    ] = None,
    json: Json = None,
) -> None:
    """PSNR-Y and SSIM-Y on folders of pictures, beside bicubic enlargement."""
    from ppexport.device.artifact import MANIFEST
    from ppexport.parity.evaluation import artifact_upscaler, find_pairs, network_upscaler
    from ppexport.parity.evaluation import evaluate as run_evaluation
    from ppexport.report.records import NETWORK, artifact_key, card_of_artifact, check_record, half_in_single
    from ppexport.report.records import record_evaluation as write_record

    options = {"colors": colors, "window": window, "csmf": csmf, "centres": centres, "compensation": compensation}
    own = any(v is not None for v in (checkpoint, arch, *options.values()))
    if target is not None and (Path(target) / MANIFEST).is_file():
        from ppexport.backends.backend import open_artifact

        runner = open_artifact(Path(target))
        manifest = runner.artifact.manifest
        if own:
            raise InputError("an artifact has its weights and options inside")
        if scale not in (None, runner.scale):
            raise InputError(f"{target} is for scale {runner.scale}, not {scale}")
        run, factor, name, key = artifact_upscaler(runner), runner.scale, target, artifact_key(manifest)
        beside = None if record is None else card_of_artifact(manifest)
        if half_in_single(manifest):
            people(json).print(
                "note: ONNX Runtime computes half precision in fp32 on a CPU, so these are figures of "
                f"{manifest.precision} weights; `ppexport parity` rounds every result"
            )
    else:
        from ppexport.networks.card import find_card
        from ppexport.networks.load import card_of

        if record is not None and (target is None or own):
            raise InputError("--record writes beside a model's card: name a model, without a checkpoint or options")
        beside = None if record is None else find_card(str(target))
        network = load(target, checkpoint, arch, scale, **options)
        run, factor, name, key = network_upscaler(network), network.scale, card_of(network).name, NETWORK
    if record is not None and beside is not None:
        check_record(beside[1], record)
    pairs = find_pairs(hr, lr, factor)
    with progress_bar("pictures") as progress:
        result = run_evaluation(run, pairs, factor, progress)
    if record is not None and beside is not None:
        people(json).print(f"recorded in {write_record(beside[1], record, beside[0], result, key)}")
    emit_json(json, {"model": name, "hr": str(hr), **result.to_dict()})
    rows = [
        [s.name, f"{s.psnr_y:.3f}", f"{s.ssim_y:.4f}", f"{s.bicubic_psnr_y:.3f}", f"{s.bicubic_ssim_y:.4f}"]
        for s in (*result.scores, result.mean)
    ]
    columns = ["picture", "PSNR-Y dB", "SSIM-Y", "bicubic dB", "bicubic SSIM-Y"]
    people(json).print(table(f"{name} x{factor}", columns, rows))
