"""Training patches and validation images from folders of HR pictures.

LR pictures are made of *whole* HR pictures by `ppexport.imaging.bicubic.resize_bicubic` and kept in memory as 8 bits,
so a patch has exactly the pixels that evaluation would give the network, at its borders too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
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

TRAINING = ("bsds400_train", "kodak24")
"""Folders that the bundled weights were trained on, in the order of the runs, or other pictures would be held out."""
HELD_OUT = 8
"""Pictures of these that every run held out."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """An HR picture (s*h, s*w, 3) and its LR (h, w, 3)."""

    name: str
    hr: Pixels
    lr: Pixels


def _hidden(name: str) -> bool:
    return name.startswith(".")


def find_images(folders: Sequence[Path]) -> list[Path]:
    """All pictures below *folders*, sorted by path inside each folder; hidden files and folders are passed over.

    Raises InputError for a folder that is missing, empty, or named like a public test set.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
        hit = EVALUATION_SETS.search(str(folder)) or EVALUATION_SETS.search(str(folder.resolve()))
        if hit:
            raise InputError(f"{folder} looks like the test set {hit.group()}: evaluation images are never trained on")
        images = sorted(
            p
            for p in folder.rglob("*")
            if p.suffix.lower() in SUFFIXES and p.is_file() and not any(map(_hidden, p.relative_to(folder).parts))
        )
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


def load_pairs(paths: Sequence[Path], scale: int) -> list[Pair]:
    """`load_pair` for all *paths*, in as many threads as torch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(load_pair, paths, repeat(scale)))


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
    # A copy: the middle of a picture is a view, whole pictures may be read-only, and torch takes neither.
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1).unsqueeze(0).float() / 255


class PatchSampler:
    """Random patches of several sizes, flipped and transposed; all chance comes from one generator.

    The pixels of all pictures lie on the device as bytes, one picture after the other. A batch is drawn on the CPU,
    where the same generator gives the same batch for every device, and cut on the device with a few launches.
    """

    def __init__(
        self, pairs: Sequence[Pair], sizes: Sequence[int], pixels: int, device: torch.device | str = "cpu"
    ) -> None:
        """*sizes* in LR pixels, multiples of 16; a batch has as many patches as come nearest to *pixels* LR pixels."""
        wrong = [s for s in sizes if s < 16 or s % 16]
        if wrong or not sizes:
            raise InputError(f"patch sizes are multiples of 16, not {wrong}")
        largest = max(sizes)
        kept = [p for p in pairs if min(p.lr.shape[:2]) >= largest]
        if not kept:
            raise InputError(f"no training image has an LR of {largest}x{largest} pixels: choose smaller patches")
        self.scale = pairs[0].hr.shape[0] // pairs[0].lr.shape[0]
        self.batches = [(size, max(1, round(pixels / size**2))) for size in sizes]
        self.sides = torch.tensor([p.lr.shape[:2] for p in kept])
        areas = self.sides.prod(dim=1)
        self.starts = areas.cumsum(0) - areas
        # Every position of every picture is equally likely, not every picture.
        self.areas = areas.double()
        self.lr, self.hr = (
            torch.from_numpy(np.concatenate([picture.reshape(-1, 3) for picture in pictures])).to(device)
            for pictures in ([p.lr for p in kept], [p.hr for p in kept])
        )

    def _draw(self, size: int, count: int, generator: Generator) -> Tensor:
        """Where the pixels of *count* patches lie, in LR and in HR: (2, 3, count, 1, 1) int64 on the pictures' device.

        The three are the first pixel of a patch, and how far it is to the pixel below and to the one on the right.
        """
        picture = torch.multinomial(self.areas, count, replacement=True, generator=generator)
        sides, start = self.sides[picture], self.starts[picture]
        corner = torch.rand(count, 2, dtype=torch.float64, generator=generator) * (sides - size + 1)
        top, left = corner.long().unbind(1)
        turn = torch.randint(8, (count,), generator=generator)
        flips, transposed = [(turn >> bit & 1).bool() for bit in (0, 1)], turn >= 4
        plans = []
        for unit in (1, self.scale):
            width, last = sides[:, 1] * unit, size * unit - 1
            first = start * unit**2 + top * unit * width + left * unit
            first = first + torch.where(flips[0], last * width, 0) + torch.where(flips[1], last, 0)
            down, right = torch.where(flips[0], -width, width), torch.where(flips[1], -1, 1)
            plans.append([first, torch.where(transposed, right, down), torch.where(transposed, down, right)])
        plan = torch.stack([torch.stack(p) for p in plans])[..., None, None]
        # Pinned, it travels while the device still computes the step before.
        return (plan.pin_memory() if self.lr.is_cuda else plan).to(self.lr.device, non_blocking=True)

    def batch(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """LR (b, 3, h, w) and HR (b, 3, sh, sw), both in [0, 1]; one patch size per batch, drawn at random."""
        size, count = self.batches[int(torch.randint(len(self.batches), (), generator=generator))]
        cut = []
        for pixels, side, (first, down, right) in zip(
            (self.lr, self.hr), (size, size * self.scale), self._draw(size, count, generator), strict=True
        ):
            along = torch.arange(side, device=pixels.device)
            index = first + down * along[:, None] + right * along
            patches = pixels.index_select(0, index.flatten()).view(count, side, side, 3)
            cut.append(patches.permute(0, 3, 1, 2).float() / 255)
        return cut[0], cut[1]
