"""What an artifact is timed on: crops of photographs, since cost may follow content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Manifest
from ppexport.device.mask import mirror_pad, pure_mask
from ppexport.errors import InputError
from ppexport.files import atomic_path
from ppexport.imaging.images import pictures_in, read_levels
from ppexport.parity.inputs import PHOTOS, photo_folder

LEAST = 8
"""Images that queries cycle over, at least."""
PLACES = ((0.15, 0.2), (0.85, 0.8), (0.15, 0.8), (0.85, 0.2), (0.5, 0.5))
"""Where in a photograph to cut, as shares of the room there is (down, right)."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Crop:
    """One LR image."""

    name: str
    rgb: Pixels
    """(h, w, 3)."""
    pure_share: float | None
    """Share of pure pixels after padding; None for a network without Pure-Pass."""

    def facts(self) -> dict[str, Any]:
        """Name, hash and pure share."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rgb).tobytes()).hexdigest()
        return {"name": self.name, "sha256": digest, "pure_share": self.pure_share}


def crop(photo: Pixels, size: tuple[int, int], place: tuple[float, float]) -> Pixels:
    """A window of *size* at *place*, mirrored where the photograph is too small."""
    photo = mirror_pad(photo, max(photo.shape[0], size[0]), max(photo.shape[1], size[1])).astype(np.uint8)
    top, left = (round((photo.shape[i] - size[i]) * place[i]) for i in (0, 1))
    return np.ascontiguousarray(photo[top : top + size[0], left : left + size[1]])


def share_of(manifest: Manifest, rgb: Pixels) -> float | None:
    """The share of pixels of *rgb* that Pure-Pass finds pure; None for a network without it."""
    o = manifest.options
    return float(pure_mask(rgb, o["colors"], o["window"], o["csmf"]).mean()) if o else None


def crops_of(manifest: Manifest, folder: Path | None = None, places: int = 2) -> list[Crop]:
    """Crops of the artifact's size: *places* of every bundled photograph, or of every picture in *folder*.

    Raises InputError for fewer than eight.
    """
    files = [photo_folder() / name for name, _, _ in PHOTOS] if folder is None else pictures_in(folder)
    size = (manifest.size[0], manifest.size[1])
    # A folder of few pictures is cut in more places, a large one in one.
    count = places if folder is None else max(1, min(len(PLACES), -(-LEAST // len(files))))
    found = []
    for path in files:
        photo = read_levels(path)
        for number, place in enumerate(PLACES[:count]):
            rgb = crop(photo, size, place)
            found.append(Crop(f"{path.stem}-{number}" if count > 1 else path.stem, rgb, share_of(manifest, rgb)))
    if len(found) < LEAST:
        raise InputError(f"{folder} gives {len(found)} images; a measurement needs at least {LEAST}: add pictures")
    return found


def save_crops(path: Path, made: Sequence[Crop]) -> None:
    """Write the pixels (images, h, w, 3) to an .npy file, atomically.

    Raises InputError where it holds others, which may be anybody's.
    """
    pixels = np.stack([picture.rgb for picture in made])
    if path.exists():
        try:
            same = np.array_equal(np.load(path, allow_pickle=False), pixels)
        except (OSError, ValueError, EOFError):
            same = False
        if not same:
            raise InputError(f"{path} holds other pictures than those to measure: name another folder")
        return
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, pixels)
