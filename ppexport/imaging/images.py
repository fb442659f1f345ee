"""Reads PNG, JPEG and WebP files into arrays and writes them back, with Pillow.

Reading: 8-bit levels stay uint8 (v stands for v / 255 exactly); 16-bit grey becomes float32 v / 65535. Of 16-bit
colour Pillow gives the upper eight bits. CMYK is converted to RGB without its profile. The orientation that EXIF names
is applied, and no EXIF is written, so that it is never applied twice. Of a JPEG with several pictures (depth or gain
maps, stereo) the first is read; animations are refused.

Writing: PNG; JPEG of quality 95 without chroma subsampling; lossless WebP, since lossy WebP always halves the colour
resolution. Files are whole or absent. A picture may replace the file that it was read from.

Kept: the colour profile, the dots per inch, so that an enlarged picture is printed larger (WebP has no field for
them), and what a PNG says of its colours beside a profile: the chunks cICP, sRGB, gAMA and cHRM. A picture of another
gamma looks darker or lighter without them. The results are levels of the same meaning as the input's, so the chunks
are copied as they are. JPEG and WebP have no such fields: they may hold what looks the same without the chunks, which
is sRGB.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile

from ppexport.device.picture import to_levels
from ppexport.errors import ImageError, InputError
from ppexport.files import atomic_path, check_writable, full_disk
from ppexport.imaging.alpha import bleed

Pixels: TypeAlias = NDArray[Any]
"""uint8, or float32 in [0, 1]."""
MAX_PIXELS = 89_478_485
"""Largest picture that is read unless the caller says otherwise: the size from which Pillow suspects an attack."""
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_CODECS = {"PNG": "zlib", "JPEG": "jpg", "WEBP": "webp"}
_READERS: dict[str, tuple[re.Pattern[bytes], type[ImageFile.ImageFile]]] = {
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "WEBP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
}
"""How a file of each format begins, and Pillow's reader of it. Image.open would judge the size by Pillow's own limit,
which is the process's and not the caller's, and would read further formats."""
# libjpeg stops a little below the 65535 that the format could say.
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_OPTIONS: dict[str, dict[str, Any]] = {
    # Half the time of Pillow's level 6 for 2.4 % more bytes (19 enlarged photographs): nothing overlaps with writing.
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}
_CHUNK_LENGTHS = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
_SRGB_CICP = bytes((1, 13, 0, 1))
_SRGB_GAMMA = 45_455
_SRGB_POINTS = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
# What libpng takes as the same: 5 % of gamma, 0.01 of a chromaticity.
_GAMMA_SLACK = 0.05
_POINT_SLACK = 1_000


@dataclass(frozen=True)
class Picture:
    """A picture as arrays, upright."""

    rgb: Pixels
    """(H, W, 3), uint8 or float32 in [0, 1]; three equal channels if grey. May be a read-only view."""
    alpha: NDArray[np.uint8] | None = None
    """(H, W), 255 = opaque."""
    grey: bool = False
    """Whether the file had one channel of colour, and the file written will have."""
    icc: bytes | None = None
    """The colour profile."""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    """The colour chunks of a PNG: (kind, content) in the order of the file."""
    dpi: tuple[float, float] | None = None
    """Dots per inch, (x, y)."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def transparent(self) -> bool:
        """Whether any pixel is not opaque."""
        return self.alpha is not None and bool((self.alpha < 255).any())

    @property
    def bled(self) -> Pixels:
        """`rgb` for a network: invisible pixels take the colours of visible ones near them (`imaging.alpha`)."""
        return self.rgb if self.alpha is None else bleed(self.rgb, self.alpha)


def pictures_in(folder: Path) -> list[Path]:
    """The PNG, JPEG and WebP files of *folder*, by name. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _FORMATS and not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder} holds no PNG, JPEG or WebP pictures")
    return found


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read the PNG, JPEG or WebP file *path*, whatever its extension.

    Raises ImageError if it is missing, empty, of another format, truncated, damaged, animated, or says in its header
    that it has more than *max_pixels* pixels (nothing is decoded then).
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a plain file")
        if status.st_size == 0:
            raise ImageError(f"{path} is empty")
        # Pillow's warnings about odd metadata would be lines on stderr that no user can act on.
        with open(path, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path, stream, max_pixels)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None


def read_levels(path: Path) -> NDArray[np.uint8]:
    """The picture *path* as 8-bit RGB (H, W, 3), a transparent one as a network sees it. Raises as `read_image`."""
    rgb = read_image(path).bled
    return np.ascontiguousarray(rgb if rgb.dtype == np.uint8 else to_levels(rgb))


def _read(path: Path, stream: IO[bytes], max_pixels: int) -> Picture:
    """Read an opened file; every failure becomes an ImageError."""
    header = stream.read(32)
    stream.seek(0)
    name = next((name for name, (magic, _) in _READERS.items() if magic.match(header)), None)
    if name is None:
        raise ImageError(f"{path} is not a PNG, JPEG or WebP picture")
    _require_codec(path, name)
    try:
        image = _READERS[name][1](stream)
        _check_header(path, image, max_pixels)
        image.load()
        dpi = _make_upright(image)
        chunks = _read_chunks(stream) if name == "PNG" else ()
        rgb, alpha, grey = _arrays(image, header)
        return Picture(rgb, alpha, grey, image.info.get("icc_profile"), chunks, dpi)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path} does not fit into memory") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is larger than Pillow reads from this format, convert it to PNG: {error}") from None
    except Exception as error:
        # Damaged files make Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, KeyError ...
        raise ImageError(f"{path} {_damage(stream, header, error)}") from None


def _require_codec(path: Path, name: str) -> None:
    """Raise ImageError if this machine's Pillow was built without the format *name*."""
    if not features.check(_CODECS[name]):
        raise ImageError(f"{path}: this machine's Pillow was built without {name}, use another format")


def _check_header(path: Path, image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Raise ImageError for a size or a number of frames that is not read."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{path} has no pixels: its header says {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{path} has {width}x{height} = {width * height:,} pixels, more than the limit of {max_pixels:,}: "
            f"if you trust it, pass --max-pixels {width * height}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{path} is an animation of {frames} frames: save one frame as a PNG and use that")


def _damage(stream: IO[bytes], header: bytes, error: Exception) -> str:
    """What is wrong with a file that Pillow failed to read with *error*."""
    detail = str(error) or type(error).__name__
    length = stream.seek(0, os.SEEK_END)
    # Pillow does not tell a WebP file that is cut off from a damaged one; its first field is its length.
    cut_webp = header.startswith(b"RIFF") and int.from_bytes(header[4:8], "little") + 8 > length
    if cut_webp or "truncated" in detail.lower():
        return f"is truncated: it ends after {length} bytes, before the picture is complete"
    # Pillow's limits against texts and profiles that unpack to gigabytes.
    if any(words in detail.lower() for words in ("decompressed data too large", "text chunks")):
        return f"has metadata of unreasonable size, save it again without: {detail}"
    return f"is damaged and cannot be decoded: {detail}"


def _make_upright(image: ImageFile.ImageFile) -> tuple[float, float] | None:
    """Turn and mirror *image* in place as EXIF says; the dots per inch (x, y) that it has then.

    They are None where there are none that every format can hold.
    """
    sideways = False
    try:
        sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        # A picture is not lost for broken metadata, which Pillow may meet with any exception.
        pass
    try:
        x, y = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not all(1 <= dots < 1 << 16 for dots in (x, y)):
        return None
    return (y, x) if sideways else (x, y)


def _read_chunks(stream: IO[bytes]) -> tuple[tuple[bytes, bytes], ...]:
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


def _arrays(image: Image.Image, header: bytes) -> tuple[Pixels, NDArray[np.uint8] | None, bool]:
    """The colours (H, W, 3) and the alpha (H, W) of a decoded *image*, and whether it is grey."""
    depth, colour_type = (header[24], header[25]) if image.format == "PNG" else (8, None)
    flat = image
    if image.mode == "P":
        flat = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "RGBA" and colour_type == 4:
        flat = image.convert("LA")  # 16-bit grey with alpha, which Pillow widens
    elif image.mode in ("1", "CMYK"):
        flat = image.convert("L" if image.mode == "1" else "RGB")
    if flat.mode not in ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16B"):
        raise ValueError(f"colour mode {flat.mode} is not supported")
    levels, alpha, key = np.atleast_3d(np.asarray(flat)), None, image.info.get("transparency")
    if flat.mode in ("LA", "RGBA"):
        levels, alpha = levels[..., :-1], np.ascontiguousarray(levels[..., -1])
    elif key is not None and image.mode != "P":
        alpha = _keyed(levels, key, depth)
    if flat.mode.startswith("I"):
        levels = levels.astype(np.float32) / np.float32(65535)
    # A view where the picture is grey, since repeated channels need no memory.
    return np.broadcast_to(levels, (*levels.shape[:2], 3)), alpha, flat.mode not in ("RGB", "RGBA")


def _keyed(levels: Pixels, key: int | tuple[int, int, int], depth: int) -> NDArray[np.uint8]:
    """Alpha of a PNG that calls one colour *key* transparent, from *levels* (H, W, 1 or 3) as Pillow gives them.

    Pillow widens 1, 2 and 4 bits to eight and cuts 16-bit colour down to eight, but leaves the key as it was.
    """
    wanted = np.atleast_1d(np.asarray(key))
    if depth == 1:
        wanted = np.where(wanted > 0, 255, 0)
    elif depth < 8:
        wanted = wanted * (255 // (2**depth - 1))
    elif depth == 16 and levels.dtype == np.uint8:
        wanted = wanted >> 8
    return np.where((levels == wanted).all(axis=2), 0, 255).astype(np.uint8)


def check_output(path: Path, picture: Picture, scale: int = 1) -> None:
    """Check, before a long run, that *picture*, enlarged by *scale*, can be written to *path*.

    Raises ImageError where it cannot: the extension, the folder or the file there, or a size, a transparency or colours
    that the format cannot hold.
    """
    name = _FORMATS.get(path.suffix.lower())
    if name is None:
        raise ImageError(f"{path}: the output's extension is one of {', '.join(_FORMATS)}")
    _require_codec(path, name)
    if name == "JPEG" and picture.transparent:
        raise ImageError(f"{path}: JPEG has no transparency and the picture has, use .png or .webp")
    height, width = (side * scale for side in picture.size)
    limit = _MAX_SIDE.get(name)
    if limit is not None and max(height, width) > limit:
        raise ImageError(f"{path}: {name} sides end at {limit} pixels, the result has {width}x{height}: use .png")
    chunk = None if name == "PNG" else beyond_srgb(picture)
    if chunk is not None:
        raise ImageError(
            f"{path}: the picture's {chunk} chunk says that its colours are not sRGB, which {name} cannot hold: "
            "use .png, or convert the picture to sRGB first"
        )
    # Of a link the file it points to is written.
    path = Path(os.path.realpath(path))
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, a file name is needed")
    if os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK)):
        raise ImageError(f"{path} exists and is not a file that may be overwritten")
    if not os.path.isdir(path.parent):
        raise ImageError(f"{path} cannot be written: the folder {path.parent} does not exist")
    try:
        # Permission bits alone do not tell of a read-only file system or too long a name.
        check_writable(path)
    except InputError as error:
        raise ImageError(str(error)) from None


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


def write_image(path: Path, picture: Picture) -> None:
    """Write *picture* (rgb uint8) to *path* in the format of its extension, atomically, with all that goes with it.

    A grey picture is written as one channel, its luma. Raises ImageError as `check_output` does, and if writing fails
    (a full disk, for example); the file that was there before is then untouched.
    """
    if picture.rgb.dtype != np.uint8:
        raise ValueError(f"write_image takes uint8 pixels, not {picture.rgb.dtype}")
    check_output(path, picture)
    name = _FORMATS[path.suffix.lower()]
    try:
        image = Image.fromarray(np.ascontiguousarray(picture.rgb))
        if picture.grey:
            image = image.convert("L")
        if picture.alpha is not None and name != "JPEG":
            image.putalpha(Image.fromarray(np.ascontiguousarray(picture.alpha)))
        options = dict(_OPTIONS[name])
        # A profile of another colour space than the file's is invalid: CMYK, or grey in WebP, which is always RGB.
        space = b"GRAY" if picture.grey and name != "WEBP" else b"RGB "
        if picture.icc is not None and picture.icc[16:20] == space:
            options["icc_profile"] = picture.icc
        if picture.dpi is not None and name != "WEBP":
            options["dpi"] = picture.dpi
        if name == "PNG":
            options["pnginfo"] = PngInfo()
            for kind, content in picture.chunks:
                options["pnginfo"].add(kind, content)
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            image.save(stream, format=name, **options)
    except MemoryError:
        raise ImageError(f"{path} cannot be written: the picture does not fit into memory") from None
    except InputError as error:
        raise ImageError(str(error)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        full = full_disk(error) if isinstance(error, OSError) else ""
        raise ImageError(f"{path} cannot be written: {reason}{full}") from None
