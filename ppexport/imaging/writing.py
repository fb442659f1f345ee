"""Writes a picture in the format of its extension, with all that belongs to it and the format holds.

PNG, TIFF, PPM and BMP lose no level, and the first three hold 16 bits; JPEG has quality 95 and AVIF and HEIC 90 unless
told, none of them with chroma subsampling; WebP is lossless unless a quality is given, since lossy WebP always halves
the colour resolution. Files are whole or absent. A picture may replace the file that it was read from.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ppexport.errors import ImageError, InputError, imported
from ppexport.files import atomic_path, check_writable, full_disk
from ppexport.imaging.colour import beyond_srgb
from ppexport.imaging.complaints import no_warnings
from ppexport.imaging.deep import LARGE, pillow_image, write_netpbm, write_png, write_tiff
from ppexport.imaging.formats import Format, WriteOptions, check_options, format_for
from ppexport.imaging.gif_writer import GifWriter
from ppexport.imaging.metadata import EXIF_PREFIX, true_exif, true_xmp
from ppexport.imaging.pixels import Metadata, Picture, Pixels, eight_bits, joined, opaque

_DEFAULT = WriteOptions()
# A segment of a JPEG holds 65,533 bytes, a part of them for its name.
_JPEG_EXIF, _JPEG_XMP = 65_527, 65_504


def output_depth(suffix: str, picture: Picture) -> int:
    """The bits of a sample, 8 or 16, in which *picture* is written to a file with this *suffix*.

    Raises ImageError for an extension that is not written.
    """
    return 16 if picture.depth == 16 and format_for(suffix, suffix).deep and picture.frames is None else 8


def check_output(path: Path, picture: Picture, scale: int = 1, options: WriteOptions = _DEFAULT) -> None:
    """Check, before a long run, that *picture*, enlarged by *scale*, can be written to *path*.

    Raises ImageError where it cannot: the extension, the folder or the file there, or a size, a transparency, colours
    or options that the format cannot hold.
    """
    kind = check_options(str(path), path.suffix, options)
    check_content(str(path), kind, picture, scale)
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


def check_content(path: str, kind: Format, picture: Picture, scale: int = 1) -> None:
    """Raise ImageError unless a file of this *kind* can hold *picture*, enlarged by *scale*."""
    if picture.frames is not None and not kind.animated:
        raise ImageError(
            f"{path}: the picture is an animation of {len(picture.frames)} frames and {kind.title} holds one: use "
            ".png, .webp, .gif or .avif, or --first-frame"
        )
    if not kind.alpha and picture.transparent:
        raise ImageError(f"{path}: {kind.title} has no transparency and the picture has, use .png or .webp")
    height, width = (side * scale for side in picture.size)
    if kind.max_side is not None and max(height, width) > kind.max_side:
        raise ImageError(
            f"{path}: {kind.name} sides end at {kind.max_side} pixels, the result has {width}x{height}: use .png"
        )
    channels = (1 if picture.grey else 3) + (picture.alpha is not None)
    size = height * width * channels * (2 if kind.deep and picture.depth == 16 else 1)
    if kind.max_bytes is not None and size > kind.max_bytes:
        raise ImageError(f"{path}: {kind.title} files end at 4 GB, the result has {size / 1e9:.1f} GB: use .png")
    chunk = None if kind.name == "PNG" else beyond_srgb(picture)
    if chunk is not None:
        raise ImageError(
            f"{path}: the picture's {chunk} chunk says that its colours are not sRGB, which {kind.name} cannot hold: "
            "use .png, or convert the picture to sRGB first"
        )


def write_image(
    target: Path | IO[bytes], picture: Picture, options: WriteOptions = _DEFAULT, *, suffix: str | None = None
) -> tuple[str, ...]:
    """Write *picture* (rgb uint8 or uint16) to *target* in the format of its extension, atomically, with what belongs
    to it. A stream gets the whole file at the end, in the format of *suffix*.

    A grey picture is written as one channel, its luma. Returns a sentence about what the format cannot hold, if there
    is any. Raises ImageError as `check_output` does, and if writing fails (a full disk, for example); the file that was
    there before is then untouched.
    """
    if picture.rgb.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"write_image takes uint8 or uint16 pixels, not {picture.rgb.dtype}")
    picture = replace(picture, frames=None)

    def write(stream: IO[bytes], kind: Format) -> tuple[str, ...]:
        kept, lost = kept_by(kind, picture, options)
        _write(stream, kind, picture, kept, options)
        return lost

    return whole(target, picture, options, suffix, write)


class _Undescribed(io.FileIO):
    """A file whose descriptor Pillow does not see: it would write there itself, and not notice that a disk is full."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def whole(
    target: Path | IO[bytes],
    picture: Picture,
    options: WriteOptions,
    suffix: str | None,
    write: Callable[[IO[bytes], Format], tuple[str, ...]],
) -> tuple[str, ...]:
    """Let *write* fill a new file that then becomes *target*, or a buffer that is then written to a stream.

    Returns what *write* does, behind the target's name. Raises ImageError as `write_image`.
    """
    name = str(target) if isinstance(target, Path) else "standard output"
    try:
        with no_warnings():
            if isinstance(target, Path):
                check_output(target, picture, options=options)
                kind = format_for(name, target.suffix)
                with atomic_path(target) as temporary, io.BufferedRandom(_Undescribed(temporary, "wb+")) as stream:
                    notes = write(stream, kind)
            else:
                kind = check_options(name, suffix or "", options)
                check_content(name, kind, picture)
                buffer = io.BytesIO()
                notes = write(buffer, kind)
                left = buffer.getbuffer()
                while left:
                    # With PYTHONUNBUFFERED standard output takes what fits, which is less where its reader leaves.
                    left = left[target.write(left) :]
                target.flush()
    except MemoryError:
        raise ImageError(f"{name} cannot be written: the picture does not fit into memory") from None
    except InputError as error:
        raise ImageError(str(error)) from None
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        full = full_disk(error) if isinstance(error, OSError) else ""
        raise ImageError(f"{name} cannot be written: {reason}{full}") from None
    return tuple(f"{name}: {note}" for note in notes)


def kept_by(kind: Format, picture: Picture, options: WriteOptions) -> tuple[Picture, tuple[str, ...]]:
    """*picture* with only what a file of this *kind* holds of what belongs to it, true of its size; what is lost."""
    lost = []
    holds, grey = kind.holds, picture.grey and kind.grey
    if kind.name == "TIFF" and picture.alpha is not None and picture.rgb.dtype == np.uint16:
        # Pillow and others read no grey of 16 bits with alpha.
        grey = False
    metadata, dpi, icc = picture.metadata, picture.dpi, picture.icc
    if options.strip_metadata:
        metadata, dpi = Metadata(), None
    exif = None if metadata.exif is None else true_exif(metadata.exif, picture.size)
    xmp = None if metadata.xmp is None else true_xmp(metadata.xmp, picture.size)
    jpeg = kind.name == "JPEG"
    # A profile of another colour space than the file's is invalid: grey in WebP, which is always RGB.
    if icc is not None and ("profile" not in holds or icc[16:20] != (b"GRAY" if grey else b"RGB ")):
        lost.append("grey colour profile" if "profile" in holds else "colour profile")
        icc = None
    if exif is not None and ("exif" not in holds or (jpeg and len(exif) > _JPEG_EXIF)):
        lost.append("EXIF data")
        exif = None
    if xmp is not None and ("xmp" not in holds or (jpeg and len(xmp) > _JPEG_XMP)):
        lost.append("XMP data")
        xmp = None
    texts = metadata.texts
    if "texts" not in holds:
        texts = tuple(pair for pair in texts if pair[0] == "Comment" and "comment" in holds)[:1]
        if len(texts) < len(metadata.texts):
            lost.append("texts")
    if dpi is not None and "dpi" not in holds:
        # EXIF says them as well, where there is any; 72 is what files say that mean nothing by it.
        if exif is None and dpi != (72, 72):
            lost.append("dots per inch")
        dpi = None
    if picture.depth == 16 and not kind.deep:
        lost.append("16 bits, of which 8 are kept")
    sentences = [f"{kind.title} cannot hold the picture's {joined(lost)}"] if lost else []
    if kind.name == "GIF":
        sentences.append("GIF holds 256 colours for each frame, and no half transparency")
    kept = replace(picture, grey=grey, icc=icc, dpi=dpi, metadata=Metadata(exif, xmp, texts))
    return kept, tuple(sentences)


def samples_of(picture: Picture, alpha: bool = True) -> NDArray[Any]:
    """(H, W, 1 to 4), uint8 or uint16: luma or colours, and alpha where there is any and *alpha* is wanted."""
    colours = luma(picture.rgb) if picture.grey else picture.rgb
    if picture.alpha is None or not alpha:
        return colours
    return np.concatenate([colours, as_levels(picture.alpha, colours.dtype)[..., None]], axis=2)


def luma(rgb: Pixels) -> Pixels:
    """(H, W, 1): the luma of BT.601 of levels, as Pillow rounds it; of three equal channels one of them."""
    if rgb.strides[2] == 0:
        return rgb[..., :1]
    if rgb.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))[..., None]
    weighted: Pixels = rgb @ np.array([0.299, 0.587, 0.114]) + 0.5
    return weighted.astype(rgb.dtype)[..., None]


def as_levels(values: Pixels, kind: np.dtype[Any]) -> Pixels:
    """*values*, levels or float32 in [0, 1], as levels of this *kind*."""
    if values.dtype == kind:
        return values
    if kind == np.uint8 and values.dtype == np.uint16:
        return eight_bits(values)
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * 257
    # Positive, so that the conversion's cut towards zero is the floor.
    levels: Pixels = np.clip(values, 0, 1) * opaque(kind) + 0.5
    return levels.astype(kind)


def _write(stream: IO[bytes], kind: Format, picture: Picture, kept: Picture, options: WriteOptions) -> None:
    if not kind.deep and picture.rgb.dtype == np.uint16:
        kept = replace(kept, rgb=eight_bits(kept.rgb))
    samples = samples_of(kept, kind.alpha)
    if kind.name == "TIFF":
        write_tiff(stream, samples, dpi=kept.dpi, icc=kept.icc, xmp=kept.metadata.xmp, exif=kept.metadata.exif)
    elif kind.name == "PPM":
        write_netpbm(stream, samples)
    elif kind.name == "PNG" and (samples.dtype == np.uint16 or samples.shape[0] * samples.shape[1] > LARGE):
        write_png(stream, samples, save_options(kind, kept, options))
    else:
        if samples.dtype == np.uint16:
            samples = eight_bits(samples)
        image = pillow_image(samples)
        save(stream, kind, image, save_options(kind, kept, options))


def save(stream: IO[bytes], kind: Format, image: Image.Image, options: dict[str, Any]) -> None:
    """Let Pillow, or the package for the format, write *image*."""
    if kind.name == "HEIF":
        imported("pillow_heif", "heif").from_pillow(image).save(stream, **options)
    elif kind.name == "GIF":
        with GifWriter(stream, image.size, 1, options.get("comment", b"")) as writer:
            writer.add(image, 0)
    else:
        image.save(stream, format=kind.name, **options)


def save_options(kind: Format, kept: Picture, options: WriteOptions) -> dict[str, Any]:
    """The options of Pillow's `save` for what is *kept* of a picture."""
    metadata, quality = kept.metadata, options.quality or kind.quality
    found: dict[str, Any] = {}
    if kind.name == "PNG":
        # Half the time of Pillow's level 6 for 2.4 % more bytes (19 enlarged photographs): nothing overlaps with it.
        found = {"compress_level": 4, "pnginfo": PngInfo()}
        for chunk, content in kept.chunks:
            found["pnginfo"].add(chunk, content)
        for key, text in metadata.texts:
            found["pnginfo"].add_text(key, text)
        if metadata.xmp is not None:
            found["pnginfo"].add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    elif kind.name == "JPEG":
        found = {"quality": quality, "subsampling": 0}
    elif kind.name == "WEBP":
        found = {"lossless": True, "exact": True} if options.quality is None else {"quality": quality, "exact": True}
    elif kind.name == "AVIF":
        found = {"quality": quality, "subsampling": "4:4:4"}
    elif kind.name == "HEIF":
        # The matrix that leaves RGB as it is: with any other, what is lossless is not the colours.
        exact = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
        found = exact if options.lossless else {"quality": quality, "chroma": 444}
    if kept.icc is not None:
        found["icc_profile"] = kept.icc
    if kept.dpi is not None:
        found["dpi"] = kept.dpi
    if metadata.exif is not None:
        found["exif"] = (EXIF_PREFIX if kind.name in ("JPEG", "HEIF") else b"") + metadata.exif
    if metadata.xmp is not None and kind.name != "PNG":
        found["xmp"] = metadata.xmp
    if "comment" in kind.holds and metadata.texts:
        found["comment"] = metadata.texts[0][1].encode()
    return found
