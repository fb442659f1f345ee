"""`ppexport quantize-search`: which layers to put in int8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import continues_from, emit_json, people, progress_bars, stages, table
from ppexport.cli.options import Arch, Checkpoint, Json, Options, Scale, Threads, load, parse_size
from ppexport.device.runner import thread_count
from ppexport.errors import InputError, require
from ppexport.files import check_writable

EXAMPLE = "Example: ppexport quantize-search pp_atd_light_x2 --images photographs -o search_x2"


def quantize_search(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="a bundled model's name, or a folder with a card.yaml")] = None,
    images: Annotated[Path, typer.Option(help="folder of HR photographs; not those of an evaluation set")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the search and of the artifact it finds")] = Path(
        "search"
    ),
    calibration: Annotated[
        Path | None, typer.Option(help="file that `calibrate` wrote; made from the pictures if left out")
    ] = None,
    runtime: Annotated[str, typer.Option(help="what is timed: onnxruntime or openvino, on this machine's CPU")] = (
        "onnxruntime"
    ),
    precision: Annotated[str, typer.Option(help="of the artifact: int8, or mixed (int8 and fp16)")] = "int8",
    budget: Annotated[
        float,
        typer.Option(min=0, help="PSNR-Y in dB that the placement may cost: the crops' mean and 1.645 standard errors"),
    ] = 0.05,
    weight_bits: Annotated[
        int, typer.Option(min=7, max=8, help="7 for OpenVINO on CPUs without VNNI, whose products of 8 bits saturate")
    ] = 8,
    crops: Annotated[int, typer.Option(min=2, max=4096, help="crops to measure PSNR-Y on")] = 32,
    size: Annotated[str, typer.Option(help="LR size HxW of a crop, and of the timed runs")] = "32x32",
    rounds: Annotated[int, typer.Option(min=3, help="rounds in which a placement and fp32 take turns")] = 15,
    threads: Threads = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    scale: Scale = None,
    option: Options = None,
    json: Json = None,
) -> None:
    """Search for the layers whose int8 saves time or size and keeps the picture, and export what is found.

    Measures every group of layers alone and then together, in dB of PSNR-Y on crops of the pictures and in time on the
    runtime; with --precision mixed as mixed files, which hold fp16 beside int8. A placement is within the budget if
    its mean cost plus 1.645 standard errors is, that is with 95 % confidence: more crops leave less doubt. Writes
    OUT/pareto.md, pareto.png, search.json, recipe.yaml (for `export --recipe`) and OUT/artifact. The same command
    continues a search that was interrupted. The pictures choose, and are listed in the recipe: evaluate on others.
    """
    from ppexport.exporting import export as run_export
    from ppexport.exporting import return_large_blocks
    from ppexport.folders import run_folder
    from ppexport.networks.load import card_of
    from ppexport.quantize.calibration import load_calibration
    from ppexport.quantize.crops import LEAST_CROPS, cut_crops, read_sources, warnings_about
    from ppexport.quantize.recipe import check_calibration
    from ppexport.search import search as steps
    from ppexport.search.trials import Search, SearchOptions

    require("matplotlib", "quantize")
    options = SearchOptions(runtime, thread_count(threads), rounds, budget, 7 if weight_bits == 7 else 8, precision)
    lr_size = parse_size(size)
    return_large_blocks()
    console = people(json)
    if os.path.exists(out) and not out.is_dir():
        raise InputError(f"{out} exists and is not a folder")
    check_writable(out / steps.TABLE if os.path.isdir(out) else out)
    sources = read_sources(images)
    network = load(model, checkpoint, arch, scale, option)
    card = card_of(network)
    if calibration is not None:
        check_calibration(load_calibration(calibration), card)
    context.with_resource(run_folder(out, steps.RUN))
    with stages("search") as step:
        step("exporting fp32")
        artifact = steps.fp32_artifact(network, lr_size, out)
    with continues_from(out), progress_bars() as progress:
        cut = cut_crops(sources, artifact.size, artifact.scale, crops, "search")
        own = cut_crops(sources, artifact.size, artifact.scale, max(crops, LEAST_CROPS)) if calibration is None else cut
        said = warnings_about(images, sources, own)
        for warning in dict.fromkeys([*warnings_about(images, sources, cut), *said]):
            console.print(f"warning: {warning}")
        if calibration is None:
            calibration = steps.own_calibration(artifact, sources, own, said, out, progress)
        measured = load_calibration(calibration)
        check_calibration(measured, card)
        search = Search(artifact, measured, cut, options, out)
        outcome = steps.run_search(search, progress)
    steps.write_outcome(out, outcome, search, card, sources)
    found = out / steps.FOUND
    with stages("search") as step:
        run_export(
            network, backend="onnx", size=card.default_size, out=found, precision=precision, calibration=calibration,
            recipe=out / steps.RECIPE, force=True, step=step,
        )  # fmt: skip
    console.print(table(steps.summary(outcome, search, card), steps.COLUMNS, steps.rows(outcome)))
    emit_json(json, {"model": card.name, "runtime": runtime, "precision": precision, **steps.to_dict(outcome)})
    console.print(f"chosen: {', '.join(outcome.chosen.groups)} ({outcome.chosen.calibrator}), {outcome.reason}")
    console.print(f"{out / steps.TABLE}, {out / steps.PICTURE}, {out / steps.RECIPE}, {found}")
