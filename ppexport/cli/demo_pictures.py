"""The demonstration: export the bundled model, prove parity, super-resolve a bundled photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ppexport.device.artifact import Artifact
from ppexport.device.mask import mask_from_labels, pixel_labels
from ppexport.device.picture import psnr_y
from ppexport.files import atomic_path
from ppexport.folders import Run, is_artifact
from ppexport.imaging.alpha import mask_overlay
from ppexport.imaging.bicubic import crop_to_multiple, enlarge_bicubic, resize_bicubic
from ppexport.imaging.images import Picture, read_image, write_image

MODEL = "pp_atd_light_x2"
SIZE = (64, 64)
PHOTO = "astronaut.png"
DETAIL = (30, 95, 56, 84)
"""Part of the LR picture that the comparison shows: top, left, height, width."""
ZOOM = 3

RUN = Run(
    "demonstration",
    (MODEL, "parity", "input.png", "bicubic.png", "result.png", "mask.png", "comparison.png"),
    lambda folder: is_artifact(folder / MODEL),
)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class DemoPictures:
    """Where the pictures of a demonstration are, and how good they are."""

    input: Path
    bicubic: Path
    result: Path
    mask: Path
    comparison: Path
    pure_share: float
    psnr_bicubic: float
    psnr_result: float


def make_input(folder: Path, photo: Path, scale: int) -> tuple[Path, Pixels]:
    """Write the LR of *photo* into *folder*; returns its path and the ground truth."""
    hr = crop_to_multiple(np.asarray(read_image(photo).rgb, np.uint8), scale)
    path = folder / "input.png"
    write_image(path, Picture(resize_bicubic(hr, scale)))
    return path, hr


def compare(bicubic: Pixels, result: Pixels, truth: Pixels, scale: int) -> Image.Image:
    """A detail of bicubic enlargement, result and ground truth, side by side and magnified."""
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


def show(folder: Path, artifact: Artifact, truth: Pixels) -> DemoPictures:
    """Write bicubic, mask overlay and comparison beside `input.png` and `result.png` in *folder*."""
    scale, options = artifact.scale, artifact.manifest.options
    lr, result = (np.asarray(read_image(folder / name).rgb, np.uint8) for name in ("input.png", "result.png"))
    bicubic = enlarge_bicubic(lr, scale)
    write_image(folder / "bicubic.png", Picture(bicubic))
    pure = mask_from_labels(pixel_labels(lr, options["colors"]), options["window"], options["csmf"])
    write_image(folder / "mask.png", Picture(mask_overlay(lr, pure, zoom=scale)))
    with atomic_path(folder / "comparison.png") as temporary:
        compare(bicubic, result, truth, scale).save(temporary, "PNG")
    return DemoPictures(
        input=folder / "input.png",
        bicubic=folder / "bicubic.png",
        result=folder / "result.png",
        mask=folder / "mask.png",
        comparison=folder / "comparison.png",
        pure_share=float(pure.mean()),
        psnr_bicubic=psnr_y(bicubic, truth, scale),
        psnr_result=psnr_y(result, truth, scale),
    )
