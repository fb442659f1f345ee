"""Writes what Pillow cannot: PNG, TIFF and PPM of 16 bits, in blocks of rows.

Nothing but one block is held beside the picture, which may therefore lie in a file (`numpy.memmap`), or come row by row
(`rows.Rows`): what is too large for Pillow, which copies a picture into four bytes a pixel, is written here as well.
What goes with a picture (profile, texts, EXIF) is put into chunks or tags by Pillow.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_BLOCK = 1 << 22
"""Bytes of a block, about."""
LARGE = 64_000_000
"""Pixels from which on Pillow's copy, of four bytes a pixel, is worth avoiding."""
_STRIP = 1 << 18
"""Bytes of a strip of a TIFF, about: more than the 8 kB that it recommends, since each is compressed for itself."""
_LEVEL = 4
"""Of zlib; half the time of 6 for 2.4 % more bytes."""
_BYTE, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7

Samples = NDArray[Any]
"""(H, W, C), uint8 or uint16, of 1 to 4 channels, the alpha being last."""


def _rows_in(samples: Samples, size: int) -> int:
    """How many rows have about *size* bytes."""
    return max(1, size // max(1, int(samples[0].nbytes)))


def _blocks(samples: Samples, size: int) -> Iterator[Samples]:
    """*samples* in blocks of whole rows of about *size* bytes, each read once and in their order."""
    rows = _rows_in(samples, size)
    for top in range(0, len(samples), rows):
        yield samples[top : top + rows]


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of every chunk of a whole PNG file."""
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def put_chunk(stream: IO[bytes], kind: bytes, content: bytes) -> None:
    """Write one chunk of a PNG."""
    stream.write(struct.pack(">I", len(content)) + kind + content)
    stream.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))


def write_png(stream: IO[bytes], samples: Samples, options: dict[str, Any]) -> None:
    """Write *samples* as a PNG, with what *options* of Pillow's `save` put beside the pixels."""
    height, width, channels = samples.shape
    bits = samples.dtype.itemsize * 8
    small = io.BytesIO()
    Image.new({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels], (1, 1)).save(small, "PNG", **options)
    chunks = [chunk for chunk in png_chunks(small.getvalue()) if chunk[0] not in (b"IHDR", b"IEND")]
    middle = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    stream.write(b"\x89PNG\r\n\x1a\n")
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    put_chunk(stream, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    for kind, content in chunks[:middle]:
        put_chunk(stream, kind, content)
    packer = zlib.compressobj(_LEVEL)
    above = np.zeros(samples[0].nbytes, np.uint8)
    for block in _blocks(samples, _BLOCK):
        rows = np.ascontiguousarray(block.astype(">u2") if bits == 16 else block).view(np.uint8)
        rows = rows.reshape(len(block), -1)
        if data := packer.compress(_filtered(rows, above, channels * bits // 8)):
            put_chunk(stream, b"IDAT", data)
        above = rows[-1]
    put_chunk(stream, b"IDAT", packer.flush())
    for kind, content in chunks[middle:]:
        if kind != b"IDAT":
            put_chunk(stream, kind, content)
    put_chunk(stream, b"IEND", b"")


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> bytes:
    """The bytes of *rows* (R, B), each behind the number of its filter, as PNG wants them before compression.

    Of every row's filters that one is taken whose differences have the smallest sum, as the PNG specification advises.
    *above* is the row before the first; *step* the bytes of a pixel.
    """
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:], corner[:, step:] = rows[:, :-step], up[:, :-step]
    cost, chosen = np.full(len(rows), np.iinfo(np.int64).max), np.zeros(len(rows), np.uint8)
    a, b, c = (part.astype(np.int16) for part in (left, up, corner))
    guesses = (left, up, ((a + b) >> 1).astype(np.uint8), _paeth(a, b, c))
    result = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    for number, guess in enumerate(guesses, 1):
        rest = rows - guess
        total = np.abs(rest.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)
        better = total < cost
        result[better, 1:] = rest[better]
        chosen[better], cost = number, np.minimum(cost, total)
    result[:, 0] = chosen
    return result.tobytes()


def _paeth(a: NDArray[np.int16], b: NDArray[np.int16], c: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Of left *a*, above *b* and their corner *c* the one nearest to a + b - c."""
    of_a, of_b, of_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((of_a <= of_b) & (of_a <= of_c), a, np.where(of_b <= of_c, b, c)).astype(np.uint8)


def write_tiff(
    stream: IO[bytes],
    samples: Samples,
    *,
    dpi: tuple[float, float] | None,
    icc: bytes | None,
    xmp: bytes | None,
    exif: bytes | None,
) -> None:
    """Write *samples* as a TIFF in strips of deflate with differences, with a profile and metadata."""
    height, width, channels = samples.shape
    bits = samples.dtype.itemsize * 8
    rows = min(height, _rows_in(samples, _STRIP))
    count = -(-height // rows)
    tags: dict[int, tuple[int, Any]] = {
        256: (_LONG, width),
        257: (_LONG, height),
        258: (_SHORT, (bits,) * channels),
        259: (_SHORT, 8),
        262: (_SHORT, 1 if channels < 3 else 2),
        273: (_LONG, (0,) * count),
        277: (_SHORT, channels),
        278: (_LONG, rows),
        279: (_LONG, (0,) * count),
        284: (_SHORT, 1),
        317: (_SHORT, 2),
    }
    if channels in (2, 4):
        tags[338] = (_SHORT, 2)
    if dpi is not None:
        tags |= {282: (_RATIONAL, dpi[0]), 283: (_RATIONAL, dpi[1]), 296: (_SHORT, 2)}
    if icc is not None:
        tags[34675] = (_UNDEFINED, icc)
    if xmp is not None:
        tags[700] = (_BYTE, xmp)
    stream.write(b"II*\0\x08\0\0\0")
    stream.write(_directory(tags, exif))
    start, offsets, lengths = stream.tell(), [], []
    for strip in _blocks(samples, _STRIP):
        offsets.append(stream.tell() - start)
        little = strip.astype("<u2") if bits == 16 else strip
        differences = np.array(little)
        differences[:, 1:] -= little[:, :-1]
        data = zlib.compress(differences.tobytes(), _LEVEL)
        stream.write(data + b"\0" * (len(data) % 2))
        lengths.append(len(data))
    # Pillow adds where the directory ends.
    tags |= {273: (_LONG, tuple(offsets)), 279: (_LONG, tuple(lengths))}
    stream.seek(8)
    stream.write(_directory(tags, exif))


def _directory(tags: dict[int, tuple[int, Any]], exif: bytes | None) -> bytes:
    """The directory of a TIFF at its 9th byte; its length does not depend on what the numbers in it are."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if exif is not None:
        source = Image.Exif()
        source.load(exif)
        for tag in source:
            if tag in tags or tag in (273, 279, 322, 323, 324, 325):
                continue
            # Of a tag that cannot be written the others are no less worth keeping.
            with suppress(Exception):
                directory[tag] = source.get_ifd(tag) if tag in (0x8769, 0x8825) else source[tag]
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    return directory.tobytes(8)


def pillow_image(samples: Samples) -> Image.Image:
    """*samples* (H, W, 1 to 4), uint8, as Pillow has them; large ones are taken in blocks, which are not kept."""
    height, width, channels = samples.shape
    if height * width <= LARGE:
        return Image.fromarray(np.ascontiguousarray(samples[..., 0] if channels == 1 else samples))
    image, top = Image.new({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels], (width, height)), 0
    for block in _blocks(samples, _BLOCK):
        image.paste(Image.fromarray(np.ascontiguousarray(block[..., 0] if channels == 1 else block)), (0, top))
        top += len(block)
    return image


def write_netpbm(stream: IO[bytes], samples: Samples) -> None:
    """Write *samples* of 1 or 3 channels as a binary PGM or PPM."""
    height, width, channels = samples.shape
    highest = np.iinfo(samples.dtype).max
    stream.write(b"P%d\n%d %d\n%d\n" % (5 if channels == 1 else 6, width, height, highest))
    for block in _blocks(samples, _BLOCK):
        stream.write((block.astype(">u2") if highest > 255 else block).tobytes())
