"""The convolutional parts of networks of the ATD family: feed-forward, residual connections and upsamplers.

Module and parameter names are those of published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.atd.config import FEATURES, AtdConfig, shuffle_steps

SLOPE = 0.2
"""Of every LeakyReLU but the one in `conv_before_upsample`, which has PyTorch's own, 0.01."""


class DepthwiseConv(nn.Module):
    """GELU(depthwise convolution) of tokens laid out as an image."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.depthwise_conv = nn.Sequential(conv, nn.GELU())

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        b, _, c = x.shape
        image = x.transpose(1, 2).reshape(b, c, *size)
        out: Tensor = self.depthwise_conv(image)
        return out.flatten(2).transpose(1, 2)


class ConvFFN(nn.Module):
    """Linear, GELU, plus GELU(depthwise convolution), Linear. In version 2 *extra* channels come between the two."""

    def __init__(self, dim: int, hidden: int, kernel: int, extra: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden + extra, kernel)
        self.fc2 = nn.Linear(hidden + extra, dim)

    def forward(self, x: Tensor, size: tuple[int, int], extra: Tensor | None) -> Tensor:
        """Tokens (b, n, c), and *extra* (b, n, e) -> tokens (b, n, c)."""
        x = F.gelu(self.fc1(x))
        if extra is not None:
            x = torch.cat((x, extra), dim=-1)
        out: Tensor = self.fc2(x + self.dwconv(x, size))
        return out


class LeakyConv(nn.Conv2d):
    """LeakyReLU(convolution 3x3) of images (b, c, h, w)."""

    def __init__(self) -> None:
        super().__init__(FEATURES, FEATURES, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        return F.leaky_relu(super().forward(input), SLOPE)


class DoublingConv(LeakyConv):
    """The same of an image that nearest-neighbour interpolation has made twice as large."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, 2h, 2w)."""
        return super().forward(F.interpolate(input, scale_factor=2, mode="nearest"))


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that keeps the size of an image."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def residual_convolution(config: AtdConfig) -> nn.Module:
    """The convolution in front of a residual connection, or the three of 3conv, through a quarter of the channels."""
    dim, quarter = config.dim, config.dim // 4
    if config.residual == "1conv":
        return conv3x3(dim, dim)
    return nn.Sequential(
        conv3x3(dim, quarter),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(quarter, quarter, 1),
        nn.LeakyReLU(SLOPE),
        conv3x3(quarter, dim),
    )


def upsampler(config: AtdConfig, scale: int) -> dict[str, nn.Module]:
    """{name: module} from the features (b, c, h, w) to the picture without its mean, in the order in which they run."""
    if config.upsampler == "pixelshuffledirect":
        return {"upsample": nn.Sequential(conv3x3(config.dim, 3 * scale**2), nn.PixelShuffle(scale))}
    modules: dict[str, nn.Module] = {
        "conv_before_upsample": nn.Sequential(conv3x3(config.dim, FEATURES), nn.LeakyReLU())
    }
    if config.upsampler == "pixelshuffle":
        steps = [(conv3x3(FEATURES, FEATURES * s * s), nn.PixelShuffle(s)) for s in shuffle_steps(scale)]
        modules["upsample"] = nn.Sequential(*(module for step in steps for module in step))
    else:
        modules |= {"conv_up1": DoublingConv(), "conv_up2": DoublingConv(), "conv_hr": LeakyConv()}
    return {**modules, "conv_last": conv3x3(FEATURES, 3)}
