"""The static twin of CAMixerSR for one LR size.

Before (networks/camixer/camixersr.py): windows are sorted by their score, and the hard ones are gathered from and
scattered into all windows.

After: k windows are few (16 at 64x64), so that the rank of each comes out of comparing all pairs, without Sort or TopK;
H, the number of hard ones, is a constant of the size:

    rank  = how many windows have a larger score, or an equal one and a smaller index      (k,)
    order = 0 ... k - 1, scattered to rank                                                 (k,)
    mixed = where(rank < H, attention(windows[order[:H]])[min(rank, H - 1)], values * spatial)

Keys are read at places between the pixels, and only those of hard windows are used. So they alone are read, by four
gathers of pixels, which every runtime has, where grid_sample is known to few.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.errors import TwinError
from ppexport.networks.camixer import hard_windows
from ppexport.networks.camixer.camixersr import CAMixerSR, Mixer, MixerBlock, MixerGroup, Predictor, places_in_windows
from ppexport.networks.network import Network, Trace
from ppexport.twin.blocks import merge, partition
from ppexport.twin.twin import StaticTwin


class Given:
    """What all blocks of one run share."""

    def __init__(self, condition: Tensor, pixels: Tensor, windows: Tensor) -> None:
        self.condition = condition
        """(1, 4, h, w): what the global predictor says, and every pixel's place in its window."""
        self.pixels = pixels
        """(1, 2, h, w): column and row of every pixel."""
        self.windows = windows
        """(k,) int32: 0 ... k - 1."""


def rank_scores(scores: Tensor, windows: Tensor) -> Tensor:
    """(k,) int32: the rank of every window by descending *scores* (k,), ties by *windows* = 0 ... k - 1."""
    larger = scores.unsqueeze(0) > scores.unsqueeze(1)
    earlier = torch.logical_and(scores.unsqueeze(0) == scores.unsqueeze(1), windows.unsqueeze(0) < windows.unsqueeze(1))
    return torch.logical_or(larger, earlier).float().sum(dim=1).to(torch.int32)


def image_windows(image: Tensor, window: int) -> Tensor:
    """(1, c, h, w) -> (k, window^2, c)."""
    return partition(image[0].permute(1, 2, 0), window, window)


def read_between(image: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """*image* (1, c, h, w), read bilinearly at *columns* and *rows* (m,) in pixels, at the border where they are beyond
    it -> (m, c)."""
    c, h, w = image.shape[1:]
    pixels = image.view(c, h * w).transpose(0, 1)
    columns, rows = columns.clamp(0, w - 1), rows.clamp(0, h - 1)
    # The last pixel is read as the second of its pair, so that the pair is inside the image.
    left, top = columns.floor().clamp(max=max(w - 2, 0)), rows.floor().clamp(max=max(h - 2, 0))
    first = (top * w + left).to(torch.int32)
    right, down = int(w > 1), w * int(h > 1)
    x, y = (columns - left).unsqueeze(1), (rows - top).unsqueeze(1)
    upper = pixels.index_select(0, first) * (1 - x) + pixels.index_select(0, first + right) * x
    lower = pixels.index_select(0, first + down) * (1 - x) + pixels.index_select(0, first + (right + down)) * x
    return upper * (1 - y) + lower * y


class PictureMean(nn.Module):
    """What AdaptiveAvgPool2d(1) computes, in operations that Core AI knows."""

    def forward(self, x: Tensor) -> Tensor:
        """(1, c, h, w) -> (1, c, 1, 1)."""
        return x.flatten(2).mean(dim=2, keepdim=True).unsqueeze(-1)


class StaticPredictor(nn.Module):
    """What the mixer reads off a condition, for one image."""

    def __init__(self, source: Predictor) -> None:
        super().__init__()
        self.window = source.window
        self.in_conv, self.out_offsets = copy.deepcopy(source.in_conv), copy.deepcopy(source.out_offsets)
        self.out_mask = copy.deepcopy(source.out_mask)
        self.out_CA, self.out_SA = copy.deepcopy(source.out_CA), copy.deepcopy(source.out_SA)
        self.out_CA[0] = PictureMean()

    def forward(self, condition: Tensor, windows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Offsets (1, 2, h, w), channel weights (1, c, 1, 1), spatial weights (1, 1, h, w), ranks (k,) int32."""
        u = self.in_conv(condition)
        logits = self.out_mask(image_windows(u.mean(dim=1, keepdim=True), self.window).squeeze(-1))
        ranks = rank_scores(logits[:, 0] - logits[:, 1], windows)
        return 8 * torch.tanh(self.out_offsets(u)), self.out_CA(u), self.out_SA(u), ranks


class StaticMixer(nn.Module):
    """The content-aware mixer of one image with *hard* windows."""

    last: Tensor

    def __init__(self, source: Mixer, padded: tuple[int, int], hard: int) -> None:
        super().__init__()
        self.window, self.padded, self.hard = source.window, padded, hard
        self.project_v, self.project_out = copy.deepcopy(source.project_v), copy.deepcopy(source.project_out)
        self.project_q, self.project_k = copy.deepcopy(source.project_q), copy.deepcopy(source.project_k)
        self.conv_sptial = copy.deepcopy(source.conv_sptial)
        self.route = StaticPredictor(source.route)
        self.register_buffer("last", torch.tensor([hard - 1], dtype=torch.int32))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """(1, c, h, w) -> (1, c, h, w)."""
        v = self.project_v(x)
        offsets, channels, spatial, rank = self.route(torch.cat((v, given.condition), dim=1), given.windows)
        values = image_windows(v, self.window)
        chosen = given.windows.scatter(0, rank.long(), given.windows)[: self.hard]
        read = image_windows(x, self.window).index_select(0, chosen)
        places = image_windows(given.pixels + offsets, self.window).index_select(0, chosen).view(-1, 2)
        between = read_between(x, places[:, 0], places[:, 1])
        q, k = self.project_q(read), self.project_k(read + between.view(read.shape))
        attended = (q @ k.transpose(1, 2)).softmax(dim=-1) @ values.index_select(0, chosen)
        attends = (rank <= self.last).view(-1, 1, 1)
        easy = values * image_windows(spatial, self.window)
        mixed = torch.where(attends, attended.index_select(0, torch.minimum(rank, self.last)), easy)
        image = merge(mixed, self.window, self.window, self.padded).permute(2, 0, 1).unsqueeze(0)
        out: Tensor = self.project_out(F.gelu(self.conv_sptial(image)) * channels + image)
        return out


class StaticMixerBlock(nn.Module):
    """Mixer and FFN, each with a residual connection and a norm behind it."""

    def __init__(self, source: MixerBlock, padded: tuple[int, int], hard: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ffn = (copy.deepcopy(m) for m in (source.norm1, source.norm2, source.ffn))
        self.mixer = StaticMixer(source.mixer, padded, hard)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """(1, c, h, w) -> (1, c, h, w)."""
        x = self.norm1(x + self.mixer(x, given))
        out: Tensor = self.norm2(x + self.ffn(x))
        return out


class StaticMixerGroup(nn.Module):
    """Blocks, a 1x1 convolution and a residual connection."""

    def __init__(self, source: MixerGroup, padded: tuple[int, int], hard: int) -> None:
        super().__init__()
        blocks = [block for block in source.body if isinstance(block, MixerBlock)]
        self.body = nn.ModuleList(StaticMixerBlock(block, padded, hard) for block in blocks)
        self.body_tail = copy.deepcopy(source.body_tail)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """(1, c, h, w) -> (1, c, h, w)."""
        y = x
        for block in self.body:
            y = block(y, given)
        out: Tensor = self.body_tail(y) + x
        return out


class CAMixerTwin(StaticTwin):
    """The twin of CAMixerSR."""

    windows: Tensor
    within_rows: Tensor
    within_columns: Tensor
    across: Tensor
    down: Tensor

    def __init__(self, network: CAMixerSR, size: tuple[int, int]) -> None:
        window = network.config.window
        super().__init__(network, size, None, "portable")
        padded = height, width = self.padded
        count = self.tokens // window**2
        hard = hard_windows(count, network.options.ratio)
        self.head, self.tail = copy.deepcopy(network.head), copy.deepcopy(network.tail)
        self.global_predictor = copy.deepcopy(network.global_predictor)
        groups = [group for group in network.body if isinstance(group, MixerGroup)]
        self.body = nn.ModuleList(StaticMixerGroup(group, padded, hard) for group in groups)
        self.body_tail = copy.deepcopy(network.body_tail)
        self.register_buffer("windows", torch.arange(count, dtype=torch.int32))
        self.register_buffer("within_rows", places_in_windows(height, window, window)[0, 0, :, 0].clone())
        self.register_buffer("within_columns", places_in_windows(window, width, window)[0, 1, 0].clone())
        self.register_buffer("across", torch.arange(width).float())
        self.register_buffer("down", torch.arange(height).float())

    def forward(
        self,
        lr: Tensor,
        mask: Tensor | None = None,
        slots: Tensor | None = None,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `StaticTwin.forward`. The weights choose the windows: *mask*, *slots* and *categories* must be None."""
        self.check(lr, mask, slots, categories)
        h, w = self.padded
        head = self.head(self.pad(lr))
        # Repeated in the graph, so that no file holds a constant that grows with the image.
        within = [self.within_rows.view(1, 1, h, 1).expand(1, 1, h, w), self.within_columns.expand(1, 1, h, w)]
        condition = torch.cat((self.global_predictor(head), *within), dim=1)
        pixels = torch.cat((self.across.expand(1, 1, h, w), self.down.view(1, 1, h, 1).expand(1, 1, h, w)), dim=1)
        y, given = head, Given(condition, pixels, self.windows)
        for group in self.body:
            y = group(y, given)
        sr = self.tail(self.body_tail(y) + head)[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale]
        return sr, torch.zeros(1, dtype=torch.int32)


def make_camixer_twin(network: Network, size: tuple[int, int], capacity: int | None, flavour: str) -> CAMixerTwin:
    """The twin of *network*, as `make_twin`; *size* is checked."""
    if not isinstance(network, CAMixerSR):
        raise TwinError(f"no static rewrite is known for {type(network).__name__}: use camixersr")
    return CAMixerTwin(network, size).eval()
