"""Other layouts of rows: heads outermost, and q, k, v side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from floors.part import Arrange, Arrays, FloatArray


def split_heads(rows: FloatArray, heads: int) -> FloatArray:
    """(n, c) -> (heads, n, c / heads)."""
    return np.ascontiguousarray(rows.reshape(len(rows), heads, -1).transpose(1, 0, 2))


def to_heads(heads: int) -> Arrange:
    """All arrays (n, c) -> (heads, n, c / heads)."""
    return lambda arrays: {name: split_heads(rows, heads) for name, rows in arrays.items()}


def from_heads(arrays: Arrays) -> Arrays:
    """All arrays (heads, n, width) -> (n, heads * width)."""
    return {name: x.transpose(1, 0, 2).reshape(x.shape[1], -1) for name, x in arrays.items()}


def pack(arrays: Arrays) -> Arrays:
    """q, k, v (n, c) -> qkv (n, 3c); other arrays as they are."""
    rest = {name: x for name, x in arrays.items() if name not in ("q", "k", "v")}
    return {"qkv": np.concatenate([arrays[name] for name in ("q", "k", "v")], axis=1), **rest}


def reorder(order: NDArray[np.int64]) -> Arrange:
    """The rows of all arrays in another *order* (n,)."""
    return lambda arrays: {name: np.ascontiguousarray(x[order]) for name, x in arrays.items()}
