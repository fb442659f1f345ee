"""The colours of invisible pixels, replaced before a network sees them.

A pixel of alpha 0 has a colour that nobody was meant to see, mostly black. A network mixes it into the visible pixels
beside it, and the enlarged alpha is above zero where the small one was zero, so that logos would get dark fringes.
Here visible colours bleed outwards, as texture tools do it: first into the ring of pixels that touch a visible one,
each the mean of its visible neighbours weighted by their alpha, then, at half the resolution, into what is left.

    visible         A A . . . . . .        A A a . . . . .        A A a b c c d d
                                     ->                     ->
    (. invisible)   A A . . . . . .        A A a . . . . .        A A a b c c d d

Beside it `mask_overlay`, which tints the pure pixels of a picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]
_TINT, _STRENGTH = (0, 200, 120), 0.55


def bleed(rgb: NDArray[Any], alpha: NDArray[np.uint8]) -> NDArray[Any]:
    """Replace the colours of invisible pixels by visible ones near them; visible pixels are unchanged.

    Args:
        rgb: (H, W, 3), uint8 or float32.
        alpha: (H, W), 0 where a pixel is invisible.

    Returns:
        A new array, or *rgb* itself where every pixel is visible, or none is.
    """
    if alpha.all() or not alpha.any():
        return rgb
    return _filled(rgb, alpha)


def _filled(rgb: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """*rgb* (H, W, 3) with colours of the neighbourhood where *weight* (H, W) is 0. Some weight is above 0."""
    (height, width), visible = weight.shape, weight > 0
    # Visible pixels and those that touch one.
    near = np.asarray(Image.fromarray(np.uint8(visible)).filter(ImageFilter.MaxFilter(3))) > 0
    result = np.array(rgb)
    if not near.all():
        coarse = _rounded(_filled(*_halved(rgb, weight)), rgb.dtype)
        enlarged = coarse.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]
        np.copyto(result, enlarged, where=~near[..., None])
    y, x = np.nonzero(near & ~visible)
    total, share = np.zeros((len(y), 3), np.float32), np.zeros((len(y), 1), np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            at = np.clip(y + down, 0, height - 1), np.clip(x + right, 0, width - 1)
            part = weight[at].astype(np.float32)[:, None]
            total += part * rgb[at]
            share += part
    result[y, x] = _rounded(total / share, rgb.dtype)
    return result


def _rounded(colours: Floats, kind: np.dtype[Any]) -> NDArray[Any]:
    return np.floor(colours + np.float32(0.5)).astype(kind) if kind == np.uint8 else colours


def _halved(rgb: NDArray[Any], weight: NDArray[Any]) -> tuple[Floats, Floats]:
    """Means of 2x2 pixels, of *rgb* weighted by *weight*; beyond the edge of an odd side there is no weight."""
    height, width = weight.shape
    total = np.zeros((-(-height // 2), -(-width // 2), 3), np.float32)
    share = np.zeros((*total.shape[:2], 1), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            part = weight[down::2, right::2].astype(np.float32)[..., None]
            h, w = part.shape[:2]
            total[:h, :w] += part * rgb[down::2, right::2]
            share[:h, :w] += part
    np.divide(total, share, out=total, where=share > 0)
    return total, share[..., 0] * np.float32(0.25)


def mask_overlay(rgb: NDArray[np.uint8], pure: NDArray[np.bool_], zoom: int = 1) -> NDArray[np.uint8]:
    """*rgb* (H, W, 3) with its pure pixels tinted green, every pixel repeated *zoom* times in both directions.

    *pure* is (H', W') over the padded picture; what lies in the padding is not shown.
    """
    h, w = rgb.shape[:2]
    inside = pure[:h, :w, None]
    grey = rgb.mean(axis=2, keepdims=True)
    tinted = (1 - _STRENGTH) * grey + _STRENGTH * np.array(_TINT)
    shown: NDArray[np.uint8] = np.where(inside, tinted, rgb).round().astype(np.uint8)
    return shown.repeat(zoom, axis=0).repeat(zoom, axis=1)
