"""Colour centres of Pure-Pass that are chosen from the image, by arithmetic that is the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray

CENTRES = ("fixed", "adaptive")
"""Where the colour centres come from: the colour circle, or the image."""
LEVEL_BITS = 4
"""Bits of every channel by which `adaptive_centers` counts colours."""
STEPS = 8
"""Times that `adaptive_centers` moves its centres."""


def adaptive_centers(pixels: NDArray[np.uint8], colors: int = 8) -> NDArray[np.int32]:
    """The (K, 3) integer centres of the *colors* main colours of *pixels*, uint8 (H, W, 3).

    k-means in integers: the same centres on every machine, whatever the order of the pixels. Colours are counted in
    boxes of 16 levels a channel, each of which stands at its middle. The fullest box is the first centre; the next is
    the box whose count times squared distance to the nearest centre is largest, and so on. Then every centre moves
    8 times to the mean of the boxes nearest to it, halves rounded up, and stays where no box is. Ties go to the lowest
    box, in the order of red, green and blue, and to the lowest centre. An image of fewer than K boxes has equal
    centres.

    Raises ValueError for another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"adaptive_centers takes uint8 pixels (H, W, 3), not {pixels.dtype} {pixels.shape}")
    width = 8 - LEVEL_BITS
    red, green, blue = (pixels[:, :, channel].ravel().astype(np.uint16) >> width for channel in range(3))
    counts = np.bincount((red << 2 * LEVEL_BITS) | (green << LEVEL_BITS) | blue)
    used = np.flatnonzero(counts)
    # 64 bits everywhere, which a picture of 10^12 pixels would not exceed.
    counts = counts[used].astype(np.int64)
    digits = [(used >> LEVEL_BITS * place) & ((1 << LEVEL_BITS) - 1) for place in (2, 1, 0)]
    boxes = (np.stack(digits, axis=1).astype(np.int64) << width) + (1 << width - 1)
    chosen = [int(counts.argmax())]
    distance = ((boxes - boxes[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < colors:
        chosen.append(int((counts * distance).argmax()))
        distance = np.minimum(distance, ((boxes - boxes[chosen[-1]]) ** 2).sum(axis=1))
    centers = boxes[chosen]
    for _ in range(STEPS):
        nearest = (2 * (boxes[:, None] * centers).sum(axis=2) - (centers**2).sum(axis=1)).argmax(axis=1)
        members = counts[:, None] * (nearest[:, None] == np.arange(colors))
        total = members.sum(axis=0)[:, None]
        sums = (members[:, :, None] * boxes[:, None]).sum(axis=0)
        centers = np.where(total > 0, (2 * sums + total) // np.maximum(2 * total, 1), centers)
    return centers.astype(np.int32)


def check_centers(centers: NDArray[Any], colors: int) -> NDArray[np.integer[Any]]:
    """*centers*. Raises ValueError unless they are integers (K, 3) in [0, 255] for K *colors*."""
    right = isinstance(centers, np.ndarray) and centers.shape == (colors, 3) and centers.dtype.kind in "iu"
    if not right or centers.min() < 0 or centers.max() > 255:
        got = f"{centers.dtype} {centers.shape}: {centers}" if isinstance(centers, np.ndarray) else repr(centers)
        raise ValueError(f"centres are {colors}x3 integers from 0 to 255, not {got}")
    return centers
