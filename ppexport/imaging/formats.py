"""The files that pictures are read from and written to, one line for each format, and the options of writing them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module

from PIL import features
from PIL.ImageFile import ImageFile

from ppexport.errors import ImageError, imported, require
from ppexport.imaging.pixels import joined


@dataclass(frozen=True)
class Format:
    """What a kind of file is called, how it begins, and what it can hold."""

    name: str
    """What Pillow calls it."""
    title: str
    """What people call it."""
    suffixes: tuple[str, ...]
    """The extensions, the first of which is the usual one."""
    begins: bytes
    """A regular expression for its first 64 bytes."""
    reader: str
    """Module and class of its reader. Image.open would judge the size by Pillow's own limit, which is the process's and
    not the caller's, and would read further formats."""
    codec: str = ""
    """What Pillow must have been built with."""
    alpha: bool = False
    grey: bool = False
    """One channel of colour."""
    deep: bool = False
    """Colours of 16 bits."""
    holds: frozenset[str] = frozenset()
    """Of "profile", "exif", "xmp", "texts", "comment" and "dpi"."""
    max_side: int | None = None
    max_bytes: int | None = None
    """Of the pixels, uncompressed."""
    quality: int | None = None
    """The usual one, of 1 to 100; None where a quality cannot be chosen."""
    lossless: bool = False
    """Whether it can be asked to be. Pillow's AVIF cannot: at its best, colours are off by up to 3 levels."""
    exact: bool = False
    """Whether what is written is always what was given."""
    animated: bool = False

    def available(self) -> bool:
        """Whether this machine's Pillow, or the package beside it, was built with it."""
        return not self.codec or bool(features.check(self.codec))

    def open_reader(self) -> type[ImageFile]:
        """Pillow's class that reads it. Raises UnavailableError for HEIC where pillow-heif is missing."""
        module, _, name = self.reader.partition(":")
        if module == "pillow_heif":
            require(module, "heif")
            return getattr(imported(module, "heif"), name)  # type: ignore[no-any-return]
        return getattr(import_module(module), name)  # type: ignore[no-any-return]


def _brands(*names: bytes) -> bytes:
    """How an ISO file of one of these brands begins, which may stand behind a general one."""
    either = b"|".join(names)
    return rb".{4}ftyp(?:(?:%b)|(?:mif1|msf1|miaf).{4}(?:.{4})*?(?:%b))" % (either, either)


_ALL = frozenset({"profile", "exif", "xmp"})
FORMATS = (
    # libjpeg stops a little below the 65535 that the format could say.
    Format("PNG", "PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile", "zlib",
           alpha=True, grey=True, deep=True, holds=_ALL | {"texts", "dpi"}, exact=True, animated=True),
    Format("JPEG", "JPEG", (".jpg", ".jpeg", ".jfif"), rb"\xff\xd8\xff", "PIL.JpegImagePlugin:JpegImageFile", "jpg",
           grey=True, holds=_ALL | {"comment", "dpi"}, max_side=65_500, quality=95),
    Format("WEBP", "WebP", (".webp",), rb"RIFF.{4}WEBP", "PIL.WebPImagePlugin:WebPImageFile", "webp",
           alpha=True, holds=_ALL, max_side=16_383, quality=90, lossless=True, animated=True),
    Format("TIFF", "TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin:TiffImageFile", "libtiff",
           alpha=True, grey=True, deep=True, holds=_ALL | {"dpi"}, max_bytes=4_000_000_000, exact=True),
    Format("BMP", "BMP", (".bmp",), rb"BM", "PIL.BmpImagePlugin:BmpImageFile",
           grey=True, holds=frozenset({"dpi"}), max_bytes=4_000_000_000, exact=True),
    Format("PPM", "PPM", (".ppm", ".pgm", ".pnm"), rb"P[1-6]\s", "PIL.PpmImagePlugin:PpmImageFile",
           grey=True, deep=True, exact=True),
    Format("GIF", "GIF", (".gif",), rb"GIF8[79]a", "PIL.GifImagePlugin:GifImageFile",
           alpha=True, holds=frozenset({"comment"}), max_side=65_535, animated=True),
    Format("AVIF", "AVIF", (".avif", ".avifs"), _brands(b"avif", b"avis"), "PIL.AvifImagePlugin:AvifImageFile", "avif",
           alpha=True, holds=_ALL, max_side=32_768, quality=90, animated=True),
    Format("HEIF", "HEIC", (".heic", ".heif"), _brands(b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"),
           "pillow_heif:HeifImageFile",
           alpha=True, holds=_ALL, max_side=8_192 * 2, quality=90, lossless=True),
)  # fmt: skip
"""Every format that is read and written."""
BY_SUFFIX = {suffix: kind for kind in FORMATS for suffix in kind.suffixes}
TITLES = joined((kind.title for kind in FORMATS), "or")


@dataclass(frozen=True)
class WriteOptions:
    """How a picture is written; the defaults suit every format."""

    quality: int | None = None
    """1 to 100, of JPEG (95 unless told), AVIF and HEIC (90), and lossy WebP: WebP is lossless unless it is given."""
    lossless: bool = False
    """Whether the file is to hold exactly what was given. HEIC does not otherwise, nor does WebP with a quality."""
    strip_metadata: bool = False
    """Leave out EXIF, XMP, texts and dots per inch; colour profiles stay."""


def format_of(header: bytes) -> Format | None:
    """The format of a file that begins with these bytes, or None."""
    return next((kind for kind in FORMATS if re.match(kind.begins, header, re.DOTALL)), None)


def format_for(path: str, suffix: str) -> Format:
    """The format of an output *path* with this *suffix*. Raises ImageError for one that is not written."""
    kind = BY_SUFFIX.get(suffix.lower())
    if kind is None:
        usual = ", ".join(kind.suffixes[0] for kind in FORMATS)
        raise ImageError(f"{path}: the output's extension is one of {usual}")
    require_codec(path, kind)
    return kind


def require_codec(path: str, kind: Format) -> None:
    """Raise ImageError if this machine's Pillow was built without the format, UnavailableError without pillow-heif."""
    if kind.reader.startswith("pillow_heif"):
        require("pillow_heif", "heif")
    elif not kind.available():
        raise ImageError(f"{path}: this machine's Pillow was built without {kind.title}, use another format")


def without_quality(suffix: str) -> Format | None:
    """The format of this *suffix* if a quality means nothing to it."""
    kind = BY_SUFFIX.get(suffix.lower())
    return kind if kind is not None and kind.quality is None else None


def check_options(path: str, suffix: str, options: WriteOptions) -> Format:
    """The format of an output *path* with this *suffix*, into which *options* can be put.

    Raises ImageError for an extension that is not written, and for an option that the format has no use for.
    """
    kind = format_for(path, suffix)
    if options.quality is not None and kind.quality is None:
        able = [k.title for k in FORMATS if k.quality is not None]
        raise ImageError(f"{path}: {kind.title} has no quality, only {joined(able)} have: leave --quality out")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise ImageError(f"{path}: a quality is a number from 1 to 100, not {options.quality}")
    if options.lossless and not (kind.lossless or kind.exact):
        able = [k.title for k in FORMATS if k.lossless or k.exact]
        why = "is always lossy here" if kind.quality else "has 256 colours"
        raise ImageError(f"{path}: {kind.title} {why}, only {joined(able)} can be lossless: leave --lossless out")
    if options.lossless and options.quality is not None:
        raise ImageError(f"{path}: --lossless has no quality: leave out one of --lossless and --quality")
    return kind
