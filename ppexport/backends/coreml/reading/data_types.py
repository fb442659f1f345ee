"""The element types of MIL, and how their values are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import ArtifactError


@dataclass(frozen=True)
class ElementType:
    """One element type."""

    name: str
    """As MIL programs write it."""
    bits: int
    """Bits of one stored element; below 8 they are packed, lowest bits first."""
    numpy: np.dtype[np.generic] | None
    """What holds it in memory; None for text."""
    stored: int | None = None
    """Its number in a weight file; None where weights cannot be of this type."""

    def unpack(self, data: memoryview, count: int) -> NDArray[np.generic]:
        """*count* elements out of the bytes *data*. Raises ArtifactError where there are fewer or more."""
        expected = -(-count * self.bits // 8)
        if self.numpy is None or len(data) != expected:
            raise ArtifactError(f"{count} values of {self.name} take {expected} bytes, not {len(data)}")
        if self.bits >= 8:
            return np.frombuffer(data, self.numpy)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * self.bits]
        values = np.zeros(count, np.int16)
        for place, column in enumerate(bits.reshape(count, self.bits).T):
            values |= column.astype(np.int16) << place
        if np.issubdtype(self.numpy, np.signedinteger):
            values = np.where(values >> (self.bits - 1), values - (1 << self.bits), values)
        return values.astype(self.numpy)


def _kind(name: str, bits: int, numpy: str | None, stored: int | None = None) -> ElementType:
    return ElementType(name, bits, None if numpy is None else np.dtype(numpy), stored)


TYPES: dict[int, ElementType] = {
    1: _kind("bool", 8, "bool"),
    2: _kind("string", 8, None),
    10: _kind("fp16", 16, "<f2", 1),
    11: _kind("fp32", 32, "<f4", 2),
    12: _kind("fp64", 64, "<f8"),
    21: _kind("int8", 8, "i1", 4),
    22: _kind("int16", 16, "<i2", 6),
    23: _kind("int32", 32, "<i4", 14),
    24: _kind("int64", 64, "<i8"),
    25: _kind("int4", 4, "i1", 8),
    31: _kind("uint8", 8, "u1", 3),
    32: _kind("uint16", 16, "<u2", 7),
    33: _kind("uint32", 32, "<u4", 15),
    35: _kind("uint4", 4, "u1", 11),
    36: _kind("uint2", 2, "u1", 10),
    37: _kind("uint1", 1, "u1", 9),
    38: _kind("uint6", 6, "u1", 13),
    39: _kind("uint3", 3, "u1", 12),
}
"""By their number in a model file."""


def element_type(number: int) -> ElementType:
    """The element type *number*. Raises ArtifactError for one that is not known."""
    if number not in TYPES:
        raise ArtifactError(f"element type {number} is not known")
    return TYPES[number]
