"""Pure-Pass in NumPy, for devices without torch (arXiv 2510.01997, "pixel classification" and "CSMF").

Every step is integer arithmetic that fp32 holds exactly, so that the labels and masks made here are equal, bit for
bit, to those of the PyTorch network and of every exported graph:

    P      = floor(255 * clamp(x, 0, 1) + 0.5)                the 8-bit pixel
    C_k    = round(255 * hsv_to_rgb(k / K, 0.9, 0.9))         K integer colour centres, or those of `adaptive_centers`
    score  = 2 * P . C_k - |C_k|^2                            the nearest centre has the largest score
    key    = score * K + (K - 1 - k)                          no two keys are equal; below 2^24 for K <= 16
    label  = argmax_k key

|score| is at most 3 * 255^2 and no partial sum exceeds twice that, whatever the centres are in [0, 255]: 16 times as
much is below 2^23. Of equal centres the first gives the label.
"""

from __future__ import annotations

import colorsys
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Tuple, Union

import numpy as np

from ppexport.device.centers import CENTRES, adaptive_centers, check_centers
from ppexport.errors import InputError

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray

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


def key_weights(centers: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Weights (K, 3) and offsets (K,) such that key_k = weights[k] . P + offsets[k], for integer *centers* (K, 3)."""
    colors, centers = len(centers), centers.astype(np.int64)
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


def mirror_pad(image: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """Mirror *image* (H, W, ...) to the right and to the bottom up to *height* x *width*."""
    h, w = image.shape[:2]
    if h != height:
        image = image[mirror_index(h, height)]
    if w != width:
        image = image[:, mirror_index(w, width)]
    return image


PADDINGS = {"mirror": mirror_index, "reflect": reflect_index}
"""Where a padded position reads along an axis, (size, padded) -> index (padded,): with the edge repeated, or not."""


@dataclass(frozen=True)
class Layout:
    """How a network pads its input, and what the Pure-Pass mask leaves out of its computation."""

    multiple: int = 16
    """The sides of the image are padded to multiples of this."""
    padding: str = "mirror"
    """One of `PADDINGS`."""
    group: int = 128
    """Slots come in multiples of this; 0 for a network that computes the same for every image."""
    # Tuple, because Python 3.8 evaluates the types of fields in `dataclasses.fields`' users.
    grids: Tuple[int, ...] = ()
    """Shifts of the grids of windows of *group* pixels that take slots as a whole; () where every pixel has its own."""

    @property
    def window(self) -> int:
        """Side of the windows of the *grids*."""
        return math.isqrt(self.group)

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (H', W') of an image of *size* (h, w) after padding."""
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return height, width

    def tokens(self, size: tuple[int, int]) -> int:
        """Pixels of an image of *size* (h, w) after padding, which are the network's tokens."""
        height, width = self.padded(size)
        return height * width

    def index(self, size: int, padded: int) -> NDArray[np.int64]:
        """Where each of *padded* positions reads along an axis of *size*.

        Raises InputError for too few pixels to reflect.
        """
        if self.padding == "reflect" and padded >= 2 * size:
            raise InputError(
                f"a side of {size} pixels is padded to {padded} by reflection, which needs more than half as many: use "
                f"{padded // 2 + 1} pixels or more"
            )
        return PADDINGS[self.padding](size, padded)

    def pad(self, image: NDArray[Any]) -> NDArray[Any]:
        """*image* (h, w, ...) padded to (H', W', ...)."""
        for axis, (side, padded) in enumerate(zip(image.shape[:2], self.padded(image.shape[:2]))):
            if side != padded:
                image = np.take(image, self.index(side, padded), axis=axis)
        return image

    def routed(self, pure: NDArray[np.bool_], share: float = 1.0) -> int:
        """Slots that an image needs, by its *pure* pixels (H', W'): its other pixels, or those of its hard windows.

        A window is easy where at least *share* of its pixels are pure. Of several grids the one with more hard windows
        counts; windows that a shift cuts at the border need no slots.
        """
        if not self.grids:
            return int(pure.size - np.count_nonzero(pure))
        side, hard = self.window, 0
        for shift in self.grids:
            inner = pure[shift : pure.shape[0] - shift, shift : pure.shape[1] - shift] if shift else pure
            rows, columns = inner.shape[0] // side, inner.shape[1] // side
            counts = inner.reshape(rows, side, columns, side).sum(axis=(1, 3))
            hard = max(hard, int(np.count_nonzero(counts < least_pure(share, self.group))))
        return hard * self.group


ATD_LAYOUT = Layout()
"""That of ATD-light, which the functions here and elsewhere take if none is given."""


def least_pure(share: float, pixels: int) -> int:
    """How many of the *pixels* of an easy window are pure at least, for a *share* in (0, 1]."""
    return int(np.ceil(share * pixels))


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


Centres = Union[str, "NDArray[np.integer[Any]]"]
"""One of `ppexport.device.centers.CENTRES`, or integer centres (K, 3) in [0, 255]."""


def levels(rgb: NDArray[Any]) -> NDArray[np.uint8]:
    """The 8-bit pixels of *rgb* (H, W, 3), uint8 or float32 in [0, 1] (values outside are clamped).

    Raises ValueError for another shape or type, or NaN. Warns of float32 values far outside [0, 1].
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"pixel_labels takes an image (H, W, 3) of at least 1x1, not {rgb.shape}")
    if rgb.dtype == np.uint8:
        return rgb
    if rgb.dtype != np.float32:
        raise ValueError(f"pixel_labels takes uint8 or float32 pixels, not {rgb.dtype}")
    if np.isnan(value_range(rgb)).any():
        raise ValueError("the image holds NaN")
    found: NDArray[np.uint8] = np.floor(np.clip(rgb, 0.0, 1.0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return found


def pixel_labels(
    rgb: NDArray[np.generic], colors: int = 8, layout: Layout = ATD_LAYOUT, centres: Centres = "fixed"
) -> NDArray[np.uint8]:
    """The label of every pixel of *rgb*, padded as *layout* says: mirrored up to multiples of 16 if left out.

    *rgb* is (H, W, 3), uint8 or float32 in [0, 1] (values outside are clamped). *centres* are "fixed"; "adaptive", the
    `adaptive_centers` of the padded image; or integers (K, 3) in [0, 255], such as those of the whole picture for its
    tiles, or of a video's last frame for the next. Returns uint8 (H', W').
    Raises ValueError for another shape or type, or for a number of colours that would not be exact. Warns of float32
    values far outside [0, 1].
    """
    check_options(colors, WINDOWS[0])
    pixels = levels(rgb)
    if not isinstance(centres, str):
        centers = check_centers(centres, colors)
    elif centres == "adaptive":
        centers = adaptive_centers(layout.pad(pixels), colors)
    elif centres == "fixed":
        centers = color_centers(colors)
    else:
        raise ValueError(f"centres are one of {', '.join(CENTRES)}, or an array (K, 3), not {centres!r}")
    h, w = rgb.shape[:2]
    weights, offsets = key_weights(centers)
    # One small fp32 matmul is the fastest exact way: all products and sums are integers below 2^24.
    keys = weights.astype(np.float32) @ pixels.reshape(-1, 3).astype(np.float32).T
    keys += offsets.astype(np.float32)[:, None]
    # The key ends in K-1-k, so the label follows from the largest key and no argmax over a short axis is needed.
    labels = (colors - 1 - keys.max(axis=0).astype(np.int32) % colors).astype(np.uint8).reshape(h, w)
    return layout.pad(labels)


def _uniform_windows(labels: NDArray[np.uint8], window: int) -> NDArray[np.bool_]:
    """(H / window, W / window): which windows hold one label only."""
    h, w = labels.shape
    rows = labels.reshape(h // window, window, w)
    top, bottom = rows.max(axis=1), rows.min(axis=1)
    shape = (h // window, w // window, window)
    uniform: NDArray[np.bool_] = top.reshape(shape).max(axis=2) == bottom.reshape(shape).min(axis=2)
    return uniform


def mask_from_labels(labels: NDArray[np.uint8], window: int = 8, csmf: bool = True) -> NDArray[np.bool_]:
    """The pure pixels of a label map (H', W'), sides multiples of *window*: those in a window of one label only.

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


def pure_mask(
    rgb: NDArray[np.generic],
    colors: int = 8,
    window: int = 8,
    csmf: bool = True,
    layout: Layout = ATD_LAYOUT,
    centres: Centres = "fixed",
) -> NDArray[np.bool_]:
    """Which pixels of *rgb*, padded as *layout* says, are pure: mirrored up to multiples of 16 if left out.

    *rgb* is (H, W, 3), uint8 or float32 in [0, 1], and *centres* are as in `pixel_labels`. Returns bool (H', W'),
    True = pure.
    """
    return mask_from_labels(pixel_labels(rgb, colors, layout, centres), window, csmf)
