"""Training patches and validation images from folders of HR pictures.

LR pictures are made of *whole* HR pictures by `ppexport.imaging.bicubic.resize_bicubic` and kept in memory as 8 bits,
so a patch has exactly the pixels that evaluation would give the network, at its borders too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from ppexport.errors import ImageError, InputError
from ppexport.imaging.bicubic import crop_to_multiple, resize_bicubic

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
EVALUATION_SETS = re.compile(
    r"(?<![a-z])(set[-_ ]?5|set[-_ ]?14|b(sds?)?[-_ ]?100|urban[-_ ]?100|manga[-_ ]?109)(?!\d)", re.IGNORECASE
)
"""Names of the public test sets; a network that has seen them cannot be compared with anything."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """An HR picture (s*h, s*w, 3) and its LR (h, w, 3)."""

    name: str
    hr: Pixels
    lr: Pixels


def find_images(folders: Sequence[Path]) -> list[Path]:
    """All pictures below *folders*, sorted by path inside each folder.

    Raises InputError for a folder that is missing, empty, or named like a public test set.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
        hit = EVALUATION_SETS.search(str(folder)) or EVALUATION_SETS.search(str(folder.resolve()))
        if hit:
            raise InputError(f"{folder} looks like the test set {hit.group()}: evaluation images are never trained on")
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        hits = [p for p in images if EVALUATION_SETS.search(str(p.resolve()))]
        if hits:
            raise InputError(f"{hits[0]} looks like a picture of a test set: evaluation images are never trained on")
        if not images:
            raise InputError(f"{folder} holds no pictures")
        found += images
    return found


def split_holdout(images: Sequence[Path], count: int) -> tuple[list[Path], list[Path]]:
    """(training, held-out): *count* images taken out at even distances. Raises InputError if none would be left."""
    if not 0 <= count < len(images):
        raise InputError(f"{count} of {len(images)} images cannot be held out")
    held = {(2 * i + 1) * len(images) // (2 * count) for i in range(count)}
    return [p for i, p in enumerate(images) if i not in held], [images[i] for i in sorted(held)]


def load_pair(path: Path, scale: int) -> Pair:
    """Read an HR picture and make its LR. Raises ImageError if it cannot be read or is too small."""
    try:
        with Image.open(path) as image:
            hr = crop_to_multiple(np.asarray(image.convert("RGB"), dtype=np.uint8), scale)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ImageError(f"{path} cannot be used: {error}") from None
    return Pair(path.name, np.ascontiguousarray(hr), resize_bicubic(hr, scale))


def center_crop(pair: Pair, side: int) -> Pair:
    """The middle of *pair*, at most *side* LR pixels wide and high."""
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    h, w = pair.lr.shape[:2]
    top, left = max(0, (h - side) // 2), max(0, (w - side) // 2)
    lr = pair.lr[top : top + side, left : left + side]
    hr = pair.hr[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
    return Pair(pair.name, hr, lr)


def to_tensor(pixels: Pixels) -> Tensor:
    """uint8 (h, w, 3) -> float32 (1, 3, h, w) in [0, 1]."""
    # A copy: patches are views with negative strides, whole pictures may be read-only, and torch takes neither.
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1).unsqueeze(0).float() / 255


def _draw(limit: int, generator: Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


class PatchSampler:
    """Random patches of several sizes, flipped and transposed; all chance comes from one generator."""

    def __init__(self, pairs: Sequence[Pair], sizes: Sequence[int], pixels: int) -> None:
        """*sizes* in LR pixels, multiples of 16; a batch has as many patches as come nearest to *pixels* LR pixels."""
        wrong = [s for s in sizes if s < 16 or s % 16]
        if wrong or not sizes:
            raise InputError(f"patch sizes are multiples of 16, not {wrong}")
        largest = max(sizes)
        self.pairs = [p for p in pairs if min(p.lr.shape[:2]) >= largest]
        if not self.pairs:
            raise InputError(f"no training image has an LR of {largest}x{largest} pixels: choose smaller patches")
        self.scale = pairs[0].hr.shape[0] // pairs[0].lr.shape[0]
        self.batches = [(size, max(1, round(pixels / size**2))) for size in sizes]
        # Every position of every picture is equally likely, not every picture.
        self.areas = torch.tensor([float(p.lr.shape[0] * p.lr.shape[1]) for p in self.pairs])

    def patch(self, size: int, generator: Generator) -> tuple[Pixels, Pixels]:
        """One LR patch (size, size, 3) and its HR."""
        pair = self.pairs[int(torch.multinomial(self.areas, 1, generator=generator))]
        h, w = pair.lr.shape[:2]
        top, left = _draw(h - size + 1, generator), _draw(w - size + 1, generator)
        s = self.scale
        lr = pair.lr[top : top + size, left : left + size]
        hr = pair.hr[top * s : (top + size) * s, left * s : (left + size) * s]
        turn = _draw(8, generator)
        for bit, change in enumerate((np.flipud, np.fliplr, lambda a: a.swapaxes(0, 1))):
            if turn >> bit & 1:
                lr, hr = change(lr), change(hr)
        return lr, hr

    def batch(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """LR (b, 3, h, w) and HR (b, 3, sh, sw), both in [0, 1]; one patch size per batch, drawn at random."""
        size, count = self.batches[_draw(len(self.batches), generator)]
        patches = [self.patch(size, generator) for _ in range(count)]
        return torch.cat([to_tensor(lr) for lr, _ in patches]), torch.cat([to_tensor(hr) for _, hr in patches])
