"""What a PNG says of its colours beside a profile: the chunks cICP, sRGB, gAMA and cHRM.

A picture of another gamma looks darker or lighter without them. The results are levels of the same meaning as the
input's, so the chunks are copied as they are. JPEG and WebP have no such fields: they may hold what is shown alike
without the chunks, which is sRGB.
"""

from __future__ import annotations

import struct
from typing import IO, TypeAlias

Chunks: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""(kind, content) in the order of the file."""

_LENGTHS = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
_SRGB_CICP = bytes((1, 13, 0, 1))
_SRGB_GAMMA = 45_455
_SRGB_POINTS = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
# What libpng takes as the same: 5 % of gamma, 0.01 of a chromaticity.
_GAMMA_SLACK = 0.05
_POINT_SLACK = 1_000


def read_chunks(stream: IO[bytes]) -> Chunks:
    """The colour chunks of a PNG file, each kind once, those of a wrong length left out."""
    stream.seek(8)
    found: dict[bytes, bytes] = {}
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            break
        if _LENGTHS.get(kind) == length and kind not in found:
            found[kind] = stream.read(length)
            length = 0
        stream.seek(length + 4, 1)
    return tuple(found.items())


def beyond_srgb(chunks: Chunks, profile: bool) -> str | None:
    """The chunk because of which a viewer shows the picture otherwise than as sRGB, or as its *profile* says, or None.

    cICP comes before a profile, a profile before sRGB, and sRGB before gAMA and cHRM, as the PNG specification says.
    """
    content = dict(chunks)
    if b"cICP" in content:
        return None if content[b"cICP"] == _SRGB_CICP else "cICP"
    if profile or b"sRGB" in content:
        return None
    (gamma,) = struct.unpack(">I", content.get(b"gAMA", bytes(4)))
    if gamma and abs(gamma / _SRGB_GAMMA - 1) > _GAMMA_SLACK:
        return "gAMA"
    points = struct.unpack(">8I", content[b"cHRM"]) if b"cHRM" in content else _SRGB_POINTS
    if any(abs(a - b) > _POINT_SLACK for a, b in zip(points, _SRGB_POINTS, strict=True)):
        return "cHRM"
    return None
