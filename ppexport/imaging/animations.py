"""Animated GIF, WebP, APNG and AVIF: read and written one frame at a time.

Read, every frame is the whole picture that a viewer shows at that moment: what a file says of parts, blending and
disposal has been applied. Written, every frame replaces the one before, so that it looks the same.

What is held does not grow with the number of frames, except for the compressed file where the encoder wants to have it
whole (WebP and AVIF).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from ppexport.errors import ImageError
from ppexport.imaging.complaints import damage, no_warnings
from ppexport.imaging.decoding import decode_loaded
from ppexport.imaging.deep import png_chunks, put_chunk
from ppexport.imaging.formats import Format, WriteOptions
from ppexport.imaging.gif_writer import GifWriter
from ppexport.imaging.pixels import Picture, opaque
from ppexport.imaging.writing import kept_by, samples_of, save_options, whole

_DEFAULT = WriteOptions()


class Frames:
    """The frames of an animation: their number is known, and they are decoded while one iterates."""

    def __init__(self, name: str, source: Path | IO[bytes], kind: Format, image: ImageFile, count: int) -> None:
        self.name = name
        self.plays = _plays(kind, image)
        """How often the animation is shown; 0 is without end."""
        self._source, self._kind, self._count, self._size = source, kind, count, image.size
        self._first = int(bool(getattr(image, "default_image", False)))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Picture]:
        """Every frame as a whole picture, upright, with its time. Raises ImageError for what cannot be decoded."""
        source = self._source
        with open(source, "rb") if isinstance(source, Path) else nullcontext(source) as stream:
            stream.seek(0)
            try:
                image = self._kind.open_reader()(stream)
                drawn = _Drawn(self._size)
                for number in range(self._first, self._first + self._count):
                    with no_warnings():
                        image.seek(number)
                        if image.size != self._size:
                            raise ImageError(f"{self.name} has a frame larger than the first, which is not read")
                        image.load()
                    decoded = decode_loaded(image)
                    alpha = drawn.alpha(image) if image.format == "GIF" and decoded.alpha is None else decoded.alpha
                    time = image.info.get("duration") or 0
                    yield Picture(decoded.rgb, alpha, decoded.grey, milliseconds=float(time))
            except ImageError:
                raise
            except MemoryError:
                raise ImageError(f"{self.name} does not fit into memory") from None
            except Exception as error:
                stream.seek(0)
                raise ImageError(f"{self.name} {damage(stream, stream.read(64), error)}") from None


class _Drawn:
    """Where frames of a GIF have drawn something: elsewhere viewers show what is behind it, and Pillow a colour."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._now = np.zeros(size[::-1], bool)
        self._before, self._disposal, self._part = self._now, 0, (slice(0), slice(0))

    def alpha(self, image: Any) -> NDArray[np.uint8] | None:
        """The alpha of the next frame, an opened *image* that shows no transparency itself; None where all is drawn."""
        if self._disposal == 2:
            self._now[self._part] = False
        elif self._disposal == 3:
            self._now = self._before
        left, top, right, bottom = image.dispose_extent
        self._part, self._disposal, self._before = (
            np.s_[top:bottom, left:right],
            image.disposal_method,
            self._now.copy(),
        )
        self._now[self._part] = True
        return None if self._now.all() else np.where(self._now, 255, 0).astype(np.uint8)


def _plays(kind: Format, image: ImageFile) -> int:
    """How often an animation is shown, 0 being without end; a GIF counts the times after the first."""
    loop = image.info.get("loop")
    if kind.name == "GIF":
        return 1 if loop is None else int(loop) + 1 if loop else 0
    return int(loop or 0)


def write_animation(
    target: Path | IO[bytes],
    picture: Picture,
    frames: Iterable[Picture],
    options: WriteOptions = _DEFAULT,
    *,
    suffix: str | None = None,
) -> tuple[str, ...]:
    """Write *frames* (rgb uint8), as many as *picture* has and all of one size, with what belongs to *picture*.

    Otherwise as `write_image`; what *frames* raises comes out as it was raised.
    """
    if picture.frames is None:
        raise ValueError("write_animation takes the picture of an animation")
    count, plays = len(picture.frames), picture.frames.plays
    source = iter(frames)
    first = next(source)

    def write(stream: IO[bytes], kind: Format) -> tuple[str, ...]:
        # All frames are of one kind, and one that comes later may be transparent or coloured.
        kept, lost = kept_by(kind, Picture(
            first.rgb, first.alpha, False, picture.icc, picture.chunks, picture.dpi, picture.depth, picture.metadata
        ), options)  # fmt: skip
        chosen = save_options(kind, kept, options)
        pictures = _Pictures(first, source, count)
        if kind.name == "GIF":
            with GifWriter(stream, pictures.image.size, plays, chosen.get("comment", b"")) as writer:
                for _ in pictures:
                    writer.add(pictures.image, pictures.times[-1])
        elif kind.name == "PNG":
            _write_apng(stream, pictures, count, plays, chosen)
        else:
            if kind.name == "AVIF" and plays:
                lost = (*lost, "AVIF cannot hold how often the animation is repeated")
            elif kind.name == "WEBP":
                chosen["loop"] = plays
            stand_in = _Stream(pictures)
            stand_in.save(stream, kind.name, save_all=True, duration=pictures.times, **chosen)
        return lost

    try:
        return whole(target, Picture(
            first.rgb, first.alpha, False, picture.icc, picture.chunks, frames=picture.frames
        ), options, suffix, write)  # fmt: skip
    except _Inside as error:
        raise error.reason from None


class _Inside(Exception):
    """An error of the frames, which is none of writing them."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class _Pictures:
    """Frames as images, one after the other, and the times that they are shown for."""

    def __init__(self, first: Picture, others: Iterator[Picture], count: int) -> None:
        self._others, self._left = others, count - 1
        self.times: list[int] = []
        """Milliseconds of the frames so far, rounded so that the sum of them is not off."""
        self._exact = 0.0
        self._put(first)

    def _put(self, picture: Picture) -> None:
        samples = samples_of(picture)
        if picture.alpha is None:
            clear = np.full((*picture.size, 1), opaque(samples.dtype), samples.dtype)
            samples = np.concatenate([samples, clear], axis=2)
        self.image = Image.fromarray(np.ascontiguousarray(samples))
        self._exact += picture.milliseconds
        self.times.append(round(self._exact) - sum(self.times))

    def advance(self) -> bool:
        """Whether there was another frame, which is then `image`."""
        if not self._left:
            return False
        self._left -= 1
        try:
            picture = next(self._others)
        except StopIteration:
            raise ValueError("the animation has fewer frames than it says") from None
        except Exception as error:
            raise _Inside(error) from None
        self._put(picture)
        return True

    def __iter__(self) -> Iterator[Image.Image]:
        yield self.image
        while self.advance():
            yield self.image


class _Stream(Image.Image):
    """What Pillow takes for an opened animation, and asks for one frame after the other while it writes."""

    def __init__(self, pictures: _Pictures) -> None:
        super().__init__()
        self._pictures, self._at = pictures, 0
        self.n_frames, self.is_animated = pictures._left + 1, True
        self._show()

    def _show(self) -> None:
        # Pixels, mode and size.
        vars(self).update(vars(self._pictures.image))

    def seek(self, frame: int) -> None:
        """Go on to the next frame; the one that is shown, and the first at the end, are asked for without need."""
        if frame == self._at + 1:
            if not self._pictures.advance():
                raise EOFError
            self._at = frame
            self._show()

    def tell(self) -> int:
        return self._at


def _write_apng(stream: IO[bytes], pictures: _Pictures, count: int, plays: int, options: dict[str, Any]) -> None:
    """PNG's animation chunks around the pixels that Pillow compresses for every frame."""
    number = 0
    for image in pictures:
        one = io.BytesIO()
        image.save(one, "PNG", **options)
        chunks = list(png_chunks(one.getvalue()))
        first = number == 0
        if first:
            stream.write(b"\x89PNG\r\n\x1a\n")
            head = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
            put_chunk(stream, *head[0])
            put_chunk(stream, b"acTL", struct.pack(">II", count, plays))
            for chunk in head[1:]:
                put_chunk(stream, *chunk)
            # What stands for all frames is written once.
            options = {"compress_level": options["compress_level"]}
        delay = Fraction(pictures.times[-1], 1000)
        delay = delay.limit_denominator(65535) if delay < 65535 else Fraction(65535)
        put_chunk(stream, b"fcTL", struct.pack(
            ">IIIIIHHBB", number, *image.size, 0, 0, delay.numerator, delay.denominator, 0, 0
        ))  # fmt: skip
        number += 1
        for kind, content in chunks:
            if kind == b"IDAT" and first:
                put_chunk(stream, kind, content)
            elif kind == b"IDAT":
                put_chunk(stream, b"fdAT", struct.pack(">I", number) + content)
                number += 1
    put_chunk(stream, b"IEND", b"")
