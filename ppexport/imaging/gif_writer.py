"""GIF, frame by frame, which Pillow would hold all at once: it chooses and compresses the colours of each."""

from __future__ import annotations

import io
import struct
from types import TracebackType
from typing import IO, Any

import numpy as np
from PIL import Image


class GifWriter:
    """Writes a GIF frame by frame, each with colours of its own; Pillow chooses and compresses them."""

    def __init__(self, stream: IO[bytes], size: tuple[int, int], plays: int, comment: bytes) -> None:
        self._stream, self._exact, self._said = stream, 0.0, 0
        stream.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0))
        if plays != 1:
            # The number of repetitions after the first time, or 0 for no end.
            stream.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", min(max(plays - 1, 0), 65535)) + b"\0")
        if comment:
            blocks = (comment[at : at + 255] for at in range(0, len(comment), 255))
            stream.write(b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0")

    def __enter__(self) -> GifWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._stream.write(b";")

    def add(self, image: Image.Image, milliseconds: float) -> None:
        """Add a whole frame, whose pixels are seen or not from the half of alpha on."""
        clear = np.asarray(image.getchannel("A")) < 128 if image.mode in ("LA", "RGBA") else None
        few, transparent = _few_colours(image.convert("RGB"), clear)
        self._exact += milliseconds / 10
        hundredths = min(round(self._exact) - self._said, 65535)
        self._said += hundredths
        # What is not drawn over must be gone before the next frame: only a transparent one has such.
        disposal = 2 if transparent is not None else 1
        self._stream.write(b"!\xf9\x04" + struct.pack(
            "<BHBB", disposal << 2 | (transparent is not None), hundredths, transparent or 0, 0
        ))  # fmt: skip
        self._stream.write(gif_frame(few))


def _few_colours(rgb: Image.Image, clear: Any) -> tuple[Image.Image, int | None]:
    """*rgb* in 256 colours at most, and which of them stands for the pixels that are *clear*, if there are any."""
    hidden = clear is not None and bool(clear.any())
    most = 255 if hidden else 256
    if rgb.getcolors(most) is None:
        palette = rgb.quantize(most, method=Image.Quantize.MEDIANCUT)
        few = rgb.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    else:
        # Each colour as one number.
        red, green, blue = np.moveaxis(np.asarray(rgb).astype(np.uint32), 2, 0)
        colours, indices = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        few = Image.frombytes("P", rgb.size, indices.astype(np.uint8).tobytes())
        few.putpalette(b"".join(int(colour).to_bytes(3, "big") for colour in colours))
    if not hidden:
        return few, None
    indices = np.array(few)
    indices[clear] = 255
    shown = Image.frombytes("P", rgb.size, indices.tobytes())
    shown.putpalette([*(few.getpalette() or [])[: 3 * 255], 0, 0, 0])
    return shown, 255


def gif_frame(image: Image.Image) -> bytes:
    """A descriptor, a table of 256 colours and the pixels of an *image* with a palette."""
    one = io.BytesIO()
    plain = Image.frombytes("L", image.size, image.tobytes())
    plain.save(one, "GIF", optimize=False, interlace=False)
    data = one.getvalue()
    # Pillow writes a table for the whole file, or none, then the frame.
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    flags = data[at + 9]
    pixels = at + 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    table = bytes(image.getpalette() or []).ljust(768, b"\0")[:768]
    return data[at : at + 9] + bytes([0x80 | 7]) + table + data[pixels:-1]
