"""`ppexport demo`: export the bundled model, prove parity, super-resolve a bundled photograph, make a page of it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw

from ppexport.cli.console import emit_json, people, percent, progress_bar, progress_bars, stages
from ppexport.cli.options import Json
from ppexport.cli.parity import show as show_parity
from ppexport.device.capacities import capacity_set
from ppexport.device.picture import psnr_y
from ppexport.errors import EXIT_GATE_FAILED, UnavailableError
from ppexport.files import atomic_path
from ppexport.folders import Run, is_artifact, run_folder
from ppexport.imaging.alpha import mask_overlay
from ppexport.imaging.bicubic import crop_to_multiple, enlarge_bicubic, resize_bicubic
from ppexport.imaging.images import Picture, read_image, write_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppexport.device.artifact import Artifact
    from ppexport.networks.network import Network

    Pixels = NDArray[np.uint8]

EXAMPLE = "Example: ppexport demo -o demo"
MODEL = "pp_atd_light_x2"
SIZE = (64, 64)
PHOTO = "astronaut.png"
DETAIL = (30, 95, 56, 84)
"""Part of the LR picture that the comparison shows: top, left, height, width."""
ZOOM = 3
NAMES = ("input", "bicubic", "result", "mask", "comparison")
PAGE = "page"
RUN = Run(
    "demonstration",
    (MODEL, PAGE, "parity", *(f"{name}.png" for name in NAMES)),
    lambda folder: is_artifact(folder / MODEL),
)


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the artifact and the pictures")] = Path("demo"),
    json: Json = None,
) -> None:
    """Export the bundled model, check parity, super-resolve a bundled photograph, and make a page for browsers."""
    from ppexport.backends.backend import open_artifact
    from ppexport.exporting import export
    from ppexport.imaging.images import photo_folder
    from ppexport.imaging.upscaling import upscale_file
    from ppexport.networks.load import load_network
    from ppexport.parity.run import run_parity

    context.with_resource(run_folder(out, RUN))
    console = people(json)
    console.print("Exporting, proving and upscaling take a minute or two on two cores that do nothing else.")
    network = load_network(MODEL)
    with stages("export") as step:
        artifact = export(network, backend="onnx", size=SIZE, out=out / MODEL, step=step)
    console.print(f"artifact: {artifact}")
    runner = open_artifact(artifact)
    with progress_bars() as bars:
        report = run_parity(network, runner, out / "parity", bars)
    show_parity(report, console)
    files = {name: out / f"{name}.png" for name in NAMES}
    truth = crop_to_multiple(np.asarray(read_image(photo_folder() / PHOTO).rgb, np.uint8), runner.scale)
    write_image(files["input"], Picture(resize_bicubic(truth, runner.scale)))
    with progress_bar("tiles") as progress:
        upscaled = upscale_file(runner, files["input"], files["result"], progress=progress)
    figures = _draw(files, runner.artifact, truth)
    data: dict[str, Any] = {"artifact": str(artifact), "parity": report.passed, "tiles": len(upscaled.tiles)}
    page, offer = _make_page(network, out / PAGE)
    data["page"] = None if page is None else str(page)
    emit_json(json, {**data, **{name: str(path) for name, path in files.items()}, **figures})
    shown = {
        "result": f"{figures['psnr_result']:.2f} dB PSNR-Y", "bicubic": f"{figures['psnr_bicubic']:.2f} dB",
        "mask": f"{percent(figures['pure_share'])} pure, green",
    }  # fmt: skip
    for name in NAMES:
        console.print(f"{name + ':':<11} {files[name]}" + (f" ({shown[name]})" if name in shown else ""))
    console.print(offer)
    if not report.passed:
        raise typer.Exit(EXIT_GATE_FAILED)


def _make_page(network: Network, out: Path) -> tuple[Path | None, str]:
    """Export *network* as a page where that is possible here; returns the page, and a sentence about it."""
    from ppexport.exporting import export

    try:
        with stages("export for browsers") as step:
            export(network, backend="web", size=SIZE, out=out, capacities=capacity_set(SIZE), step=step)
    except UnavailableError as error:
        return None, f"no page for browsers was made: {error}"
    # `make demo` runs without the environment's commands.
    own = os.path.relpath(Path(sys.executable).with_name("ppexport"))
    command = "ppexport" if shutil.which("ppexport") else shlex.quote(own)
    return out, f"open the same model in a browser: {command} serve {shlex.quote(str(out))}"


def _draw(files: dict[str, Path], artifact: Artifact, truth: Pixels) -> dict[str, float]:
    """Write bicubic, mask overlay and comparison beside input and result; returns how good they are."""
    scale = artifact.scale
    lr, result = (np.asarray(read_image(files[name]).rgb, np.uint8) for name in ("input", "result"))
    bicubic = enlarge_bicubic(lr, scale)
    write_image(files["bicubic"], Picture(bicubic))
    pure = artifact.manifest.pure(lr)
    write_image(files["mask"], Picture(mask_overlay(lr, pure, zoom=scale)))
    with atomic_path(files["comparison"]) as temporary:
        side_by_side(bicubic, result, truth, scale).save(temporary, "PNG")
    return {
        "pure_share": float(pure.mean()),
        "psnr_bicubic": psnr_y(bicubic, truth, scale),
        "psnr_result": psnr_y(result, truth, scale),
    }


def side_by_side(bicubic: Pixels, result: Pixels, truth: Pixels, scale: int) -> Image.Image:
    """A detail of bicubic enlargement, result and ground truth, magnified."""
    top, left, height, width = DETAIL
    y, x = slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)
    panels = {"bicubic": bicubic[y, x], "PP-ATD-light": result[y, x], "ground truth": truth[y, x]}
    size = (width * scale * ZOOM, height * scale * ZOOM)
    sheet = Image.new("RGB", (len(panels) * (size[0] + 8) - 8, size[1] + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels.items()):
        draw.text((i * (size[0] + 8) + 4, 4), caption, fill="black")
        sheet.paste(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST), (i * (size[0] + 8), 20))
    return sheet
