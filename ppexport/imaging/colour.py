"""What a picture says of its colours: profiles, and the chunks that a PNG may have instead of one."""

from __future__ import annotations

import io
import struct
from typing import IO

import numpy as np
from PIL import Image

from ppexport.imaging.pixels import Picture

_CHUNK_LENGTHS = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
_SRGB_CICP = bytes((1, 13, 0, 1))
_SRGB_GAMMA = 45_455
_SRGB_POINTS = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
# What libpng takes as the same: 5 % of gamma, 0.01 of a chromaticity.
_GAMMA_SLACK = 0.05
_POINT_SLACK = 1_000
_SPACES = {b"RGB ": "RGB", b"GRAY": "grey", b"CMYK": "CMYK", b"Lab ": "Lab", b"YCbr": "YCbCr", b"XYZ ": "XYZ"}


def read_chunks(stream: IO[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The colour chunks of a PNG file, each kind once, those of a wrong length left out."""
    stream.seek(8)
    found: dict[bytes, bytes] = {}
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            break
        if _CHUNK_LENGTHS.get(kind) == length and kind not in found:
            found[kind] = stream.read(length)
            length = 0
        stream.seek(length + 4, 1)
    return tuple(found.items())


def beyond_srgb(picture: Picture) -> str | None:
    """The chunk because of which a viewer shows *picture* otherwise than as sRGB, or as its profile says, or None.

    cICP comes before a profile, a profile before sRGB, and sRGB before gAMA and cHRM, as the PNG specification says.
    """
    content = dict(picture.chunks)
    if b"cICP" in content:
        return None if content[b"cICP"] == _SRGB_CICP else "cICP"
    if picture.icc is not None or b"sRGB" in content:
        return None
    (gamma,) = struct.unpack(">I", content.get(b"gAMA", bytes(4)))
    if gamma and abs(gamma / _SRGB_GAMMA - 1) > _GAMMA_SLACK:
        return "gAMA"
    points = struct.unpack(">8I", content[b"cHRM"]) if b"cHRM" in content else _SRGB_POINTS
    return None if np.allclose(points, _SRGB_POINTS, rtol=0, atol=_POINT_SLACK) else "cHRM"


def fitting_profile(icc: bytes | None, grey: bool) -> tuple[bytes | None, tuple[str, ...]]:
    """The profile *icc* where it is one of a picture that is *grey* or in RGB, else None and a sentence."""
    if not icc:
        return None, ()
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return None, ("its colour profile is damaged and was left out",)
    if icc[16:20] == (b"GRAY" if grey else b"RGB "):
        return icc, ()
    return None, (_of_another_kind(icc, "grey" if grey else "RGB"),)


def _of_another_kind(icc: bytes, colours: str) -> str:
    space = _SPACES.get(icc[16:20], "unknown")
    return f"its colour profile is one of {space} colours and the picture is {colours}: the profile was left out"


def to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, None, tuple[str, ...]]:
    """A picture in CMYK, Lab or YCbCr as sRGB, through its profile *icc* where that fits; no profile; sentences."""
    mode = image.mode
    if mode == "YCbCr":
        return image.convert("RGB"), None, ()
    from PIL import ImageCms

    notes: tuple[str, ...] = ()
    srgb = ImageCms.createProfile("sRGB")
    source: ImageCms.ImageCmsProfile | None = None
    if mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif icc and icc[16:20] == b"CMYK":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        except (OSError, ImageCms.PyCMSError):
            notes = ("its CMYK profile is damaged and was left out",)
    elif icc:
        notes = (_of_another_kind(icc, "CMYK"),)
    if source is not None:
        try:
            # Relative, with black turned into black: what viewers and browsers show.
            turned = ImageCms.profileToProfile(
                image, source, srgb, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )  # fmt: skip
            if turned is not None:
                return turned, None, (f"its {'Lab' if mode == 'LAB' else mode} colours were converted to sRGB",)
        except ImageCms.PyCMSError:
            notes = (f"its {mode} profile cannot be used and was left out",)
    if mode == "LAB":
        raise ValueError("colours in Lab cannot be converted")
    assumed = "its CMYK colours were converted as those of ideal inks, since no profile says of which"
    return image.convert("RGB"), None, (*notes, assumed)
