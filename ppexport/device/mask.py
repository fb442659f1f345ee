"""Pure-Pass in NumPy, for devices without torch (arXiv 2510.01997, "pixel classification" and "CSMF").

Every step is integer arithmetic that fp32 holds exactly, so that the labels and masks made here are equal, bit for
bit, to those of the PyTorch network and of every exported graph:

    P      = floor(255 * clamp(x, 0, 1) + 0.5)                the 8-bit pixel
    C_k    = round(255 * hsv_to_rgb(k / K, 0.9, 0.9))         K integer colour centres
    score  = 2 * P . C_k - |C_k|^2                            the nearest centre has the largest score
    key    = score * K + (K - 1 - k)                          no two keys are equal; below 2^24 for K <= 16
    label  = argmax_k key
"""

from __future__ import annotations

import colorsys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray

MULTIPLE = 16
"""Images are padded to multiples of the attention window before anything else."""
MAX_COLORS = 16
"""Keys of more than 16 centres would leave the range that fp32 holds exactly."""
WINDOWS = (2, 4, 8, 16)
"""Even window sides that divide 16."""


def check_options(colors: int, window: int) -> None:
    """Raise ValueError unless 2 <= *colors* <= 16 and *window* is an even divisor of 16."""
    if not 2 <= colors <= MAX_COLORS:
        raise ValueError(f"Pure-Pass takes 2 to {MAX_COLORS} colours, not {colors}: more would not be exact in fp32")
    if window not in WINDOWS:
        raise ValueError(f"a Pure-Pass window is one of {WINDOWS}, not {window}: it is even and divides 16")


def color_centers(colors: int) -> NDArray[np.int32]:
    """The (K, 3) integer colour centres: hue k/K, saturation 0.9, value 0.9; halves are rounded to even."""
    rgb = [colorsys.hsv_to_rgb(k / colors, 0.9, 0.9) for k in range(colors)]
    return np.array([[round(255 * v) for v in c] for c in rgb], dtype=np.int32)


def key_weights(colors: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Weights (K, 3) and offsets (K,) such that key_k = weights[k] . P + offsets[k]."""
    centers = color_centers(colors)
    offsets = -(centers**2).sum(axis=1) * colors + (colors - 1 - np.arange(colors))
    return (2 * colors * centers).astype(np.int32), offsets.astype(np.int32)


def mirror_index(size: int, padded: int) -> NDArray[np.int64]:
    """Where each of *padded* positions reads along an axis of *size*: mirrored copies, repeated as often as needed."""
    q = np.arange(padded) % (2 * size)
    return np.where(q < size, q, 2 * size - 1 - q)


def reflect_index(size: int, padded: int) -> NDArray[np.int64]:
    """As `mirror_index`, without repeating the edge; *padded* is below twice *size*."""
    place = np.arange(padded)
    return np.where(place < size, place, 2 * (size - 1) - place)


def padded_size(size: int, multiple: int = MULTIPLE) -> int:
    """*size* rounded up to a multiple of 16, or of *multiple*."""
    return -(-size // multiple) * multiple


def padded_tokens(size: tuple[int, int], multiple: int = MULTIPLE) -> int:
    """Pixels of an image of *size* (h, w) after padding, which are the network's tokens."""
    return padded_size(size[0], multiple) * padded_size(size[1], multiple)


def mirror_pad(image: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """Mirror *image* (H, W, ...) to the right and to the bottom up to *height* x *width*."""
    h, w = image.shape[:2]
    if h != height:
        image = image[mirror_index(h, height)]
    if w != width:
        image = image[:, mirror_index(w, width)]
    return image


def value_range(image: NDArray[Any]) -> tuple[float, float]:
    """The least and the largest value of *image*, NaN where it holds NaN. Warns where they are far outside [0, 1]."""
    low, high = float(image.min()), float(image.max())
    if -np.inf < low < -0.5 or 2 < high < np.inf:
        warnings.warn(
            f"the image's values go from {low:g} to {high:g}, but they should lie in [0, 1]: divide levels from 0 to "
            "255 by 255",
            stacklevel=3,
        )
    return low, high


def pixel_labels(rgb: NDArray[np.generic], colors: int = 8) -> NDArray[np.uint8]:
    """The label of every pixel of *rgb*, mirror-padded to multiples of 16.

    *rgb* is (H, W, 3), uint8 or float32 in [0, 1] (values outside are clamped). Returns uint8 (H', W').
    Raises ValueError for another shape or type, or for a number of colours that would not be exact. Warns of float32
    values far outside [0, 1].
    """
    check_options(colors, WINDOWS[0])
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"pixel_labels takes an image (H, W, 3) of at least 1x1, not {rgb.shape}")
    if rgb.dtype == np.uint8:
        pixels = rgb.astype(np.float32)
    elif rgb.dtype == np.float32:
        if np.isnan(value_range(rgb)).any():
            raise ValueError("the image holds NaN")
        pixels = np.floor(np.clip(rgb, 0.0, 1.0) * np.float32(255) + np.float32(0.5))
    else:
        raise ValueError(f"pixel_labels takes uint8 or float32 pixels, not {rgb.dtype}")
    h, w = rgb.shape[:2]
    weights, offsets = key_weights(colors)
    # One small fp32 matmul is the fastest exact way: all products and sums are integers below 2^24.
    keys = weights.astype(np.float32) @ pixels.reshape(-1, 3).T
    keys += offsets.astype(np.float32)[:, None]
    # The key ends in K-1-k, so the label follows from the largest key and no argmax over a short axis is needed.
    labels = (colors - 1 - keys.max(axis=0).astype(np.int32) % colors).astype(np.uint8).reshape(h, w)
    padded: NDArray[np.uint8] = mirror_pad(labels, padded_size(h), padded_size(w)).astype(np.uint8, copy=False)
    return padded


def _uniform_windows(labels: NDArray[np.uint8], window: int) -> NDArray[np.bool_]:
    """(H / window, W / window): which windows hold one label only."""
    h, w = labels.shape
    rows = labels.reshape(h // window, window, w)
    top, bottom = rows.max(axis=1), rows.min(axis=1)
    shape = (h // window, w // window, window)
    uniform: NDArray[np.bool_] = top.reshape(shape).max(axis=2) == bottom.reshape(shape).min(axis=2)
    return uniform


def mask_from_labels(labels: NDArray[np.uint8], window: int = 8, csmf: bool = True) -> NDArray[np.bool_]:
    """The pure pixels of a label map (H', W'), sides multiples of 16: those in a window of one label only.

    With *csmf* (cross-shift mask fusion) windows of the grid shifted by half a window count as well.
    """
    check_options(2, window)
    half = window // 2
    # Cells of half a window: a window of either grid covers 2x2 of them.
    cells = _uniform_windows(labels, window).repeat(2, axis=0).repeat(2, axis=1)
    if csmf and min(labels.shape) > window:
        shifted = _uniform_windows(labels[half:-half, half:-half], window)
        cells[1:-1, 1:-1] |= shifted.repeat(2, axis=0).repeat(2, axis=1)
    return cells.repeat(half, axis=0).repeat(half, axis=1)


def pure_mask(rgb: NDArray[np.generic], colors: int = 8, window: int = 8, csmf: bool = True) -> NDArray[np.bool_]:
    """Which pixels of *rgb*, mirror-padded to multiples of 16, are pure.

    *rgb* is (H, W, 3), uint8 or float32 in [0, 1]. Returns bool (H', W'), True = pure.
    """
    return mask_from_labels(pixel_labels(rgb, colors), window, csmf)
