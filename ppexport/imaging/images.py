"""Pictures in and out: PNG, JPEG and WebP files to arrays and back, with Pillow.

Reading: 8-bit levels stay uint8 (v stands for v / 255 exactly); 16-bit grey becomes float32 v / 65535. Of 16-bit
colour Pillow gives the upper eight bits. CMYK is converted to RGB without its profile. The orientation that EXIF names
is applied, and no EXIF is written, so that it is never applied twice. Of a JPEG with several pictures (depth or gain
maps, stereo) the first is read; animations are refused.

Writing: PNG; JPEG of quality 95 without chroma subsampling; lossless WebP, since lossy WebP always halves the colour
resolution. Files are whole or absent. A picture may replace the file that it was read from.

Kept: the colour profile, a PNG's colour chunks (`ppexport.imaging.colour_chunks`), and the dots per inch as they are,
so that
an enlarged picture is printed larger. WebP has no field for dots per inch.
"""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile

from ppexport.errors import ImageError, InputError
from ppexport.files import atomic_path, full_disk, make_temporary
from ppexport.imaging.alpha import bleed
from ppexport.imaging.colour_chunks import Chunks, beyond_srgb, read_chunks

Pixels: TypeAlias = NDArray[Any]
"""uint8, or float32 in [0, 1]."""

MAX_PIXELS = 89_478_485
"""Largest picture that is read unless the caller says otherwise: the size from which Pillow suspects an attack."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_CODECS = {"PNG": "zlib", "JPEG": "jpg", "WEBP": "webp"}
# libjpeg stops a little below the 65535 that the format could say.
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_OPTIONS: dict[str, dict[str, Any]] = {
    # Half the time of Pillow's level 6 for 2.4 % more bytes (19 enlarged photographs): nothing overlaps with writing.
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}
_EXIF_ORIENTATION = 0x0112


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
    chunks: Chunks = ()
    """The colour chunks of a PNG."""
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
        """`rgb` for a network: invisible pixels take the colours of visible ones near them
        (`ppexport.imaging.alpha`)."""
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
    path = Path(path)
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


def _read(path: Path, stream: IO[bytes], max_pixels: int) -> Picture:
    """Read an opened file; every failure becomes an ImageError."""
    header = stream.read(32)
    stream.seek(0)
    opener, name = _opener(path, header)
    _require_codec(path, name)
    try:
        image = opener(stream)
        _check_header(path, image, max_pixels)
        image.load()
        picture = replace(_picture(image, header), dpi=_dpi(image))
        if name == "PNG":
            picture = replace(picture, chunks=read_chunks(stream))
        return _upright(picture, _orientation(image))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path} does not fit into memory") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is larger than Pillow reads from this format, convert it to PNG: {error}") from None
    except Exception as error:
        # Damaged files make Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, KeyError ...
        raise ImageError(f"{path} {_damage(stream, header, error)}") from None


def _opener(path: Path, header: bytes) -> tuple[type[ImageFile.ImageFile], str]:
    """The Pillow reader for a file that begins with *header*, and the name of its format.

    Image.open would judge the size by Pillow's own limit, which is the process's and not the caller's, and would read
    further formats.
    """
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile, "PNG"
    if header.startswith(b"\xff\xd8\xff"):
        return JpegImageFile, "JPEG"
    if header.startswith(b"RIFF") and header[8:12] == b"WEBP":
        return WebPImageFile, "WEBP"
    raise ImageError(f"{path} is not a PNG, JPEG or WebP picture")


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


def _picture(image: ImageFile.ImageFile, header: bytes) -> Picture:
    """The arrays of a decoded *image*, not yet upright."""
    depth, colour_type = (header[24], header[25]) if image.format == "PNG" else (8, None)
    if image.mode == "P":
        flat = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "RGBA" and colour_type == 4:
        flat = image.convert("LA")  # 16-bit grey with alpha, which Pillow widens
    elif image.mode in ("1", "CMYK"):
        flat = image.convert("L" if image.mode == "1" else "RGB")
    else:
        flat = image
    icc = image.info.get("icc_profile")
    levels = np.asarray(flat)
    if flat.mode in ("LA", "RGBA"):
        return Picture(_three(levels[..., :-1]), np.ascontiguousarray(levels[..., -1]), flat.mode == "LA", icc)
    key = image.info.get("transparency")
    alpha = None if key is None or image.mode == "P" else _keyed(levels, key, depth)
    if flat.mode in ("L", "RGB"):
        return Picture(_three(levels), alpha, flat.mode == "L", icc)
    if flat.mode in ("I", "I;16", "I;16B"):
        return Picture(_three(levels.astype(np.float32) / np.float32(65535)), alpha, True, icc)
    raise ValueError(f"colour mode {flat.mode} is not supported")


def _three(levels: Pixels) -> Pixels:
    """(H, W), (H, W, 1) or (H, W, 3) as (H, W, 3); a view, since repeated channels need no memory."""
    if levels.ndim == 2:
        levels = levels[..., None]
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def _keyed(levels: Pixels, key: int | tuple[int, int, int], depth: int) -> NDArray[np.uint8]:
    """Alpha of a PNG that calls one colour *key* transparent, from *levels* (H, W) or (H, W, 3) as Pillow gives them.

    Pillow widens 1, 2 and 4 bits to eight and cuts 16-bit colour down to eight, but leaves the key as it was.
    """
    wanted = np.atleast_1d(np.asarray(key))
    if depth == 1:
        wanted = np.where(wanted > 0, 255, 0)
    elif depth < 8:
        wanted = wanted * (255 // (2**depth - 1))
    elif depth == 16 and levels.dtype == np.uint8:
        wanted = wanted >> 8
    hit = (np.atleast_3d(levels) == wanted).all(axis=2)
    return np.where(hit, 0, 255).astype(np.uint8)


def _dpi(image: ImageFile.ImageFile) -> tuple[float, float] | None:
    """The dots per inch (x, y) of *image*, None where there are none that every format can hold."""
    try:
        x, y = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if all(1 <= dots < 1 << 16 for dots in (x, y)) else None


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # A picture is not lost for broken metadata, which Pillow may meet with any exception.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(picture: Picture, orientation: int) -> Picture:
    """Turn and mirror *picture* as the EXIF *orientation* says."""
    turns = {3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}.get(orientation, 0)
    mirrored = orientation in (2, 4, 5, 7)

    def turn(plane: Pixels) -> Pixels:
        plane = np.rot90(plane, turns)
        return plane[:, ::-1] if mirrored else plane

    alpha = None if picture.alpha is None else turn(picture.alpha)
    dpi = picture.dpi[::-1] if picture.dpi is not None and turns % 2 else picture.dpi
    return replace(picture, rgb=turn(picture.rgb), alpha=alpha, dpi=dpi)


def check_output(path: Path, size: tuple[int, int], transparent: bool) -> None:
    """Raise ImageError unless a picture of *size* (H, W) can be written to *path*; meant for before a long run."""
    path = Path(path)
    name = _FORMATS.get(path.suffix.lower())
    if name is None:
        raise ImageError(f"{path}: the output's extension is one of {', '.join(_FORMATS)}")
    _require_codec(path, name)
    # Of a link the file it points to is written.
    path = Path(os.path.realpath(path))
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, a file name is needed")
    if os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK)):
        raise ImageError(f"{path} exists and is not a file that may be overwritten")
    if not os.path.isdir(path.parent):
        raise ImageError(f"{path} cannot be written: the folder {path.parent} does not exist")
    try:
        # As atomic_path will do; permission bits alone do not tell of a read-only file system or too long a name.
        handle, probe = make_temporary(path)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise ImageError(f"{path} cannot be written: {error.strerror}") from None
    if name == "JPEG" and transparent:
        raise ImageError(f"{path}: JPEG has no transparency and the picture has, use .png or .webp")
    limit = _MAX_SIDE.get(name)
    if limit is not None and max(size) > limit:
        raise ImageError(f"{path}: {name} sides end at {limit} pixels, the result has {size[1]}x{size[0]}: use .png")


def check_colours(path: Path, picture: Picture) -> None:
    """Raise ImageError where *picture* says of its colours what a file of *path*'s extension cannot hold."""
    name = _FORMATS[Path(path).suffix.lower()]
    chunk = None if name == "PNG" else beyond_srgb(picture.chunks, picture.icc is not None)
    if chunk is not None:
        raise ImageError(
            f"{path}: the picture's {chunk} chunk says that its colours are not sRGB, which {name} cannot hold: "
            "use .png, or convert the picture to sRGB first"
        )


def write_image(path: Path, picture: Picture) -> None:
    """Write *picture* (rgb uint8) to *path* in the format of its extension, atomically, with all that goes with it.

    A grey picture is written as one channel, its luma. Raises ImageError as `check_output` and `check_colours`, and if
    writing fails (a full disk, for example); the file that was there before is then untouched.
    """
    path = Path(path)
    if picture.rgb.dtype != np.uint8:
        raise ValueError(f"write_image takes uint8 pixels, not {picture.rgb.dtype}")
    check_output(path, picture.size, picture.transparent)
    check_colours(path, picture)
    name = _FORMATS[path.suffix.lower()]
    try:
        image = _to_pillow(picture, alpha=name != "JPEG")
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


def _to_pillow(picture: Picture, alpha: bool) -> Image.Image:
    """*picture* as L, LA, RGB or RGBA; its alpha only where *alpha* says that the format has one."""
    image = Image.fromarray(np.ascontiguousarray(picture.rgb))
    if picture.grey:
        image = image.convert("L")
    if alpha and picture.alpha is not None:
        image.putalpha(Image.fromarray(np.ascontiguousarray(picture.alpha)))
    return image
