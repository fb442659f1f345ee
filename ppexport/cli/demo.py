"""`ppexport demo`: the whole way, once, on what is bundled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import emit_json, people, percent, progress_bar, progress_bars, stages
from ppexport.cli.options import Json
from ppexport.cli.parity import show as show_parity
from ppexport.errors import EXIT_GATE_FAILED

EXAMPLE = "Example: ppexport demo -o demo"


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the artefact and the pictures")] = Path("demo"),
    json: Json = None,
) -> None:
    """Export the bundled model, check parity, super-resolve a bundled photograph."""
    from ppexport.backends.backend import open_artifact
    from ppexport.cli.demo_pictures import MODEL, PHOTO, RUN, SIZE, make_input, show
    from ppexport.exporting import export
    from ppexport.folders import run_folder
    from ppexport.imaging.upscaling import upscale_file
    from ppexport.networks.load import load_network
    from ppexport.parity.inputs import photo_folder
    from ppexport.parity.run import run_parity

    context.with_resource(run_folder(out, RUN))
    console = people(json)
    console.print("Exporting, proving and upscaling take a minute or two on two cores that do nothing else.")
    network = load_network(MODEL)
    with stages("export") as step:
        artifact = export(network, backend="onnx", size=SIZE, out=out / MODEL, step=step)
    console.print(f"artefact: {artifact}")
    runner = open_artifact(artifact)
    with progress_bars() as bars:
        report = run_parity(network, runner, out / "parity", bars)
    show_parity(report, console)
    source, truth = make_input(out, photo_folder() / PHOTO, runner.scale)
    with progress_bar("tiles") as progress:
        upscaled = upscale_file(runner, source, out / "result.png", progress=progress)
    pictures = show(out, runner.artifact, truth)
    data = {key: str(value) if isinstance(value, Path) else value for key, value in vars(pictures).items()}
    emit_json(json, {"artifact": str(artifact), "parity": report.passed, "tiles": len(upscaled.tiles), **data})
    console.print(f"input:      {pictures.input}")
    console.print(f"result:     {pictures.result} ({pictures.psnr_result:.2f} dB PSNR-Y)")
    console.print(f"bicubic:    {pictures.bicubic} ({pictures.psnr_bicubic:.2f} dB)")
    console.print(f"mask:       {pictures.mask} ({percent(pictures.pure_share)} pure, green)")
    console.print(f"comparison: {pictures.comparison}")
    if not report.passed:
        raise typer.Exit(EXIT_GATE_FAILED)
