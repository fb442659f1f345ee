"""From a file that Pillow has opened to arrays: every kind of pixel, with the bits that it has.

Pillow has no 16-bit colour: it gives the upper byte of every sample. Its decoders are told here to take the other one
as well, by the name that they have for samples in the other byte order, so that two passes give all 16 bits of what
they unpack, whatever the compression, the predictor, the strips or the interlacing:

    file             0x12 0x34      a sample of a PNG, the upper byte first
    RGB;16B          0x12           what Pillow takes
    RGB;16L               0x34      what it takes where the order is said to be the other
    here             0x1234
"""

from __future__ import annotations

import io
import sys
from itertools import chain
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from ppexport.errors import imported
from ppexport.imaging.colour import to_rgb
from ppexport.imaging.complaints import UnreadError
from ppexport.imaging.pixels import DEEP, Pixels

_BLOCK = 1 << 22
"""Pixels that NumPy takes of Pillow at a time."""
_GREY_MODES = ("L", "LA", "I", "I;16", "I;16B", "I;16L")


class Decoded(NamedTuple):
    """A decoded picture; the fields are those of a `Picture`."""

    rgb: Pixels
    alpha: Pixels | None
    grey: bool
    icc: bytes | None
    depth: int
    notes: tuple[str, ...]
    sideways: bool = False
    """Whether the file has its width where the upright picture has its height."""


def decode(image: ImageFile, stream: IO[bytes]) -> Decoded:
    """The arrays of an opened *image*, upright, decoded from *stream*. What fails raises nearly anything."""
    bits = _sample_bits(image, stream)
    if bits > 8 and image.format != "AVIF" and image.mode != "CMYK":
        return _decode_deep(image, stream, bits)
    _, sideways = _load(image)
    notes: tuple[str, ...] = ()
    if bits > 8:
        notes = (f"its {bits} bits for each sample are read as 8, since Pillow gives no more of {image.format}",)
    return decode_loaded(image, bits, notes)._replace(sideways=sideways)


def decode_loaded(image: ImageFile, bits: int = 8, notes: tuple[str, ...] = ()) -> Decoded:
    """The arrays, upright, of a loaded *image* of 8 bits, such as a frame of an animation."""
    lies = _orientation(image)
    icc, alpha, key = image.info.get("icc_profile"), None, image.info.get("transparency")
    flat: Image.Image = image
    if image.mode == "P":
        flat = image.convert("RGBA" if key is not None else "RGB")
    elif image.mode == "PA":
        flat = image.convert("RGBA")
    elif image.mode == "1":
        flat = image.convert("L")
    elif image.mode in ("CMYK", "LAB", "YCbCr"):
        flat, icc, more = to_rgb(image, icc)
        notes += more
    if flat.mode == "RGBX":
        flat = flat.convert("RGB")
    if flat.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnreadError(f"has pixels of a kind that is not read (Pillow calls it {flat.mode}): convert it to PNG")
    levels = _turned(_pixels(flat), lies)
    if flat.mode in ("LA", "RGBA"):
        levels, alpha = levels[..., :-1], np.ascontiguousarray(levels[..., -1])
    elif key is not None and image.mode in ("1", "L", "RGB"):
        alpha = _keyed(levels, key, bits)
    return Decoded(_three(levels), alpha, flat.mode in ("L", "LA"), icc, 8, notes)


def _orientation(image: Image.Image) -> int:
    """How EXIF says that *image* lies: 1 to 8, of which those above 4 exchange its sides."""
    try:
        found = image.getexif().get(0x0112)
    except MemoryError:
        raise
    except Exception:
        # A picture is not lost for broken metadata, which Pillow may meet with any exception.
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def sideways(image: ImageFile) -> bool:
    """Whether an opened *image* exchanges its sides to be upright, as far as is known without decoding it."""
    try:
        return Image.Image.getexif(image).get(0x0112) in (5, 6, 7, 8)
    except MemoryError:
        raise
    except Exception:
        return False


def _load(image: ImageFile, raw: str | None = None) -> tuple[int, bool]:
    """Load *image*, its bytes being taken as *raw* says; how it lies now, and whether its file has it on its side."""
    if raw is not None:
        for number, tile in enumerate(image.tile):
            several = () if isinstance(tile.args, str) or tile.args is None else tile.args
            image.tile[number] = tile._replace(args=(raw, *several[1:]) if several else raw)
    # Pillow turns a TIFF while it loads it. Of a PNG it cannot tell before, since EXIF may come after the pixels.
    before = _orientation(image) if image.format == "TIFF" else 1
    image.load()
    now = _orientation(image)
    return now, max(before, now) > 4


def _turned(levels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """*levels* (H, W, ...) that lie as an *orientation* of EXIF says, upright."""
    if orientation > 4:
        levels = levels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        levels = levels[::-1]
    if orientation in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    return np.ascontiguousarray(levels)


def _samples(image: ImageFile, orientation: int) -> NDArray[Any]:
    """(H, W, C) of a loaded *image*, upright."""
    return _turned(_pixels(image), orientation)


def _pixels(image: Image.Image) -> NDArray[Any]:
    """(H, W, C) of a loaded *image*, in blocks of rows, since Pillow copies twice what NumPy takes of it at once."""
    rows = max(1, _BLOCK // image.width)
    blocks = ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))
    parts = ((top, stop, np.atleast_3d(np.asarray(image.crop((0, top, image.width, stop))))) for top, stop in blocks)
    first = next(parts)
    if first[1] == image.height:
        return first[2]
    whole = np.empty((image.height, *first[2].shape[1:]), first[2].dtype)
    for top, stop, part in chain([first], parts):
        whole[top:stop] = part
    return whole


def _three(levels: Pixels) -> Pixels:
    """(H, W, 1 or 3) as (H, W, 3): of a grey picture a view, since repeated channels need no memory."""
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def _sample_bits(image: ImageFile, stream: IO[bytes]) -> int:
    """The most bits of a sample that the header speaks of."""
    stream.seek(0)
    if image.format == "PNG":
        return stream.read(25)[24]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(258, (1,))))  # type: ignore[attr-defined]
    if image.format == "PPM":
        name, args = image.tile[0].codec_name, _arguments(image)
        if isinstance(args, str):
            return 16 if args == "I;16B" else 8
        return max(8, int(args[-1]).bit_length()) if name.startswith("ppm") else 8
    if image.format == "AVIF":
        # The codec's configuration: a bit for more than 8 bits, and one for 12 instead of 10.
        _, found, after = stream.read(1 << 16).partition(b"av1C")
        flags = after[2] if found and len(after) > 2 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return int(image.info.get("bit_depth", 8))


def _decode_deep(image: ImageFile, stream: IO[bytes], bits: int) -> Decoded:
    """The arrays of an opened *image* of more than 8 bits."""
    if image.format == "HEIF":
        samples, premultiplied = _deep_heif(stream)
        sideways = False
    elif image.format == "PPM":
        samples, premultiplied, sideways = _netpbm(image, stream), False, False
    else:
        samples, premultiplied, sideways = _two_passes(image, stream, bits)
    colours, alpha, key = samples, None, image.info.get("transparency")
    if samples.shape[2] in (2, 4):
        colours, alpha = samples[..., :-1], np.ascontiguousarray(samples[..., -1])
    elif key is not None:
        hidden = (samples == np.atleast_1d(key).astype(np.float32) / np.float32(DEEP)).all(axis=2)
        alpha = np.where(hidden, np.float32(0), np.float32(1))
    if premultiplied and alpha is not None:
        colours = np.minimum(colours / np.maximum(alpha[..., None], np.float32(1 / DEEP)), np.float32(1))
    icc = image.info.get("icc_profile")
    return Decoded(_three(colours), alpha, colours.shape[2] == 1, icc, 16, (), sideways)


def _two_passes(image: ImageFile, stream: IO[bytes], bits: int) -> tuple[NDArray[np.float32], bool, bool]:
    """Samples (H, W, C) of a PNG or TIFF; whether they are premultiplied by alpha; whether sides were exchanged."""
    tags: Any = getattr(image, "tag_v2", {})
    raw = arguments if isinstance(arguments := _arguments(image), str) else arguments[0]
    if raw == "LA;16B":
        # A pixel of grey with alpha is four bytes, as one of 8-bit RGBA is; the filters of PNG see no difference.
        lies, sideways = _load(image, "RGBA")
        both = _samples(image, lies).astype(np.uint16)
        return _unit(both[..., ::2] << 8 | both[..., 1::2]), False, sideways
    if max(tags.get(339, (1,))) != 1:
        raise UnreadError("has samples that are signed or floating, which are not read: save it with unsigned levels")
    if image.mode in _GREY_MODES and bits <= 16:
        lies, sideways = _load(image)
        grey = _unit(_samples(image, lies), 2**bits - 1)
        # Of 16 bits Pillow does not turn a scale that begins with white.
        return (1 - grey if tags.get(262) == 0 else grey), False, sideways
    if tags.get(284) == 2:
        raise UnreadError(
            f"has {bits} bits and its colours in planes of their own, which is not read: save it with interleaved ones"
        )
    base, _, order = raw.partition(";16")
    if image.mode not in ("RGB", "RGBA") or order not in ("L", "B", "N") or len(base) < 3:
        raise UnreadError(f"has samples of {bits} bits in an order that is not read ({raw}): save it as PNG")
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(order, order)
    # Premultiplied colours are divided after both bytes are known.
    base, premultiplied = base.replace("a", "A"), "a" in base
    lies, sideways = _load(image, f"{base};16{order}")
    stream.seek(0)
    again = type(image)(stream)
    _load(again, f"{base};16{'B' if order == 'L' else 'L'}")
    return _unit(_samples(image, lies).astype(np.uint16) << 8 | _samples(again, lies)), premultiplied, sideways


def _arguments(image: ImageFile) -> Any:
    """What tells Pillow's decoder how the bytes of *image* lie: a name, or several things with the name first."""
    return image.tile[0].args


def _unit(levels: NDArray[Any], highest: int = DEEP) -> NDArray[np.float32]:
    values: NDArray[np.float32] = levels.astype(np.float32)
    values /= np.float32(highest)
    return values


def _netpbm(image: ImageFile, stream: IO[bytes]) -> NDArray[np.float32]:
    """Samples (H, W, C) of a binary PPM or PGM of more than 8 bits."""
    (width, height), (name, _, offset, _), args = image.size, image.tile[0], _arguments(image)
    if name == "ppm_plain":
        raise UnreadError("is a PPM of more than 255 levels written as text, which is not read: save it in binary form")
    highest = DEEP if isinstance(args, str) else int(args[-1])
    channels = 3 if image.mode == "RGB" else 1
    stream.seek(offset)
    data = stream.read(2 * width * height * channels)
    if len(data) < 2 * width * height * channels:
        raise OSError("image file is truncated")
    levels = np.frombuffer(data, ">u2").reshape(height, width, channels)
    return _unit(np.minimum(levels, highest), highest)


def _deep_heif(stream: IO[bytes]) -> tuple[NDArray[np.float32], bool]:
    """Samples (H, W, C) of a HEIC, and whether they are premultiplied by alpha."""
    stream.seek(0)
    found = imported("pillow_heif", "heif").open_heif(io.BytesIO(stream.read()), convert_hdr_to_8bit=False)
    return _unit(np.atleast_3d(np.asarray(found))), "a;" in found.mode


def _keyed(levels: Pixels, key: int | tuple[int, int, int], bits: int) -> NDArray[np.uint8]:
    """Alpha of a PNG that calls one colour *key* transparent, from *levels* (H, W, 1 or 3) as Pillow gives them.

    Pillow widens 1, 2 and 4 bits to eight, but leaves the key as it was.
    """
    wanted = np.atleast_1d(np.asarray(key))
    if bits == 1:
        wanted = np.where(wanted > 0, 255, 0)
    elif bits < 8:
        wanted = wanted * (255 // (2**bits - 1))
    return np.where((levels == wanted).all(axis=2), 0, 255).astype(np.uint8)
