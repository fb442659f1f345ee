"""The weight file of a package, `weights/weight.bin`.

    0      uint32 number of blobs, uint32 version (2), zeros to byte 64
    64 k   header of a blob: uint32 0xDEADBEEF, uint32 element type, uint64 bytes, uint64 offset of the data, uint64
           unused bits of the last byte, zeros to 64 bytes
    64 k   its data

A program names a blob by the offset of its header.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.reading.data_types import ElementType
from ppexport.errors import ArtifactError

VERSION = 2
SENTINEL = 0xDEADBEEF
FILE_HEADER = struct.Struct("<II56x")
BLOB_HEADER = struct.Struct("<IIQQQ32x")


class WeightFile:
    """An opened weight file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = memoryview(path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"the weights {path} cannot be read: {error.strerror}") from None
        if len(self.data) < FILE_HEADER.size or FILE_HEADER.unpack_from(self.data)[1] != VERSION:
            raise ArtifactError(f"{path} is not a weight file of version {VERSION}")

    def read(self, offset: int, kind: ElementType, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """The blob whose header is at *offset*. Raises ArtifactError where it is not *kind* and *shape*."""
        where = f"{self.path}: the blob at {offset}"
        if offset % 64 or not FILE_HEADER.size <= offset <= len(self.data) - BLOB_HEADER.size:
            raise ArtifactError(f"{where} is outside the file or not aligned: the package is damaged")
        sentinel, stored, size, start, _ = BLOB_HEADER.unpack_from(self.data, offset)
        if sentinel != SENTINEL:
            raise ArtifactError(f"{where} has no header: the package is damaged")
        if stored != kind.stored:
            raise ArtifactError(f"{where} has element type {stored}, the program says {kind.name}")
        if start + size > len(self.data):
            raise ArtifactError(f"{where} ends behind the end of the file: the package is damaged")
        try:
            return kind.unpack(self.data[start : start + size], math.prod(shape)).reshape(shape)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from None
