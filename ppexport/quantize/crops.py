"""Crops of a user's pictures to calibrate on, and what is wrong with the pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppexport.device.picture import to_input
from ppexport.errors import InputError
from ppexport.files import sha256_text
from ppexport.imaging.bicubic import resize_bicubic
from ppexport.imaging.images import pictures_in, read_levels

Pixels = NDArray[np.uint8]
LEAST_CROPS, LEAST_PICTURES = 32, 4
ALIKE = 6.0
"""Two pictures whose 8x8 thumbnails differ by fewer levels on average look alike."""
NARROW = 96
"""Levels between the 1st and the 99th percentile of all crops; five photographs have 180 to 230."""
KNOWN_FOLDER = re.compile(
    r"^(set5|set14|b(sds?)?_?100|urban_?100|manga_?109|div2k_valid.*|bsds\d*[_-]?test)(_.*)?$", re.IGNORECASE
)


@dataclass(frozen=True, eq=False)
class Source:
    """A picture that was looked at; its pixels are not kept, since a folder may hold more than memory does."""

    path: Path
    sha256: str
    """The `pixel_hash` of its pixels."""
    size: tuple[int, int]
    """(height, width)."""

    def read(self) -> Pixels:
        """Its pixels (height, width, 3). Raises ImageError, and InputError where the file is another than before."""
        pixels = read_levels(self.path)
        if pixel_hash(pixels) != self.sha256:
            raise InputError(f"{self.path} was changed while it was used")
        return pixels


@dataclass(frozen=True, eq=False)
class Crop:
    """An LR crop and its ground truth."""

    name: str
    lr: NDArray[np.float32]
    """(1, 3, h, w) in [0, 1]."""
    hr: Pixels
    """(h * scale, w * scale, 3)."""
    source: str
    """The picture it was cut from: its `Source.sha256`."""


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 of the size and the RGB bytes of (H, W, 3): the same for a PNG and any lossless copy of it."""
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@cache
def known_evaluation_pictures() -> dict[str, str]:
    """{pixel hash: name of the evaluation set}."""
    text = files("ppexport.calibration").joinpath("evaluation_sets.json").read_text(encoding="utf-8")
    return {digest: name for name, digests in json.loads(text).items() for digest in digests}


def read_sources(folder: Path) -> list[Source]:
    """Every picture of *folder*, read one after the other.

    Raises InputError where there is none, ImageError for the first that cannot be read.
    """
    found = []
    for path in pictures_in(folder):
        pixels = read_levels(path)
        found.append(Source(path, pixel_hash(pixels), (pixels.shape[0], pixels.shape[1])))
    return found


def cut_crops(
    sources: Sequence[Source], size: tuple[int, int], scale: int, count: int, purpose: str = "calibration"
) -> list[Crop]:
    """Crops taken from the pictures in turn; LR by antialiased bicubic. Every picture is read once.

    Where a crop lies follows from the picture, its number and *purpose* alone, so that a resumed run cuts the same
    crops, and other purposes others.

    Args:
        sources: the pictures; those smaller than a crop are left out.
        size: (h, w) of a crop at low resolution.
        scale: upscaling factor.
        count: how many crops.
        purpose: a word that moves the crops.

    Raises:
        InputError: no picture is as large as a crop, or a file is another than when it was looked at.
    """
    high, wide = size[0] * scale, size[1] * scale
    usable = [s for s in sources if s.size[0] >= high and s.size[1] >= wide]
    if not usable:
        raise InputError(f"none of the {len(sources)} pictures is as large as a crop, {wide}x{high} pixels")
    crops: dict[int, Crop] = {}
    for first, source in enumerate(usable[:count]):
        pixels = source.read()
        for number in range(first, count, len(usable)):
            seed = hashlib.sha256(f"{source.sha256} {number // len(usable)} {purpose}".encode()).digest()
            place = np.random.default_rng(int.from_bytes(seed[:8], "big"))
            top = int(place.integers(0, source.size[0] - high + 1))
            left = int(place.integers(0, source.size[1] - wide + 1))
            # A copy, since a view would keep the whole picture.
            hr = pixels[top : top + high, left : left + wide].copy()
            name = f"{source.path.name}+{left}+{top}"
            crops[number] = Crop(name, to_input(resize_bicubic(hr, scale)), hr, source.sha256)
    return [crops[number] for number in range(count)]


def used_pictures(sources: Sequence[Source], crops: Sequence[Crop]) -> list[dict[str, str]]:
    """Name and pixel hash of the pictures that *crops* were cut from, by name; of equal ones the last."""
    used = {c.source for c in crops}
    named = {s.sha256: {"name": s.path.name, "sha256": s.sha256} for s in sources if s.sha256 in used}
    return sorted(named.values(), key=lambda picture: picture["name"])


def images_hash(pictures: Sequence[Mapping[str, str]]) -> str:
    """SHA-256 of the sorted pixel hashes: of the pictures, whatever their names and order."""
    return sha256_text("\n".join(sorted(picture["sha256"] for picture in pictures)))


def warnings_about(folder: Path, sources: Sequence[Source], crops: Sequence[Crop]) -> list[str]:
    """What makes these pictures poor ones to calibrate on, one sentence each.

    An evaluation set is known by its pictures' pixels or by the name of their *folder*.
    """
    said = []
    known = known_evaluation_pictures()
    sets = {known[s.sha256] for s in sources if s.sha256 in known}
    sets |= {part for part in folder.resolve().parts[-2:] if KNOWN_FOLDER.match(part)}
    if sets:
        said.append(
            f"these are pictures of an evaluation set ({', '.join(sorted(sets))}): what is calibrated on them must not "
            "be evaluated on them"
        )
    used = {c.source for c in crops}
    unused = sum(s.sha256 not in used for s in sources)
    if unused:
        said.append(f"{unused} of {len(sources)} pictures are not used: smaller than a crop, or more than crops")
    if len(used) < LEAST_PICTURES:
        said.append(f"only {len(used)} different pictures: calibration needs at least {LEAST_PICTURES}")
    if len(crops) < LEAST_CROPS:
        said.append(f"only {len(crops)} crops: calibration needs at least {LEAST_CROPS}")
    thumbnails = np.array([Image.fromarray(c.hr).resize((8, 8), Image.Resampling.BOX) for c in crops], np.float64)
    spread = float(np.abs(thumbnails - np.median(thumbnails, axis=0)).mean())
    if spread < ALIKE:
        said.append(f"the crops look alike: their thumbnails differ by {spread:.1f} of 255 levels on average")
    low, high = np.percentile(np.stack([c.hr for c in crops])[:, ::4, ::4], (1, 99))
    if high - low < NARROW:
        said.append(f"the range of values is unlike photographs: 98 % lie between {low:.0f} and {high:.0f} of 255")
    grey = float(np.mean([np.ptp(c.hr[::4, ::4].astype(np.int16), axis=2).mean() for c in crops]))
    if grey < 1:
        said.append("all crops are grey, photographs in colour have other ranges")
    return said
