"""Enlarges a whole picture with what only enlarges colours: transparency, and edges that continue at the other side.

PP-ATD-light x2 in tiles of 64x64, on six shapes drawn at 192x192 and halved, against the shapes. The network is better
wherever alpha has edges; on soft shadows both are so good that nobody sees the difference:

    PSNR of alpha, dB   text    disc    stars   hairs   leaves  soft shadow
    by the network      24.91   35.60   33.33   21.81   22.42   54.64
    bicubic             21.67   27.73   25.77   18.54   16.23   55.97

The same on textures of soft noise without a seam, cut at two places half a picture apart, and with different numbers of
pixels from the opposite side: the mean difference of both results, in levels, within four pixels of the cuts and, in
brackets, elsewhere, which tiles cause. Four pixels are enough; 16 leave windows where they lie without wrapping:

    context    0             4             8             16            32
    80x80      4.98 (1.30)   1.21 (1.25)   1.14 (1.22)   1.15 (1.29)   1.18 (1.10)
    40x40      5.13 (1.74)   1.59 (1.54)   1.53 (1.62)   1.14 (1.15)   1.40 (1.48)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ppexport.errors import InputError
from ppexport.imaging.pixels import Picture, Pixels, opaque
from ppexport.imaging.writing import as_levels, luma

Run = Callable[[Pixels, int], NDArray[Any]]
"""(rgb (H, W, 3), uint8 or float32 in [0, 1], depth 8 or 16) -> levels (H * scale, W * scale, 3) of that depth."""
WRAP_CONTEXT = 16
"""Pixels (LR) that a picture is continued by on each side that wraps around; the module's table says why."""
ALPHAS = ("network", "bicubic")
WRAPS = ("x", "y", "xy")


@dataclass(frozen=True)
class EnlargeOptions:
    """How a picture is enlarged beside its colours. Raises InputError for a choice that does not exist."""

    alpha: str = "network"
    """What enlarges transparency: the network, as a grey picture, or Pillow's bicubic filter."""
    wrap: str = ""
    """Where the picture continues at its opposite edge: from left to right ("x"), top to bottom ("y"), both ("xy")."""

    def __post_init__(self) -> None:
        if self.alpha not in ALPHAS:
            raise InputError(f"--alpha is one of {', '.join(ALPHAS)}, not {self.alpha}")
        if self.wrap not in ("", *WRAPS):
            raise InputError(f"--wrap is one of {', '.join(WRAPS)}, not {self.wrap}")


_DEFAULT = EnlargeOptions()


def enlarge(picture: Picture, run: Run, scale: int, options: EnlargeOptions = _DEFAULT, depth: int = 8) -> Picture:
    """*picture*, *scale* times as large, in levels of *depth* bits; all that belongs to it is passed on.

    *run* gets the colours, in which visible ones have bled into invisible pixels, and then the alpha, unless that is
    the same everywhere or is enlarged otherwise. The result's alpha is straight: its colours are not multiplied by it.
    """
    rgb = _run_wrapped(picture.bled, run, scale, options.wrap, depth)
    return replace(picture, rgb=rgb, alpha=_enlarged_alpha(picture, run, scale, options, depth), frames=None)


def runs_of(picture: Picture, options: EnlargeOptions = _DEFAULT) -> list[tuple[int, int]]:
    """The sizes (H, W) of what `enlarge` calls *run* with, in its order."""
    height, width = picture.size
    size = (
        height + 2 * WRAP_CONTEXT * ("y" in options.wrap),
        width + 2 * WRAP_CONTEXT * ("x" in options.wrap),
    )
    return [size] * (2 if _alpha_by_network(picture, options) else 1)


def _alpha_by_network(picture: Picture, options: EnlargeOptions) -> bool:
    alpha = picture.alpha
    return alpha is not None and options.alpha == "network" and bool((alpha != alpha.flat[0]).any())


def _enlarged_alpha(picture: Picture, run: Run, scale: int, options: EnlargeOptions, depth: int) -> Pixels | None:
    alpha = picture.alpha
    if alpha is None:
        return None
    kind = np.dtype(np.uint8 if depth == 8 else np.uint16)
    if (alpha == alpha.flat[0]).all():
        height, width = (side * scale for side in alpha.shape)
        return np.full((height, width), as_levels(alpha[:1, :1], kind)[0, 0])
    extended = _continued(alpha, options.wrap)
    if options.alpha == "network":
        grey = np.broadcast_to(extended[..., None], (*extended.shape, 3))
        large = _settled(luma(run(grey, depth))[..., 0], extended, scale)
    else:
        image = Image.fromarray(extended if depth == 8 and extended.dtype == np.uint8 else extended.astype(np.float32))
        size = extended.shape[1] * scale, extended.shape[0] * scale
        large = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        if large.dtype != np.uint8:
            large = large / np.float32(opaque(alpha.dtype))
    return as_levels(_inner(large, options.wrap, scale), kind)


def _settled(large: Pixels, alpha: Pixels, scale: int) -> Pixels:
    """The enlarged *alpha* with exactly nothing, and exactly everything, where all pixels within two are so.

    A network is off by a level where nothing happens, and the eye finds a haze over the whole of a clear ground.
    """
    for value, wanted in ((0.0, 0.0), (opaque(alpha.dtype), opaque(large.dtype))):
        other = Image.fromarray((alpha != value).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
        still = np.asarray(other).repeat(scale, axis=0).repeat(scale, axis=1) == 0
        large = np.where(still, large.dtype.type(wanted), large)
    return large


def _run_wrapped(rgb: Pixels, run: Run, scale: int, wrap: str, depth: int) -> NDArray[Any]:
    return _inner(run(_continued(rgb, wrap), depth), wrap, scale)


def _continued(values: Pixels, wrap: str) -> Pixels:
    """(H, W, ...) with what lies at the opposite edge beyond each edge that wraps around, several times if need be."""
    for axis, name in ((0, "y"), (1, "x")):
        if name in wrap:
            places = np.arange(-WRAP_CONTEXT, values.shape[axis] + WRAP_CONTEXT) % values.shape[axis]
            values = np.take(values, places, axis=axis)
    return values


def _inner(values: NDArray[Any], wrap: str, scale: int) -> NDArray[Any]:
    """What `_continued` was given, enlarged: a view without the parts beyond the edges."""
    if not wrap:
        # As it is, since a large result may be no array but rows that are still to come.
        return values
    border = WRAP_CONTEXT * scale
    rows, columns = (slice(border, -border) if name in wrap else slice(None) for name in "yx")
    return values[rows, columns]
