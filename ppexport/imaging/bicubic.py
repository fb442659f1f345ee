"""Bicubic resizing the way super-resolution data sets are made, bit for bit (NumPy only).

Cubic convolution kernel (Keys 1981, a = -0.5); for shrinking it is stretched by the scale, which makes it antialiased:

    k(x) = 1.5|x|^3 - 2.5|x|^2 + 1  (|x| <= 1),   -0.5|x|^3 + 2.5|x|^2 - 4|x| + 2  (1 < |x| <= 2)

Weights are normalised to sum to 1, taps beyond the edge read the edge pixel, and the height is resized first. Each
of the two passes computes in float64 and rounds to 8 bits by floor(x + 0.5). So shrunk, the HR pictures of the public
Set5 and Set14 files give their LR pictures exactly; Pillow, OpenCV and torch give others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image8 = NDArray[np.uint8]
"""An 8-bit picture (H, W) or (H, W, C)."""

_SUPPORT = 4.0
"""Width of the unstretched kernel."""


def _kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    d = np.abs(x)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d <= 2, far, 0.0))


def _taps(size: int, target: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Source positions and weights (target, taps) for resizing an axis of *size* by *factor* to *target* pixels."""
    stretch = max(1.0, 1.0 / factor)
    width = _SUPPORT * stretch
    center = (np.arange(target) + 0.5) / factor - 0.5
    left = np.floor(center - width / 2).astype(np.intp)
    index = left[:, None] + np.arange(int(np.ceil(width)) + 2)
    weights = _kernel((center[:, None] - index) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1), weights


def _resize_rows(image: Image8, target: int, factor: float) -> Image8:
    index, weights = _taps(image.shape[0], target, factor)
    total = np.zeros((target, *image.shape[1:]))
    # Tap by tap, not as one matrix product: a BLAS may add in any order, and a tie at .5 would then round either way.
    for tap in range(index.shape[1]):
        weight = weights[:, tap].reshape(-1, *(1,) * (image.ndim - 1))
        if weight.any():
            total += weight * image[index[:, tap]]
    return np.clip(np.floor(total + 0.5), 0, 255).astype(np.uint8)


def _resize(image: Image8, height: int, width: int, factor: float) -> Image8:
    tall = _resize_rows(image, height, factor)
    return np.ascontiguousarray(_resize_rows(tall.swapaxes(0, 1), width, factor).swapaxes(0, 1))


def _check(image: Image8, scale: int) -> None:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"bicubic resizing takes uint8 (H, W) or (H, W, C), not {image.dtype} {image.shape}")
    if scale < 1 or int(scale) != scale:
        raise ValueError(f"the scale is a whole number from 1 on, not {scale}")


def crop_to_multiple(image: Image8, scale: int) -> Image8:
    """*image* without the rows and columns beyond the last multiple of *scale*: the HR that belongs to an LR.

    Raises ValueError when nothing would be left.
    """
    _check(image, scale)
    h, w = image.shape[0] // scale * scale, image.shape[1] // scale * scale
    if not h or not w:
        raise ValueError(f"an image of {image.shape[0]}x{image.shape[1]} is smaller than one {scale}x{scale} pixel")
    return image[:h, :w]


def resize_bicubic(image: Image8, scale: int) -> Image8:
    """Shrink an HR *image* to its LR: uint8 (H, W) or (H, W, C) -> uint8 (H // scale, W // scale[, C]).

    Sides that are no multiples of *scale* are cropped first (`crop_to_multiple`), never stretched.
    Raises ValueError for another type or shape, a scale that is no whole number, or an image smaller than one LR pixel.
    """
    image = crop_to_multiple(image, scale)
    return _resize(image, image.shape[0] // scale, image.shape[1] // scale, 1 / scale)


def enlarge_bicubic(image: Image8, scale: int) -> Image8:
    """Enlarge an LR *image* by *scale*, the baseline every SR paper compares with: uint8 (H, W[, C]) -> (sH, sW[, C]).

    Raises ValueError as `resize_bicubic` does.
    """
    _check(image, scale)
    return _resize(image, image.shape[0] * scale, image.shape[1] * scale, float(scale))
