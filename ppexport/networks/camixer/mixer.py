"""The parts of a content-aware mixer: what it knows of every pixel, what chooses its windows, and its convolutions.

Images are (b, c, h, w), windows (b, k, window^2, c); k counts the windows row by row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.camixer import hard_windows, predictor_channels

SLOPE = 0.1


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of an image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        out = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return out.permute(0, 3, 1, 2)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Image (b, c, h, w) -> windows (b, h/window * w/window, window^2, c)."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // window, window, w // window, window).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, -1, window * window, c)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Windows (b, k, window^2, c) -> image (b, c, h, w)."""
    b, _, _, c = windows.shape
    x = windows.view(b, height // window, width // window, window, window, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, height, width)


def places_in_windows(height: int, width: int, window: int) -> Tensor:
    """(1, 2, h, w): row and column of every pixel inside its window, from -1 to 1."""
    line = torch.linspace(-1, 1, window)
    return torch.stack(torch.meshgrid(line, line, indexing="ij")).repeat(1, height // window, width // window)[None]


def global_predictor(dim: int) -> nn.Sequential:
    """What tells two channels of every pixel, of the first convolution's output (b, c, h, w)."""
    return nn.Sequential(nn.Conv2d(dim, 8, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(8, 2, 3, padding=1), nn.LeakyReLU(SLOPE))


def condition_of(predicted: Tensor, window: int) -> Tensor:
    """What all mixers know of every pixel (b, 4, h, w): what the global predictor says (b, 2, h, w), and its place."""
    places = places_in_windows(predicted.shape[2], predicted.shape[3], window)
    return torch.cat((predicted, places.expand(len(predicted), -1, -1, -1)), dim=1)


def spatial_convolutions(dim: int) -> nn.Sequential:
    """Two depthwise convolutions of 3x3, the second with dilation 2."""
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 3, padding=2, groups=dim, dilation=2)
    )


def hardest(scores: Tensor, ratio: float) -> Tensor:
    """The windows (b, k) bool of the largest *scores* (b, k), ties by index, as many as *ratio* says."""
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : hard_windows(scores.shape[1], ratio)]
    # Of numbers, since torch's tracer knows no scatter of a bool.
    return torch.zeros_like(scores).scatter(1, chosen, 1.0) > 0


class Predictor(nn.Module):
    """What the mixer reads off a condition (b, c + 4, h, w): offsets, channel and spatial weights, window scores."""

    def __init__(self, dim: int, window: int, warps: bool = True) -> None:
        """*warps*: whether keys are read at offsets."""
        super().__init__()
        inner = predictor_channels(dim)
        self.window = window
        self.in_conv = nn.Sequential(nn.Conv2d(dim + 4, inner, 1), ChannelNorm(inner), nn.LeakyReLU(SLOPE))
        self.out_offsets = (
            nn.Sequential(nn.Conv2d(inner, inner // 2, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(inner // 2, 2, 1))
            if warps
            else None
        )
        self.out_mask = nn.Sequential(nn.Linear(window**2, window), nn.LeakyReLU(SLOPE), nn.Linear(window, 2))
        self.out_CA = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, dim, 1), nn.Sigmoid())
        self.out_SA = nn.Sequential(nn.Conv2d(inner, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, condition: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Offsets (b, 2, h, w) or None, channel weights (b, c, 1, 1), spatial weights (b, 1, h, w), scores (b, k)."""
        u = self.in_conv(condition)
        offsets = None if self.out_offsets is None else 8 * torch.tanh(self.out_offsets(u))
        windows = to_windows(u.mean(dim=1, keepdim=True), self.window).squeeze(-1)
        logits = self.out_mask(windows)
        return offsets, self.out_CA(u), self.out_SA(u), logits[..., 0] - logits[..., 1]
