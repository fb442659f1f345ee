"""Reads pictures into arrays; `imaging.writing` writes them back. Pillow reads every format but HEIC.

Reading: 8-bit levels stay uint8 (v stands for v / 255 exactly), deeper ones become float32, v / 65535. The orientation
that EXIF names is applied. CMYK and Lab are converted to sRGB through their profiles. Of a JPEG or HEIC with several
pictures (depth or gain maps, stereo, bursts) the first or main one is read; of an animation its first frame, with the
others at hand.

Kept: the colour profile, the dots per inch, so that an enlarged picture is printed larger, EXIF, XMP and texts, and
what a PNG says of its colours beside a profile: the chunks cICP, sRGB, gAMA and cHRM. A picture of another gamma looks
darker or lighter without them. The results are levels of the same meaning as the input's, so the chunks are copied as
they are. Other formats have no such fields: they may hold what looks the same without the chunks, which is sRGB.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from importlib.resources import files
from operator import add
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from ppexport.device.picture import to_levels
from ppexport.errors import ImageError, InputError, UnavailableError
from ppexport.imaging.animations import Frames
from ppexport.imaging.colour import beyond_srgb, fitting_profile, read_chunks
from ppexport.imaging.complaints import UnreadError, damage, no_warnings, truncated
from ppexport.imaging.decoding import decode, sideways
from ppexport.imaging.formats import (
    BY_SUFFIX,
    TITLES,
    Format,
    WriteOptions,
    check_options,
    format_of,
    require_codec,
)
from ppexport.imaging.metadata import read_metadata
from ppexport.imaging.pixels import Metadata, Picture, Pixels
from ppexport.imaging.writing import check_output, output_depth, write_image

__all__ = [
    "MAX_PIXELS", "Header", "Metadata", "Picture", "Pixels", "WriteOptions", "beyond_srgb", "check_options",
    "check_output", "is_picture", "output_depth", "peek", "pictures_in", "read_image", "read_levels", "write_image",
]  # fmt: skip

Found = TypeVar("Found")
MAX_PIXELS = 89_478_485
"""Largest picture that is read unless the caller says otherwise: the size from which Pillow suspects an attack."""
# A TIFF may lie in tiles that are larger than it is.
_MAX_TILE = 1 << 26
# MP4 and MOV, Matroska and WebM, AVI.
_VIDEO = re.compile(rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL)


def is_picture(path: Path) -> bool:
    """Whether the extension of *path* is one of a picture that can be read, and it is not hidden."""
    return path.suffix.lower() in BY_SUFFIX and not path.name.startswith(".")


def photo_folder() -> Path:
    """The bundled free photographs, in a checkout and in an installed copy."""
    return Path(str(files("ppexport.calibration"))) / "images"


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of *folder*, by name. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if is_picture(path))
    if not found:
        raise InputError(f"{folder} holds no {TITLES} pictures")
    return found


class Header(NamedTuple):
    """What the beginning of a picture file says."""

    size: tuple[int, int]
    """(H, W) of the upright picture."""
    frames: int
    """More than 1 for an animation."""
    alpha: bool
    """Whether it has a transparency of some kind."""


def peek(source: Path | IO[bytes], *, max_pixels: int = MAX_PIXELS, first_frame: bool = False) -> Header:
    """What the header of *source* says; nothing is decoded. Arguments and errors are those of `read_image`."""

    def header(name: str, image: ImageFile, kind: Format, stream: IO[bytes], frames: int) -> Header:
        width, height = image.size
        # Pillow would decode a PNG to look behind its pixels for EXIF; a TIFF's size is turned already.
        if image.format not in ("TIFF", "HEIF") and sideways(image):
            width, height = height, width
        alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        return Header((height, width), frames, alpha)

    return _opened(source, max_pixels, first_frame, header)


def read_image(source: Path | IO[bytes], *, max_pixels: int = MAX_PIXELS, first_frame: bool = False) -> Picture:
    """Read the picture file *source*, whatever its extension, or a stream of one, in which one can seek.

    With *first_frame* an animation, or a TIFF of several pages, is taken as the still picture that it begins with.
    Raises ImageError if it is missing, empty, of another format, truncated, damaged, a TIFF of several pages, or says
    in its header that it has more than *max_pixels* pixels (nothing is decoded then), UnavailableError for HEIC without
    pillow-heif.
    """

    def picture(name: str, image: ImageFile, kind: Format, stream: IO[bytes], frames: int) -> Picture:
        decoded = decode(image, stream)
        icc, profile_notes = fitting_profile(decoded.icc, decoded.grey)
        metadata, notes = read_metadata(image)
        animation, depth = None, decoded.depth
        if frames > 1:
            animation, depth = Frames(name, source, kind, image, frames), 8
            if decoded.depth > 8:
                notes += ("the frames of an animation are read with 8 bits",)
        return Picture(
            decoded.rgb, decoded.alpha, decoded.grey, icc, read_chunks(stream) if kind.name == "PNG" else (),
            _dots(image, decoded.sideways), depth, metadata, decoded.notes + profile_notes + notes, animation,
        )  # fmt: skip

    return _opened(source, max_pixels, first_frame, picture)


def read_levels(path: Path) -> NDArray[np.uint8]:
    """The picture *path* as 8-bit RGB (H, W, 3), a transparent one as a network sees it.

    Raises as `read_image`, and ImageError for an animation.
    """
    picture = read_image(path)
    if picture.frames is not None:
        raise ImageError(f"{path} is an animation of {len(picture.frames)} frames: save one as a PNG and use that")
    rgb = picture.bled
    return np.ascontiguousarray(rgb if rgb.dtype == np.uint8 else to_levels(rgb))


def _opened(
    source: Path | IO[bytes],
    max_pixels: int,
    first_frame: bool,
    take: Callable[[str, ImageFile, Format, IO[bytes], int], Found],
) -> Found:
    """What *take* gives for the name, opened image, format, stream and number of frames of *source*.

    Every failure becomes an ImageError.
    """
    if not isinstance(source, Path):
        source.seek(0)
        return _understood("standard input", source, max_pixels, first_frame, take)
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{source} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{source} is not a plain file")
        with open(source, "rb") as stream:
            return _understood(str(source), stream, max_pixels, first_frame, take)
    except FileNotFoundError:
        raise ImageError(f"{source} does not exist") from None
    except OSError as error:
        raise ImageError(f"{source} cannot be read: {error.strerror}") from None


def _understood(
    name: str,
    stream: IO[bytes],
    max_pixels: int,
    first_frame: bool,
    take: Callable[[str, ImageFile, Format, IO[bytes], int], Found],
) -> Found:
    header = stream.read(64)
    if not header:
        raise ImageError(f"{name} is empty")
    kind = format_of(header)
    if kind is None:
        way = ": if it is a video, name it and the video to write, without --out" if _VIDEO.match(header) else ""
        raise ImageError(f"{name} is not a {TITLES} picture{way}")
    require_codec(name, kind)
    stream.seek(0)
    try:
        with no_warnings():
            image = kind.open_reader()(stream)
            _check_header(name, image, max_pixels, stream.seek(0, os.SEEK_END))
            frames = 1 if first_frame else _count(image)
            if frames > 1 and image.format == "TIFF":
                raise ImageError(f"{name} is a TIFF of several pages: --first-frame takes the first of them")
            return take(name, image, kind, stream, frames)
    except (ImageError, UnavailableError):
        raise
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is larger than Pillow reads from this format, convert it to PNG: {error}") from None
    except UnreadError as error:
        raise ImageError(f"{name} {error}") from None
    except Exception as error:
        # Damaged files make Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, KeyError ...
        raise ImageError(f"{name} {damage(stream, header, error)}") from None


def _check_header(name: str, image: ImageFile, max_pixels: int, length: int) -> None:
    """Raise ImageError for a size that is not read, and a TIFF whose pixels would lie beyond the file's *length*."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: its header says {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} = {width * height:,} pixels, more than the limit of {max_pixels:,}: "
            f"if you trust it, pass --max-pixels {width * height}"
        )
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        tile = tags.get(322, 0), tags.get(323, 0)
        if tile[0] * tile[1] > max(max_pixels, _MAX_TILE):
            raise ImageError(f"{name} says that its tiles have {tile[0]}x{tile[1]} pixels, which is not read")
        # The decoder would say it on stderr.
        for places, lengths in ((273, 279), (324, 325)):
            if any(map(length.__lt__, map(add, tags.get(places, ()), tags.get(lengths, ())))):
                raise ImageError(f"{name} {truncated(length)}")


def _count(image: ImageFile) -> int:
    """How many pictures a file has that are shown one after the other; of a TIFF 2 stands for more."""
    if image.format == "TIFF":
        return 2 if getattr(image, "is_animated", False) else 1
    if image.format in ("JPEG", "HEIF"):
        return 1
    # The picture of a PNG for viewers without animations is not one of its frames.
    return int(getattr(image, "n_frames", 1)) - bool(getattr(image, "default_image", False))


def _dots(image: ImageFile, sideways: bool) -> tuple[float, float] | None:
    """The dots per inch (x, y) of an upright *image*, None where there are none that every format can hold."""
    if image.format == "TIFF" and 282 not in image.tag_v2:  # type: ignore[attr-defined]
        return None
    try:
        x, y = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not all(1 <= dots < 1 << 16 for dots in (x, y)):
        return None
    return (y, x) if sideways else (x, y)
