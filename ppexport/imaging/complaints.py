"""What Pillow complains of, in the words of one sentence; what no user can act on stays inside."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

# Errors that Pillow logs would be lines on stderr beside those of the exception that it raises as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadError(ValueError):
    """A kind of picture that is not read; its text goes on after the file's name."""


_quiet = threading.Lock()
_silenced: list[Any] = []


@contextmanager
def no_warnings() -> Iterator[None]:
    """Pillow's warnings about odd metadata would be lines on stderr that no user can act on.

    Unlike `warnings.catch_warnings` it may be used by several threads at once: the last one restores what was.
    """
    with _quiet:
        if not _silenced:
            catch = warnings.catch_warnings()
            catch.__enter__()
            warnings.simplefilter("ignore")
            _silenced.append(catch)
        _silenced.append(None)
    try:
        yield
    finally:
        with _quiet:
            _silenced.pop()
            if len(_silenced) == 1:
                _silenced.pop().__exit__(None, None, None)


def truncated(length: int) -> str:
    """What is wrong with a file that should have more bytes than its *length*."""
    return f"is truncated: it ends after {length} bytes, before the picture is complete"


def damage(stream: IO[bytes], header: bytes, error: Exception) -> str:
    """What is wrong with a file that Pillow failed to read with *error*."""
    detail = str(error) or type(error).__name__
    length = stream.seek(0, os.SEEK_END)
    # Pillow does not tell a WebP file that is cut off from a damaged one; its first field is its length.
    cut_webp = header.startswith(b"RIFF") and int.from_bytes(header[4:8], "little") + 8 > length
    if cut_webp or any(words in detail.lower() for words in ("truncated", "not enough", "end of file", "reached eof")):
        return truncated(length)
    # What Pillow's tables lack: a layout, a compression.
    odd_tiff = header[:2] in (b"II", b"MM") and isinstance(error, (KeyError, IndexError))
    if odd_tiff or "unknown pixel mode" in detail or "unknown data organization" in detail:
        return "has pixels of a kind that is not read: convert it to PNG"
    # Pillow's limits against texts and profiles that unpack to gigabytes.
    if any(words in detail.lower() for words in ("decompressed data too large", "text chunks")):
        return f"has metadata of unreasonable size, save it again without: {detail}"
    return f"is damaged and cannot be decoded: {detail}"
