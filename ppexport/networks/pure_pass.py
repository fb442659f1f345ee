"""Pure-Pass in PyTorch (arXiv 2510.01997): pixel classification, window mask and cross-shift mask fusion.

`ppexport.device.mask` says how the labels are defined and why they are equal in every runtime.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.device.centers import adaptive_centers
from ppexport.device.mask import check_options, color_centers, key_weights, least_pure
from ppexport.networks.card import MaskOptions
from ppexport.networks.network import Network, pad


def pixel_labels(image: Tensor, colors: int = 8, centres: str = "fixed") -> Tensor:
    """Label of every pixel of *image* (b, 3, H, W) in [0, 1]: int64 (b, H, W).

    *centres* are "fixed", or "adaptive", which every image of the batch chooses for itself.
    """
    check_options(colors, 8)
    # Float32 first: a half-precision image would not tell neighbouring 8-bit levels apart. Int32 keys: no TF32.
    pixels = (image.float().clamp(0, 1) * 255 + 0.5).floor().to(torch.int32)
    weights, offsets = (t.to(image.device) for t in _key_weights(pixels, colors, centres))
    keys = offsets[:, :, None, None]
    for c in range(3):
        keys = keys + weights[:, :, c, None, None] * pixels[:, c : c + 1]
    return keys.argmax(dim=1)


def _key_weights(pixels: Tensor, colors: int, centres: str) -> tuple[Tensor, Tensor]:
    """`key_weights` for *pixels* (b, 3, H, W) int32, on the CPU: (b, K, 3) and (b, K), or 1 for b where all share."""
    if centres == "fixed":
        chosen = [key_weights(color_centers(colors))]
    else:
        images = pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
        chosen = [key_weights(adaptive_centers(image, colors)) for image in images]
    weights, offsets = (torch.from_numpy(np.stack(kind)) for kind in zip(*chosen, strict=True))
    return weights, offsets


def _uniform(labels: Tensor, window: int) -> Tensor:
    """Pixels of *labels* (b, H, W) whose window holds one label only, (b, H, W) bool."""
    x = labels.float()
    cells = F.max_pool2d(x, window) == -F.max_pool2d(-x, window)
    return cells.repeat_interleave(window, dim=1).repeat_interleave(window, dim=2)


def mask_from_labels(labels: Tensor, window: int = 8, csmf: bool = True) -> Tensor:
    """Pure pixels of *labels* (b, H, W), sides multiples of *window*: bool (b, H, W)."""
    check_options(2, window)
    half = window // 2
    pure = _uniform(labels, window)
    if csmf and min(labels.shape[1:]) > window:
        pure = pure | F.pad(_uniform(labels[:, half:-half, half:-half], window), (half, half, half, half))
    return pure


def pure_mask(image: Tensor, colors: int = 8, window: int = 8, csmf: bool = True, centres: str = "fixed") -> Tensor:
    """Pure pixels of *image* (b, 3, H, W) in [0, 1], sides multiples of *window*: bool (b, H, W)."""
    return mask_from_labels(pixel_labels(image, colors, centres), window, csmf)


def easy_windows(pure: Tensor, window: int, shift: int = 0, share: float = 1.0) -> Tensor:
    """Which windows of the grid shifted by *shift* have at least *share* of their pixels *pure* (b, H, W).

    Windows that the shift cuts at the border are none: bool (b, H' / window, W' / window), of H' = H - 2 * shift.
    """
    inner = pure[:, shift : pure.shape[1] - shift, shift : pure.shape[2] - shift]
    b, h, w = inner.shape
    counts = inner.reshape(b, h // window, window, w // window, window).sum(dim=(2, 4))
    return counts >= least_pure(share, window * window)


def easy_pixels(pure: Tensor, window: int, shift: int) -> Tensor:
    """The pixels of the `easy_windows` of *pure* (b, H, W): bool (b, H, W)."""
    easy = easy_windows(pure, window, shift).repeat_interleave(window, dim=1).repeat_interleave(window, dim=2)
    return F.pad(easy, (shift, shift, shift, shift))


class PurePass(Network):
    """What all networks with a Pure-Pass mask have in common; the first base of each."""

    options: MaskOptions

    def mask_of(self, padded: Tensor, mask: Tensor | None) -> Tensor:
        """Pure pixels (b, H', W') bool of *padded* (b, 3, H', W'): the *mask* (b, H', W') if given.

        Raises ValueError for one of another shape.
        """
        b, _, h, w = padded.shape
        if mask is None:
            o = self.options
            return pure_mask(padded, o.colors, o.window, o.csmf, o.centres)
        if tuple(mask.shape) != (b, h, w):
            raise ValueError(f"the mask is (b, H', W') = {(b, h, w)} over the padded image, not {tuple(mask.shape)}")
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask is bool, True where a pixel is pure, not {mask.dtype}")
        return mask

    def pure_pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and pure pixels of the padded *x*."""
        labels = pixel_labels(pad(x, self.layout), self.options.colors, self.options.centres)
        return labels, mask_from_labels(labels, self.options.window, self.options.csmf)
