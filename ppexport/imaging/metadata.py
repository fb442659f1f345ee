"""EXIF, XMP and texts: read from a file, and made true of the upright, enlarged picture.

EXIF is changed where it lies, byte for byte, and not taken apart and written anew: the notes of camera makers hold
offsets that would no longer be right.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ImageFile import ImageFile

from ppexport.imaging.pixels import Metadata

EXIF_PREFIX = b"Exif\0\0"
_XMP_KEYWORD = "XML:com.adobe.xmp"
_ORIENTATION, _WIDTH, _HEIGHT, _EXIF_IFD, _GPS_IFD = 0x0112, 0x0100, 0x0101, 0x8769, 0x8825
_EXIF_WIDTH, _EXIF_HEIGHT = 0xA002, 0xA003
_THUMBNAIL, _THUMBNAIL_LENGTH = 0x0201, 0x0202
_SHORT, _LONG = 3, 4
# Of a TIFF file, whose own structure EXIF borrows: who made it, with what, when; not how its pixels lie.
_DESCRIBING = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F)
_DAMAGED = "its EXIF data is damaged and was left out"


def read_metadata(image: ImageFile) -> tuple[Metadata, tuple[str, ...]]:
    """What the opened and decoded *image* says beside its colours, and sentences about what cannot be kept."""
    exif: bytes | None = None
    notes: tuple[str, ...] = ()
    try:
        exif = _tiff_exif(image) if image.format == "TIFF" else _exif_blob(image)
        if exif:
            # Whether it can be made true later.
            true_exif(exif, (1, 1))
    except MemoryError:
        raise
    except Exception:
        exif, notes = None, (_DAMAGED,)
    return Metadata(exif or None, _xmp(image), tuple(_texts(image))), notes


def _exif_blob(image: ImageFile) -> bytes | None:
    found: Any = image.info.get("exif")
    if found is None and (raw := image.info.get("Raw profile type exif")):
        # As ImageMagick writes it into the texts of a PNG: a name, a length, and lines of hexadecimal digits.
        found = bytes.fromhex("".join(raw.split("\n")[3:]))
    if not isinstance(found, bytes):
        return None
    blob: bytes = found
    while blob.startswith(EXIF_PREFIX):
        blob = blob[len(EXIF_PREFIX) :]
    return blob


def _tiff_exif(image: ImageFile) -> bytes | None:
    source, kept = image.getexif(), Image.Exif()
    for tag in _DESCRIBING:
        if tag in source:
            kept[tag] = source[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        if found := source.get_ifd(tag):
            kept[tag] = dict(found)
    return kept.tobytes()[len(EXIF_PREFIX) :] if len(kept) else None


def _xmp(image: ImageFile) -> bytes | None:
    found: Any = image.info.get("xmp") or image.info.get(_XMP_KEYWORD)
    if isinstance(found, str):
        found = found.encode()
    return found if isinstance(found, bytes) and found else None


def _texts(image: ImageFile) -> list[tuple[str, str]]:
    comment: Any = image.info.get("comment")
    if comment:
        return [("Comment", comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment))]
    texts: dict[str, str] = getattr(image, "text", {}) if image.format == "PNG" else {}
    # What other fields hold would contradict them once these have changed.
    return [
        (key, str(text)) for key, text in texts.items() if key != _XMP_KEYWORD and not key.startswith("Raw profile")
    ]


@dataclass
class _Tiff:
    """The structure that EXIF has, in a buffer that is changed."""

    data: bytearray
    order: str

    def entries(self, offset: int) -> tuple[dict[int, int], int]:
        """{tag: where its entry of 12 bytes is} of the directory at *offset*, and where the next one's offset is."""
        (count,) = struct.unpack_from(f"{self.order}H", self.data, offset)
        end = offset + 2 + 12 * count
        if end > len(self.data):
            raise ValueError("a directory reaches past the end")
        return {struct.unpack_from(f"{self.order}H", self.data, at)[0]: at for at in range(offset + 2, end, 12)}, end

    def value(self, entry: int) -> int:
        """The number in an *entry* that has one."""
        kind, count = struct.unpack_from(f"{self.order}HL", self.data, entry + 2)
        if count != 1 or kind not in (_SHORT, _LONG):
            raise ValueError("not one number")
        found: int = struct.unpack_from(self.order + ("H" if kind == _SHORT else "L"), self.data, entry + 8)[0]
        return found

    def put(self, entry: int, value: int, kind: int = _LONG) -> None:
        """Let an *entry* be one number."""
        code = "H2x" if kind == _SHORT else "L"
        struct.pack_into(f"{self.order}HL{code}", self.data, entry + 2, kind, 1, value)

    def wipe(self, offset: int, length: int) -> None:
        """Zeros over a part, which is cut off where it is the last one."""
        if offset < 8 or offset + length > len(self.data):
            return
        self.data[offset : offset + length] = bytes(length)
        if offset + length == len(self.data):
            del self.data[offset:]


def true_exif(exif: bytes, size: tuple[int, int]) -> bytes:
    """*exif* of an upright picture of *size* (H, W), without the small picture that cameras put into it.

    Raises ValueError or struct.error for data that is no EXIF.
    """
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("no EXIF")
    tiff = _Tiff(bytearray(exif), "<" if exif[:2] == b"II" else ">")
    (first,) = struct.unpack_from(f"{tiff.order}L", tiff.data, 4)
    entries, end = tiff.entries(first)
    if _ORIENTATION in entries:
        tiff.put(entries[_ORIENTATION], 1, _SHORT)
    for tag, side in ((_WIDTH, size[1]), (_HEIGHT, size[0])):
        if tag in entries:
            tiff.put(entries[tag], side)
    if _EXIF_IFD in entries:
        inner, _ = tiff.entries(tiff.value(entries[_EXIF_IFD]))
        for tag, side in ((_EXIF_WIDTH, size[1]), (_EXIF_HEIGHT, size[0])):
            if tag in inner:
                tiff.put(inner[tag], side)
    (second,) = struct.unpack_from(f"{tiff.order}L", tiff.data, end)
    if second:
        struct.pack_into(f"{tiff.order}L", tiff.data, end, 0)
        # A broken description of the small picture is no longer reached.
        with suppress(ValueError, struct.error):
            small, small_end = tiff.entries(second)
            places = [tiff.value(small[tag]) for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH) if tag in small]
            tiff.wipe(second, small_end + 4 - second)
            if len(places) == 2:
                tiff.wipe(*places)
    return bytes(tiff.data)


def true_xmp(xmp: bytes, size: tuple[int, int]) -> bytes:
    """*xmp* of an upright picture of *size* (H, W), without small pictures of it."""
    height, width = size
    values = {
        rb"tiff:Orientation": b"1",
        rb"(?:tiff:ImageWidth|exif:PixelXDimension)": b"%d" % width,
        rb"(?:tiff:ImageLength|tiff:ImageHeight|exif:PixelYDimension)": b"%d" % height,
    }
    for name, value in values.items():
        # As an attribute, and as an element of its own.
        xmp = re.sub(rb"(%b\s*=\s*)([\"'])\s*\d+\s*\2" % name, rb"\g<1>\g<2>%b\g<2>" % value, xmp)
        xmp = re.sub(rb"(<(%b)>)\s*\d+\s*(</\2>)" % name, rb"\g<1>%b\g<3>" % value, xmp)
    return re.sub(rb"<(xmp:Thumbnails|xap:Thumbnails)\b[^>]*>.*?</\1>", b"", xmp, flags=re.DOTALL)
