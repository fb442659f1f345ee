"""A picture of where two outputs differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from ppexport.device.picture import to_uint8
from ppexport.files import atomic_path

MARGIN = 8
CAPTION = 16
SHOWN = 256
"""Pixels of the longer side of every panel, at least."""


def heat(error: NDArray[np.float64], largest: float) -> Image.Image:
    """Error (H, W) as black (none) over red to yellow (*largest*)."""
    level = Image.fromarray(np.uint8(np.round(255 * np.clip(error / largest, 0, 1))))
    return ImageOps.colorize(level, "black", "yellow", mid="red")


def save_error_map(
    path: Path, lr: NDArray[np.float32], reference: NDArray[np.float32], other: NDArray[np.float32]
) -> None:
    """Write input, reference, other and their error, side by side, as a PNG. The caption states the error's scale."""
    difference = np.abs(reference.astype(np.float64) - other).max(axis=(0, 1))
    difference = np.where(np.isfinite(difference), difference, np.inf)
    finite = difference[np.isfinite(difference)]
    largest = max(float(finite.max()) if finite.size else 0.0, 1e-12)
    panels = [
        ("input", Image.fromarray(to_uint8(lr))),
        ("reference", Image.fromarray(to_uint8(reference))),
        ("artefact", Image.fromarray(to_uint8(np.nan_to_num(other)))),
        (f"error, yellow = {largest:.1e}", heat(difference, largest)),
    ]
    h, w = reference.shape[2:]
    factor = max(1, -(-SHOWN // max(h, w)))
    size = (w * factor, h * factor)
    width = len(panels) * (size[0] + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, size[1] + 2 * MARGIN + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels):
        left = MARGIN + i * (size[0] + MARGIN)
        sheet.paste(panel.resize(size, Image.Resampling.NEAREST), (left, MARGIN + CAPTION))
        draw.text((left, MARGIN // 2), caption, fill="black")
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
