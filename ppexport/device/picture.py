"""Conversion between network output and 8-bit pictures, and their PSNR and SSIM. NumPy only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray

    Image8 = NDArray[np.uint8]
    """An 8-bit picture (H, W, 3), or (H, W) for grey."""
    Floats = NDArray[np.float64]


def to_levels(values: NDArray[np.float32], depth: int = 8) -> NDArray[Any]:
    """floor(255 * clamp(v, 0, 1) + 0.5): the 8-bit levels of float32 *values* of any shape; with 65535 those of 16."""
    levels = np.clip(values, 0.0, 1.0)
    levels *= np.float32(255 if depth == 8 else 65535)
    levels += np.float32(0.5)
    # The levels are positive, so the conversion's cut towards zero is the floor.
    return levels.astype(np.uint8 if depth == 8 else np.uint16)


def to_uint8(sr: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Network output (1, 3, H, W) or (3, H, W), not clipped -> 8-bit picture (H, W, 3)."""
    return np.ascontiguousarray(to_levels(sr.reshape(sr.shape[-3:])).transpose(1, 2, 0))


def to_input(rgb: NDArray[np.generic]) -> NDArray[np.float32]:
    """uint8 (H, W, 3), or float32 in [0, 1] -> float32 (1, 3, H, W); 8-bit values become exactly v / 255."""
    x = rgb.astype(np.float32)
    if rgb.dtype == np.uint8:
        x /= np.float32(255)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


# PSNR and SSIM as the super-resolution field reports them.
#
# Papers compare the luma (Y of BT.601 YCbCr, studio range 16 to 235, not rounded) of 8-bit pictures after leaving off a
# border of *scale* pixels, with a peak of 255. A grey picture is its own luma, as in the published bicubic figures;
# made RGB first, as networks are usually scored, it gains 20 log10(255 / 219) = 1.32 dB: 0.09 dB in the mean over
# Set14, where one of 14 is grey.


TAPS = 11
"""Side of SSIM's window, the least that a picture can have."""
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def luma(rgb: Image8) -> Floats:
    """BT.601 luma of uint8 (H, W, 3): float64 (H, W) in [16, 235]; grey (H, W) is returned as it is, in [0, 255].

    Raises ValueError for another type or shape.
    """
    if rgb.dtype != np.uint8 or not (rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 3)):
        raise ValueError(f"luma takes uint8 (H, W, 3) or (H, W), not {rgb.dtype} {rgb.shape}")
    pixels = rgb.astype(np.float64)
    if rgb.ndim == 2:
        return pixels
    y: Floats = 16 + (65.481 * pixels[..., 0] + 128.553 * pixels[..., 1] + 24.966 * pixels[..., 2]) / 255
    return y


def _pair(a: NDArray[np.generic], b: NDArray[np.generic], peak: float) -> tuple[Floats, Floats]:
    """Both as float64, after checking that they can be compared."""
    if a.shape != b.shape:
        raise ValueError(f"images of the same shape can be compared, not {a.shape} and {b.shape}")
    if a.size == 0:
        raise ValueError(f"there is nothing to compare in images of shape {a.shape}")
    if not peak > 0:
        raise ValueError(f"the peak is a positive value, not {peak}")
    return a.astype(np.float64), b.astype(np.float64)


def psnr(a: NDArray[np.generic], b: NDArray[np.generic], peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of any one shape; `inf` when they are equal.

    *peak* is the largest possible value: 255 for 8 bits, 1 for [0, 1]. Raises ValueError for different or empty shapes.
    """
    x, y = _pair(a, b, peak)
    error = float(np.mean((x - y) ** 2))
    return 10 * math.log10(peak * peak / error) if error else math.inf


def _luma_pair(a: Image8, b: Image8, crop: int) -> tuple[Floats, Floats]:
    """Luma of both without a border of *crop* pixels."""
    if crop < 0:
        raise ValueError(f"the border left off is 0 pixels or more, not {crop}")
    # Grey beside RGB is refused too: their lumas have different ranges.
    if a.shape != b.shape:
        raise ValueError(f"images of the same shape can be compared, not {a.shape} and {b.shape}")
    if min(a.shape[:2]) <= 2 * crop:
        raise ValueError(f"an image of {a.shape[0]}x{a.shape[1]} has nothing left without a border of {crop} pixels")
    x, y = luma(a), luma(b)
    inner = slice(crop, -crop or None)
    return x[inner, inner], y[inner, inner]


def psnr_y(a: Image8, b: Image8, crop: int) -> float:
    """PSNR in dB of the luma of two 8-bit images without a border of *crop* pixels; papers leave off *scale* pixels.

    Raises ValueError for images of different shapes or too small for the crop.
    """
    return psnr(*_luma_pair(a, b, crop))


def _blur(x: Floats) -> Floats:
    """*x* (H, W) filtered by the 11x11 Gaussian where it fits wholly: (H - 10, W - 10)."""
    position = np.arange(TAPS) - TAPS // 2
    kernel = np.exp(-(position**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    # The Gaussian is separable: 22 shifted copies instead of 121.
    h, w = x.shape[0] - TAPS + 1, x.shape[1] - TAPS + 1
    rows = sum((kernel[i] * x[i : i + h] for i in range(1, TAPS)), start=kernel[0] * x[:h])
    out: Floats = sum((kernel[i] * rows[:, i : i + w] for i in range(1, TAPS)), start=kernel[0] * rows[:, :w])
    return out


def ssim(a: NDArray[np.generic], b: NDArray[np.generic], peak: float = 255.0) -> float:
    """Mean structural similarity of two images (H, W), or the mean over the channels of (H, W, C): at most 1.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), section III:
    11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, only windows wholly inside the image.
    Raises ValueError for different shapes or a side below 11 pixels.
    """
    x, y = _pair(a, b, peak)
    if x.ndim == 3:
        return float(np.mean([ssim(x[..., c], y[..., c], peak) for c in range(x.shape[2])]))
    if x.ndim != 2 or min(x.shape) < TAPS:
        raise ValueError(f"SSIM takes images of at least {TAPS}x{TAPS} pixels, not {a.shape}")
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(top / bottom))


def ssim_y(a: Image8, b: Image8, crop: int) -> float:
    """SSIM of the luma of two 8-bit images without a border of *crop* pixels.

    Raises ValueError for images of different shapes or with less than 11 pixels a side left.
    """
    return ssim(*_luma_pair(a, b, crop))
