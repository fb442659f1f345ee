"""What parity is tested on: real photographs, and the hard cases of masks and routing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppexport.device.mask import mirror_pad
from ppexport.device.picture import to_input, to_uint8
from ppexport.imaging.bicubic import resize_bicubic
from ppexport.imaging.images import photo_folder

Pixels = NDArray[np.uint8]

PHOTOS: tuple[tuple[str, float, float], ...] = (
    ("astronaut.png", 0.1, 0.35),
    ("chelsea.png", 0.4, 0.4),
    ("coffee.png", 0.5, 0.3),
    ("hubble_deep_field.jpg", 0.6, 0.2),
    ("rocket.jpg", 0.3, 0.5),
)
"""Bundled photographs, and where in them to cut, as shares of the space that is left (down, right)."""


@dataclass(frozen=True, eq=False)
class ParityInput:
    """One input picture and, where it has one, its ground truth."""

    name: str
    lr: NDArray[np.float32]
    """(1, 3, h, w) in [0, 1]."""
    hr: Pixels | None = None
    """uint8 (h * scale, w * scale, 3)."""


def _cut(photo: Pixels, size: tuple[int, int], down: float, right: float) -> Pixels:
    """A window of *size* from *photo*, mirrored where the photograph is too small."""
    photo = mirror_pad(photo, max(photo.shape[0], size[0]), max(photo.shape[1], size[1])).astype(np.uint8)
    top, left = round((photo.shape[0] - size[0]) * down), round((photo.shape[1] - size[1]) * right)
    return photo[top : top + size[0], left : left + size[1]]


def _photos(size: tuple[int, int], scale: int) -> Iterator[ParityInput]:
    """A crop of every photograph: with its ground truth where it is large enough, else the photograph itself as LR."""
    for name, down, right in PHOTOS:
        with Image.open(photo_folder() / name) as image:
            photo = np.asarray(image.convert("RGB"))
        large = (size[0] * scale, size[1] * scale)
        stem = Path(name).stem
        if photo.shape[0] >= large[0] and photo.shape[1] >= large[1]:
            hr = _cut(photo, large, down, right)
            yield ParityInput(stem, to_input(resize_bicubic(hr, scale)), hr)
        else:
            yield ParityInput(stem, to_input(_cut(photo, size, down, right)))


def _hard(size: tuple[int, int]) -> Iterator[tuple[str, Pixels]]:
    """The hard cases as 8-bit pictures."""
    h, w = size
    rng = np.random.default_rng(20251002)
    yield "black", np.zeros((h, w, 3), np.uint8)
    yield "white", np.full((h, w, 3), 255, np.uint8)
    yield "flat", np.full((h, w, 3), (40, 90, 200), np.uint8)
    yield "noise", rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    yield "greys", rng.integers(0, 256, (h, w, 1), dtype=np.uint8).repeat(3, axis=2)
    ramp = np.linspace(0, 255, h * w).reshape(h, w).astype(np.uint8)
    yield "gradient", np.stack([ramp, ramp[::-1], np.full_like(ramp, 128)], axis=2)
    # One pixel of another label in every second 8x8 window.
    picture = np.full((h, w, 3), (30, 60, 200), np.uint8)
    picture[3::16, 5::16] = (200, 40, 30)
    yield "short_of_pure", picture
    # A few windows in one corner: few impure tokens, so mirrored tails are long.
    picture = np.full((h, w, 3), (30, 160, 60), np.uint8)
    picture[-3:, -3:] = (220, 20, 200)
    yield "few_impure", picture


def on_levels(lr: NDArray[np.float32]) -> bool:
    """Whether *lr* in [0, 1] is a picture of 8 bits."""
    return np.array_equal(lr, to_input(to_uint8(lr)))


def parity_inputs(size: tuple[int, int], scale: int) -> list[ParityInput]:
    """All inputs for LR images of *size* (h, w): photographs first, then the hard cases."""
    inputs = [*_photos(size, scale), *(ParityInput(name, to_input(rgb)) for name, rgb in _hard(size))]
    # Values between the 8-bit levels, as a video pipeline makes them.
    between = inputs[0].lr * np.float32(0.83) + np.float32(0.0413)
    inputs.append(ParityInput("between_levels", between.astype(np.float32)))
    return inputs
