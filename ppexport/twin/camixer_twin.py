"""The static twin of CAMixerSR for one LR size.

Before (networks/camixer/camixersr.py): windows are sorted by their score, and the hard ones are gathered from and
scattered into the batch of all windows.

After: k windows are few (16 at 64x64), so that the rank of each comes out of comparing all pairs, without Sort or TopK;
H, the number of hard ones, is a constant of the size:

    rank  = how many windows have a larger score, or an equal one and a smaller index      (k,)
    order = [0 ... k-1] scattered to rank                                                  (k,)
    mixed = where(rank < H, attention(windows[order[:H]])[min(rank, H - 1)], values * spatial)
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.device.mask import padded_size
from ppexport.networks.camixer.camixersr import CAMixerSR, ChannelNorm, GatedFFN, Mixer, MixerBlock, MixerGroup, Predictor
from ppexport.twin.blocks import merge, partition
from ppexport.twin.swinir_twin import reflect_index
from ppexport.twin.twin import StaticTwin


def rank_scores(scores: Tensor, windows: Tensor) -> Tensor:
    """(k,) int32: the rank of every window by descending *scores* (k,), ties by *windows* = 0 ... k - 1."""
    larger = scores.unsqueeze(0) > scores.unsqueeze(1)
    earlier = (scores.unsqueeze(0) == scores.unsqueeze(1)) & (windows.unsqueeze(0) < windows.unsqueeze(1))
    return (larger | earlier).float().sum(dim=1).to(torch.int32)


def image_windows(image: Tensor, window: int) -> Tensor:
    """(1, c, h, w) -> (k, window^2, c)."""
    return partition(image[0].permute(1, 2, 0), window, window)


class StaticMixer(nn.Module):
    """The content-aware mixer of one image."""

    def __init__(self, source: Mixer, padded: tuple[int, int], hard: int) -> None:
        super().__init__()
        self.window, self.padded, self.hard = source.window, padded, hard
        for name in ("project_v", "project_q", "project_k", "conv_sptial", "project_out"):
            setattr(self, name, copy.deepcopy(getattr(source, name)))
        route = source.route
        for name in ("in_conv", "out_offsets", "out_mask", "out_CA", "out_SA"):
            setattr(self, name, copy.deepcopy(getattr(route, name)))

    def forward(self, x: Tensor, condition: Tensor, grid: Tensor, windows: Tensor) -> Tensor:
        h, w = self.padded
        v = self.project_v(x)
        u = self.in_conv(torch.cat((v, condition), dim=1))
        offsets = 8 * torch.tanh(self.out_offsets(u))
        logits = self.out_mask(image_windows(u.mean(dim=1, keepdim=True), self.window).squeeze(-1))
        scores = logits[:, 0] - logits[:, 1]
        rank = rank_scores(scores, windows)
        order = windows.scatter(0, rank.long(), windows)
        step = torch.tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)])
        places = grid + offsets.permute(0, 2, 3, 1) * step
        keys = x + F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=True)
        values = image_windows(v, self.window)
        chosen = order[: self.hard]
        q, k = (image_windows(t, self.window).index_select(0, chosen) for t in (x, keys))
        weights = (self.project_q(q) @ self.project_k(k).transpose(1, 2)).softmax(dim=-1)
        attended = weights @ values.index_select(0, chosen)
        easy = values * image_windows(self.out_SA(u), self.window)
        last = torch.full((1,), self.hard - 1, dtype=torch.int32)
        mixed = torch.where((rank < self.hard).view(-1, 1, 1), attended.index_select(0, torch.minimum(rank, last)), easy)
        image = merge(mixed, self.window, self.window, self.padded).permute(2, 0, 1).unsqueeze(0)
        image = F.gelu(self.conv_sptial(image)) * self.out_CA(u) + image
        return self.project_out(image)


class StaticMixerBlock(nn.Module):
    def __init__(self, source: MixerBlock, padded, hard) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ffn = (copy.deepcopy(m) for m in (source.norm1, source.norm2, source.ffn))
        self.mixer = StaticMixer(source.mixer, padded, hard)

    def forward(self, x, condition, grid, windows):
        x = self.norm1(x + self.mixer(x, condition, grid, windows))
        return self.norm2(x + self.ffn(x))


class StaticMixerGroup(nn.Module):
    def __init__(self, source: MixerGroup, padded, hard) -> None:
        super().__init__()
        self.body = nn.ModuleList(StaticMixerBlock(block, padded, hard) for block in source.body)
        self.body_tail = copy.deepcopy(source.body_tail)

    def forward(self, x, condition, grid, windows):
        y = x
        for block in self.body:
            y = block(y, condition, grid, windows)
        return self.body_tail(y) + x


class CAMixerTwin(StaticTwin):
    """The twin of CAMixerSR."""

    def __init__(self, network: CAMixerSR, size: tuple[int, int]) -> None:
        window = network.config.window
        padded = height, width = padded_size(size[0], window), padded_size(size[1], window)
        super().__init__(network, size, padded, height * width, "portable")
        count = height * width // window**2
        hard = max(1, int(count * network.config.ratio))
        self.global_predictor, self.head = copy.deepcopy(network.global_predictor), copy.deepcopy(network.head)
        self.body = nn.ModuleList(StaticMixerGroup(group, padded, hard) for group in network.body)
        self.body_tail, self.tail = copy.deepcopy(network.body_tail), copy.deepcopy(network.tail)
        line = torch.linspace(-1, 1, window)
        self.register_buffer("line", line)
        self.register_buffer("windows", torch.arange(count, dtype=torch.int32))
        self.register_buffer("xs", torch.linspace(-1, 1, width))
        self.register_buffer("ys", torch.linspace(-1, 1, height))
        for name, sides in (("rows", (size[0], height)), ("columns", (size[1], width))):
            self.register_buffer(name, reflect_index(*sides))

    def pad(self, lr):
        if self.size[0] != self.padded[0]:
            lr = lr.index_select(2, self.rows)
        return lr if self.size[1] == self.padded[1] else lr.index_select(3, self.columns)

    def forward(self, lr, mask=None, slots=None, categories=None, trace=None):
        h, w = self.padded
        head = self.head(self.pad(lr))
        vertical = self.line.repeat(h // len(self.line)).view(1, 1, h, 1).expand(1, 1, h, w)
        horizontal = self.line.repeat(w // len(self.line)).view(1, 1, 1, w).expand(1, 1, h, w)
        condition = torch.cat((self.global_predictor(head), vertical, horizontal), dim=1)
        grid = torch.stack((self.xs.view(1, w).expand(h, w), self.ys.view(h, 1).expand(h, w)), dim=-1).unsqueeze(0)
        y = head
        for group in self.body:
            y = group(y, condition, grid, self.windows)
        sr = self.tail(self.body_tail(y) + head)
        return sr[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale], torch.zeros(1, dtype=torch.int32)
