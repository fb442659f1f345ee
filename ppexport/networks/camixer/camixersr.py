"""CAMixerSR (arXiv 2402.19289, CVPR 2024) with the module names of published checkpoints, made deterministic.

A block computes, on images x (b, c, h, w):

    x <- norm1(x + mixer(x));  x <- norm2(x + ffn(x))

The mixer attends within the hard windows of 16x16 and multiplies the values of the others by a spatial weight. As
published the number of hard windows depends on random noise, and their order on a softmax that saturates, so that many
windows tie. Here windows are ranked by the difference of the two logits, which is the same order without saturation,
ties by window index, and floor(ratio * windows) of them are hard, at least one.

PP-CAMixerSR has the same weights, but a window is hard unless enough of its pixels are pure (`pure_pass`): how many are
follows from the picture, and is known before the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ppexport.errors import present
from ppexport.networks.camixer import CAMixerConfig
from ppexport.networks.camixer.mixer import (
    ChannelNorm,
    Predictor,
    condition_of,
    from_windows,
    global_predictor,
    hardest,
    spatial_convolutions,
    to_windows,
)
from ppexport.networks.card import MaskOptions
from ppexport.networks.network import Network, Trace, pad
from ppexport.networks.pure_pass import PurePass, easy_windows


@dataclass
class Routing:
    """Which windows of one run attend: those that the mask says, else those that the scores of every block choose."""

    hard: Tensor | None
    """(b, k) bool, of all blocks."""
    forced: Iterator[Tensor] | None
    """For every block (b, k): 1 for the windows that attend, in place of its own choice."""
    trace: Trace | None
    """Filled with what every block chose and computed."""


class PPCAMixerOptions(MaskOptions):
    """Options of the mask, and the share of pure pixels that makes a window easy."""

    share: float = Field(default=1.0, gt=0, le=1, description="share of pure pixels that makes a window easy")


class CAMixerOptions(BaseModel):
    """The share of windows that attend; 0.5 is the published one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float = Field(default=0.5, gt=0, le=1, description="share of windows that attend, above 0 and at most 1")


def read_between(
    pixels: Tensor, columns: Tensor, rows: Tensor, size: tuple[int, int], start: Tensor | None = None
) -> Tensor:
    """Images, read bilinearly between their pixels, and at the border where a place is beyond it.

    As grid_sample with aligned corners, but without its detour through numbers from -1 to 1, which costs the places
    their last digits, and with operations that every runtime has.

    Args:
        pixels: (count, c), of all images.
        columns, rows: (m,), places in pixels.
        size: (h, w) of an image.
        start: (m,) int32, the first pixel of the image of every place; None for one image.

    Returns:
        (m, c).
    """
    h, w = size
    columns, rows = columns.clamp(0, w - 1), rows.clamp(0, h - 1)
    # The last pixel is read as the second of its pair, so that the pair is inside the image.
    left, top = columns.floor().clamp(max=max(w - 2, 0)), rows.floor().clamp(max=max(h - 2, 0))
    # Whole numbers, which are exact where floats are computed in fp16.
    first = top.to(torch.int32) * w + left.to(torch.int32)
    first = first if start is None else first + start
    right, down = int(w > 1), w * int(h > 1)
    x, y = (columns - left).unsqueeze(1), (rows - top).unsqueeze(1)
    upper = pixels.index_select(0, first) * (1 - x) + pixels.index_select(0, first + right) * x
    lower = pixels.index_select(0, first + down) * (1 - x) + pixels.index_select(0, first + (right + down)) * x
    return upper * (1 - y) + lower * y


class Mixer(nn.Module):
    """The content-aware mixer."""

    def __init__(self, config: CAMixerConfig, ratio: float) -> None:
        super().__init__()
        dim = config.dim
        self.window, self.ratio = config.window, ratio
        self.project_v = nn.Conv2d(dim, dim, 1)
        self.project_q = nn.Linear(dim, dim)
        self.project_k = nn.Linear(dim, dim)
        self.conv_sptial = spatial_convolutions(dim)
        self.project_out = nn.Conv2d(dim, dim, 1)
        self.route = Predictor(dim, config.window)

    def choose(self, scores: Tensor, routing: Routing) -> Tensor:
        """Which windows attend (b, k) bool, by their *scores* (b, k) where nothing else says so."""
        if routing.hard is not None:
            return routing.hard
        own = hardest(scores, self.ratio)
        if routing.trace is not None:
            routing.trace.categories.append(own.long())
            routing.trace.gaps.append(margins(scores, own))
        return own if routing.forced is None else next(routing.forced).bool()

    def forward(self, x: Tensor, condition: Tensor, routing: Routing) -> Tensor:
        """*x* (b, c, h, w) and what is known of every pixel, *condition* (b, 4, h, w) -> (b, c, h, w)."""
        h, w = x.shape[2:]
        v = self.project_v(x)
        offsets, channels, spatial, scores = self.route(torch.cat((v, condition), dim=1))
        hard, values = self.choose(scores, routing), to_windows(v, self.window)
        # Of all windows of the batch, those that attend.
        count, chosen = hard.shape[1], hard.flatten().nonzero().squeeze(1)

        def chosen_of(image: Tensor) -> Tensor:
            return to_windows(image, self.window).flatten(0, 1).index_select(0, chosen)

        read = chosen_of(x)
        across, down = torch.arange(w).expand(1, 1, h, w), torch.arange(h).view(-1, 1).expand(1, 1, h, w)
        places = chosen_of(present(offsets, "the predictor's offsets") + torch.cat((across, down), dim=1)).view(-1, 2)
        start = torch.div(chosen, count, rounding_mode="floor").int() * (h * w)
        pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        start = start.unsqueeze(1).expand(-1, self.window**2).flatten()
        between = read_between(pixels, places[:, 0], places[:, 1], (h, w), start).view(read.shape)
        logits = self.project_q(read) @ self.project_k(read + between).transpose(-1, -2)
        attended = logits.softmax(dim=-1) @ chosen_of(v)
        easy = values * to_windows(spatial, self.window)
        mixed = easy.flatten(0, 1).index_copy(0, chosen, attended).view(easy.shape)
        mixed = from_windows(mixed, self.window, h, w)
        mixed = F.gelu(self.conv_sptial(mixed)) * channels + mixed
        out: Tensor = self.project_out(mixed)
        return out


class GatedFFN(nn.Module):
    """Convolution 1x1 to twice the channels, depthwise 3x3, GELU(a) * b, convolution 1x1; no biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        out: Tensor = self.project_out(F.gelu(a) * b)
        return out


class MixerBlock(nn.Module):
    """Mixer and FFN, each with a residual connection and a norm behind it."""

    def __init__(self, config: CAMixerConfig, ratio: float) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(config.dim)
        self.mixer = Mixer(config, ratio)
        self.norm2 = ChannelNorm(config.dim)
        self.ffn = GatedFFN(config.dim)

    def forward(self, x: Tensor, condition: Tensor, routing: Routing) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        x = self.norm1(x + self.mixer(x, condition, routing))
        x = x + self.ffn(x)
        if routing.trace is not None:
            routing.trace.tokens.append(x)
        out: Tensor = self.norm2(x)
        return out


class MixerGroup(nn.Module):
    """Blocks, a 1x1 convolution and a residual connection."""

    def __init__(self, config: CAMixerConfig, depth: int, ratio: float) -> None:
        super().__init__()
        self.body = nn.ModuleList(MixerBlock(config, ratio) for _ in range(depth))
        self.body_tail = nn.Conv2d(config.dim, config.dim, 1)

    def forward(self, x: Tensor, condition: Tensor, routing: Routing) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        y = x
        for block in self.body:
            y = block(y, condition, routing)
        out: Tensor = self.body_tail(y) + x
        return out


def margins(scores: Tensor, own: Tensor) -> Tensor:
    """How far the *scores* (b, k) of windows are from those on the other side, which does or does not attend: (b, k).

    *own* (b, k) bool are the windows that attend. Infinite where all do.
    """
    worst = scores.masked_fill(~own, torch.inf).amin(dim=1, keepdim=True)
    best = scores.masked_fill(own, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(own, scores - best, worst - scores)


class CAMixerSR(Network):
    """CAMixerSR-S: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "camixersr"

    def __init__(self, scale: int, options: CAMixerOptions | PPCAMixerOptions | None = None) -> None:
        super().__init__(scale, options or CAMixerOptions())
        # With Pure-Pass no block chooses.
        self.ratio = self.options.ratio if isinstance(self.options, CAMixerOptions) else 1.0
        self.config = config = CAMixerConfig()
        dim = config.dim
        self.global_predictor = global_predictor(dim)
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.ModuleList(MixerGroup(config, depth, self.ratio) for depth in config.depths)
        self.body_tail = nn.Conv2d(dim, dim, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def hard_windows(self, padded: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which windows attend (b, k) bool, by the mask of the *padded* image; None where the weights choose."""
        if mask is not None:
            raise ValueError(f"{self.arch} takes no mask: load the weights as pp_camixersr")
        return None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """As `Network.forward`. A window's category is 1 where it attends, else 0."""
        h, w = x.shape[2:]
        padded = pad(x, self.layout)
        hard = self.hard_windows(padded, mask)
        if hard is not None and categories is not None:
            raise ValueError(f"{self.arch} takes no categories: its mask chooses")
        routing = Routing(hard, None if categories is None else iter(categories), trace)
        head = self.head(padded)
        condition = condition_of(self.global_predictor(head), self.config.window)
        y = head
        for group in self.body:
            y = group(y, condition, routing)
        out: Tensor = self.tail(self.body_tail(y) + head)
        return out[:, :, : h * self.scale, : w * self.scale]


class PPCAMixerSR(PurePass, CAMixerSR):
    """PP-CAMixerSR: CAMixerSR whose Pure-Pass mask chooses the windows that attend, in all blocks alike."""

    arch = "pp_camixersr"
    options: PPCAMixerOptions

    def __init__(self, scale: int, options: PPCAMixerOptions | None = None) -> None:
        super().__init__(scale, options or PPCAMixerOptions())

    def hard_windows(self, padded: Tensor, mask: Tensor | None) -> Tensor:
        """Which windows attend (b, k) bool, by the mask of the *padded* image (b, 3, H', W')."""
        pure = self.mask_of(padded, mask)
        return ~easy_windows(pure, self.config.window, share=self.options.share).flatten(1)
