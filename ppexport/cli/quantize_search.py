"""`ppexport quantize-search`: which layers to put in int8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ppexport.cli.console import continues_from, emit_json, people, progress_bars, stages, table
from ppexport.cli.options import Arch, Checkpoint, Json, Scale, load, parse_size, threads_here
from ppexport.errors import InputError, counted, require
from ppexport.files import check_writable, write_text

EXAMPLE = "Example: ppexport quantize-search pp_atd_light_x2 --images photographs -o search_x2"


def quantize_search(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="a bundled model's name, or a folder with a card.yaml")] = None,
    images: Annotated[Path, typer.Option(help="folder of HR photographs; not those of an evaluation set")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the search and of the artefact it finds")] = Path(
        "search"
    ),
    calibration: Annotated[
        Path | None, typer.Option(help="file that `calibrate` wrote; made from the pictures if left out")
    ] = None,
    runtime: Annotated[str, typer.Option(help="what is timed: onnxruntime or openvino, on this machine's CPU")] = (
        "onnxruntime"
    ),
    precision: Annotated[str, typer.Option(help="of the artefact: int8, or mixed (int8 and fp16)")] = "int8",
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
    threads: Annotated[int, typer.Option(callback=threads_here, help="CPU threads of the timed runs")] = 2,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    scale: Scale = None,
    json: Json = None,
) -> None:
    """Search for the layers whose int8 saves time or size and keeps the picture, and export what is found.

    Measures every group of layers alone and then together, in dB of PSNR-Y on crops of the pictures and in time on the
    runtime; with --precision mixed as mixed files, which hold fp16 beside int8. A placement is within the budget if
    its mean cost plus 1.645 standard errors is, that is with 95 % confidence: more crops leave less doubt. Writes
    OUT/pareto.md, pareto.png, search.json, recipe.yaml (for `export --recipe`) and OUT/artifact. The same command
    continues a search that was interrupted. The pictures choose, and are listed in the recipe: evaluate on others.
    """
    from ppexport.backends.onnx.collect import calibrate as run_calibrate
    from ppexport.backends.onnx.collect import fp32_artifact, is_of, used_pictures
    from ppexport.device.artifact import MANIFEST, read_artifact
    from ppexport.exporting import check_choice, return_large_blocks
    from ppexport.exporting import export as run_export
    from ppexport.folders import run_folder
    from ppexport.networks.load import card_of
    from ppexport.quantize.bundled import check_calibration
    from ppexport.quantize.calibration import load_calibration
    from ppexport.quantize.crops import LEAST_CROPS, cut_crops, read_sources, warnings_about
    from ppexport.quantize.recipe import write_recipe
    from ppexport.search.outcome import COLUMNS, PICTURE, TABLE, found_recipe, markdown, plot, rows, to_dict
    from ppexport.search.search import MARGIN, RUN, Search, Wish, run_search
    from ppexport.search.timing import RUNTIMES

    require("matplotlib", "quantize")
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, ("int8", "mixed"))
    return_large_blocks()
    console = people(json)
    if os.path.exists(out) and not out.is_dir():
        raise InputError(f"{out} exists and is not a folder")
    check_writable(out / TABLE if os.path.isdir(out) else out)
    sources = read_sources(images)
    network = load(model, checkpoint, arch, scale)
    card = card_of(network)
    measured = None if calibration is None else load_calibration(calibration)
    if measured is not None:
        check_calibration(measured, card)
    context.with_resource(run_folder(out, RUN))
    folder = out / "fp32"
    wanted = parse_size(size)
    with stages("search") as step:
        step("exporting fp32")
        fresh = not (folder / MANIFEST).is_file() or read_artifact(folder).size != wanted
        if fresh or read_artifact(folder).manifest.card_sha256 != card.hash():
            fp32_artifact(network, wanted, folder)
    artifact = read_artifact(folder)
    with continues_from(out), progress_bars() as progress:
        cut = cut_crops(sources, artifact.size, artifact.scale, crops, "search")
        warned = warnings_about(images, sources, cut)
        for warning in warned:
            console.print(f"warning: {warning}")
        if measured is None:
            path = out / "calibration.npz"
            own = cut_crops(sources, artifact.size, artifact.scale, max(crops, LEAST_CROPS))
            said = warnings_about(images, sources, own)
            for warning in said:
                if warning not in warned:
                    console.print(f"warning, of the calibration: {warning}")
            if not (path.is_file() and is_of(load_calibration(path), artifact, sources, own)):
                run_calibrate(
                    artifact, sources, own, said, path, lambda done, total: progress("calibration", done, total)
                )
            measured, calibration = load_calibration(path), path
            check_calibration(measured, card)
        bits: Literal[7, 8] = 7 if weight_bits == 7 else 8
        search = Search(artifact, measured, cut, Wish(runtime, threads, rounds, budget, bits, precision), out)
        outcome = run_search(search, progress)
    chosen = outcome.chosen
    about = [
        f"{card.name} x{card.scale} in {precision}: PSNR-Y against fp32 ({outcome.fp32_psnr:.3f} dB) on "
        f"{counted(len(cut), 'crop')} of {wanted[0]}x{wanted[1]} LR pixels (HxW) from "
        f"{counted(len({c.source for c in cut}), 'picture')}, computed by ONNX Runtime; time on {runtime}, "
        f"{counted(threads, 'thread')}, {counted(rounds, 'round')} in turns with fp32, median and bootstrap interval "
        f"of 95 %. Within the budget, {budget:g} dB, is what costs no more with {MARGIN:g} standard errors on top."
    ]
    write_text(out / TABLE, markdown(outcome, about))
    plot(out / PICTURE, outcome, f"{card.name}: {precision} on {runtime}")
    weights = None if card.weights is None else card.weights.sha256
    write_recipe(out / "recipe.yaml", found_recipe(outcome, search, used_pictures(sources, cut), weights))
    with stages("search") as step:
        run_export(
            network,
            backend="onnx",
            size=card.default_size,
            out=out / "artifact",
            precision=precision,
            calibration=calibration,
            recipe=out / "recipe.yaml",
            force=True,
            step=step,
        )
    console.print(table(about[0], COLUMNS, rows(outcome)))
    emit_json(json, {"model": card.name, "runtime": runtime, "precision": precision, **to_dict(outcome)})
    console.print(f"chosen: {', '.join(chosen.groups)} ({chosen.calibrator}), {outcome.reason}")
    console.print(f"{out / TABLE}, {out / PICTURE}, {out / 'recipe.yaml'}, {out / 'artifact'}")
