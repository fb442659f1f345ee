"""Input pictures with a chosen share of pure pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppexport.device.mask import mirror_pad, pixel_labels, pure_mask
from ppexport.parity.inputs import photo_folder

Pixels = NDArray[np.uint8]

PHOTO = "astronaut.png"
FLAT = (40, 90, 200)
SPECKS = ((200, 40, 30), (30, 60, 200))
"""Two colours with different labels: one of them always differs from what is around it."""
CELL = 8


def busy_photo(size: tuple[int, int], options: dict[str, Any]) -> Pixels:
    """The middle of a photograph with no pure pixel: in every Pure-Pass window one pixel has another label.

    Specks lie on a lattice with the window's period, so each window of both grids holds exactly one.
    """
    with Image.open(photo_folder() / PHOTO) as image:
        photo = np.asarray(image.convert("RGB"))
    height, width = (max(side, wanted) for side, wanted in zip(photo.shape[:2], size, strict=True))
    photo = mirror_pad(photo, height, width).astype(np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    rgb: Pixels = photo[top : top + size[0], left : left + size[1]].copy()
    window = options["window"]
    # pixel_labels pads, so labels and picture have the same upper left corner but not the same size.
    labels = pixel_labels(rgb, options["colors"])
    first = pixel_labels(np.array([[SPECKS[0]]], np.uint8), options["colors"])[0, 0]
    for y in range(window // 2 - 1, size[0], window):
        for x in range(window // 2, size[1], window):
            # Another label than the neighbour's, which lies in the same windows of both grids.
            beside = labels[y, x + 1 if x + 1 < size[1] else x - 1]
            rgb[y, x] = SPECKS[1] if beside == first else SPECKS[0]
    return rgb


def with_pure_share(rgb: Pixels, share: float) -> Pixels:
    """A copy of *rgb* whose upper cells of 8x8 pixels, row by row, are flat, so many that they are about *share*."""
    h, w = rgb.shape[0] // CELL, rgb.shape[1] // CELL
    flat = np.arange(h * w).reshape(h, w) < round(share * rgb.shape[0] * rgb.shape[1] / CELL**2)
    out: Pixels = rgb.copy()
    out[: h * CELL, : w * CELL][flat.repeat(CELL, axis=0).repeat(CELL, axis=1)] = FLAT
    return out


def pure_pixels(rgb: Pixels, options: dict[str, Any]) -> NDArray[np.bool_]:
    """The Pure-Pass mask (H', W') of *rgb* under a card's *options*."""
    return pure_mask(rgb, options["colors"], options["window"], options["csmf"])
