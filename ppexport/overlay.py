"""The Pure-Pass mask drawn over its picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TINT = (0, 200, 120)
STRENGTH = 0.55


def mask_overlay(rgb: NDArray[np.uint8], pure: NDArray[np.bool_], zoom: int = 1) -> NDArray[np.uint8]:
    """*rgb* (H, W, 3) with its pure pixels tinted green, every pixel repeated *zoom* times.

    *pure* is (H', W') over the padded picture; what lies in the padding is not shown.
    """
    h, w = rgb.shape[:2]
    inside = pure[:h, :w, None]
    grey = rgb.mean(axis=2, keepdims=True)
    tinted = (1 - STRENGTH) * grey + STRENGTH * np.array(TINT)
    shown: NDArray[np.uint8] = np.where(inside, tinted, rgb).round().astype(np.uint8)
    return shown.repeat(zoom, axis=0).repeat(zoom, axis=1)
