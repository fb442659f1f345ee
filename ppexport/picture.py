"""Between network output and 8-bit pictures. NumPy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray


def to_levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """floor(255 * clamp(v, 0, 1) + 0.5): the 8-bit levels of float32 *values* of any shape."""
    levels = np.clip(values, 0.0, 1.0)
    levels *= np.float32(255)
    levels += np.float32(0.5)
    # The levels are positive, so the conversion's cut towards zero is the floor.
    return levels.astype(np.uint8)


def to_uint8(sr: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Network output (1, 3, H, W) or (3, H, W), not clipped -> 8-bit picture (H, W, 3)."""
    return np.ascontiguousarray(to_levels(sr.reshape(sr.shape[-3:])).transpose(1, 2, 0))


def to_input(rgb: NDArray[np.generic]) -> NDArray[np.float32]:
    """uint8 (H, W, 3), or float32 in [0, 1] -> float32 (1, 3, H, W); 8-bit values become exactly v / 255."""
    x = rgb.astype(np.float32)
    if rgb.dtype == np.uint8:
        x /= np.float32(255)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])
