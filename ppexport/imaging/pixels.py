"""What a picture is here: its pixels, upright, and all that belongs to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ppexport.imaging.alpha import bleed

if TYPE_CHECKING:
    from ppexport.imaging.animations import Frames

Pixels: TypeAlias = NDArray[Any]
"""uint8, or float32 in [0, 1]; what is written may also be uint16."""
DEEP = 65535
"""The highest level of 16 bits."""


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its colours, as it was read: `metadata` changes what a new size makes wrong."""

    exif: bytes | None = None
    """From its byte order on (`II*` or `MM`), without the words `Exif` before it."""
    xmp: bytes | None = None
    texts: tuple[tuple[str, str], ...] = ()
    """(keyword, text): the text chunks of a PNG, the comment of a JPEG or GIF as `Comment`."""


@dataclass(frozen=True)
class Picture:
    """A picture as arrays, upright."""

    rgb: Pixels
    """(H, W, 3), uint8 or float32 in [0, 1], to be written also uint16; three equal channels if grey. May be a
    read-only view."""
    alpha: Pixels | None = None
    """(H, W), of the same kind as `rgb`: its highest value is opaque."""
    grey: bool = False
    """Whether the file had one channel of colour, and the file written will have."""
    icc: bytes | None = None
    """The colour profile, of RGB or of grey as the picture is."""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    """The colour chunks of a PNG: (kind, content) in the order of the file."""
    dpi: tuple[float, float] | None = None
    """Dots per inch, (x, y)."""
    depth: int = 8
    """Bits of a sample of the file read: 8, also for fewer, or 16, also for 10 and 12."""
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    """Sentences for the user about what was assumed or left out while reading."""
    frames: Frames | None = None
    """The pictures of an animation, this one being the first."""
    milliseconds: float = 0
    """How long a frame of an animation is shown."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def transparent(self) -> bool:
        """Whether any pixel is not opaque."""
        return self.alpha is not None and bool((self.alpha < opaque(self.alpha.dtype)).any())

    @property
    def bled(self) -> Pixels:
        """`rgb` for a network: invisible pixels take the colours of visible ones near them (`imaging.alpha`)."""
        return self.rgb if self.alpha is None else bleed(self.rgb, self.alpha)


def opaque(kind: np.dtype[Any]) -> float:
    """The highest value of pixels of this *kind*."""
    return float(np.iinfo(kind).max) if np.issubdtype(kind, np.integer) else 1.0


def eight_bits(levels: Pixels) -> NDArray[np.uint8]:
    """Levels of 16 bits, or of 8 as they are, as 8 bits: the nearest level."""
    if levels.dtype == np.uint8:
        return levels
    return ((levels.astype(np.uint32) * 255 + 32767) // DEEP).astype(np.uint8)


def joined(things: Iterable[str], word: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    *most, last = things
    return f"{', '.join(most)} {word} {last}" if most else last
