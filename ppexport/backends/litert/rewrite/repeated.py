"""A tensor repeated along an axis.

Before:  x.expand(1, 1, h, w)        litert-torch 0.10 turns images to the layout NHWC, but not the shape of an expand
After:   x.repeat(1, 1, 1, w)        whose counts it turns with the image

Left as it is, what is expanded near a convolution has another axis repeated: the file is refused, or computes another
picture where height and width are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppexport.backends.litert.rewrite.rewritten import Run


def repeat(run: Run, x: Tensor, size: Sequence[int], *, implicit: bool = False) -> Tensor:
    """What `x.expand(size)` gives."""
    own = (1,) * (len(size) - x.dim()) + tuple(x.shape)
    return x.repeat(*(1 if side in (-1, length) else side for side, length in zip(size, own, strict=True)))
