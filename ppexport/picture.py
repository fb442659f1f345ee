"""Between network output and 8-bit pictures. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_uint8(sr: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Network output (1, 3, H, W) or (3, H, W), not clipped -> uint8 (H, W, 3): floor(255 * clamp(sr, 0, 1) + 0.5)."""
    rgb = sr.reshape(sr.shape[-3:]).transpose(1, 2, 0)
    return np.ascontiguousarray(np.floor(np.clip(rgb, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8))


def to_input(rgb: NDArray[np.generic]) -> NDArray[np.float32]:
    """uint8 (H, W, 3), or float32 in [0, 1] -> network input float32 (1, 3, H, W); 8-bit values become exactly v / 255."""
    x = rgb.astype(np.float32)
    if rgb.dtype == np.uint8:
        x /= np.float32(255)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])
