"""Enlarging images, and trading channels for pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.coreml.evaluator.registry import operation
from ppexport.errors import ArtifactError


@operation
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """x (n, c r r, h, w) -> (n, c, h r, w r)."""
    return F.pixel_shuffle(x, upscale_factor)


@operation
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """x (n, c, h r, w r) -> (n, c r r, h, w)."""
    return F.pixel_unshuffle(x, downscale_factor)


@operation
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """x (n, r r c, h, w) -> (n, c, h r, w r), the place within a block being the slower index."""
    n, channels, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, channels // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block_size, w * block_size)


@operation
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of `depth_to_space`."""
    n, channels, h, w = x.shape
    blocks = x.reshape(n, channels, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // block_size, w // block_size)


@operation
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """x (n, c, h, w) with pixels repeated."""
    return F.interpolate(x, scale_factor=(scale_factor_height, scale_factor_width), mode="nearest")


@operation
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """x (n, c, h, w) interpolated; the corners' centres stay, or the corners."""
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ArtifactError("upsample_bilinear without half_pixel_centers and without align_corners is not known here")
    size = [int(n * f) for n, f in zip(x.shape[2:], (scale_factor_height, scale_factor_width), strict=True)]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


@operation
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """x (n, c, h, w) interpolated to a size."""
    modes = {"UNALIGN_CORNERS": False, "STRICT_ALIGN_CORNERS": True}
    if sampling_mode not in modes:
        raise ArtifactError(f"resize_bilinear with sampling_mode {sampling_mode!r} is not known here")
    size = (target_size_height, target_size_width)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=modes[sampling_mode])


@operation
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """x (n, c, h, w) with pixels repeated or left out, to a size."""
    return F.interpolate(x, size=(target_size_height, target_size_width), mode="nearest")
