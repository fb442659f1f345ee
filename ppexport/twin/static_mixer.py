"""The parts of a content-aware mixer in a twin.

Before (networks/camixer/mixer.py): windows are sorted by their score.

After: k windows are few (16 at 64x64), so that the rank of each comes out of comparing all pairs, without Sort or TopK;
H, the number of hard ones, is a constant of the size:

    rank    = how many windows have a larger score, or an equal one and a smaller index     (k,)
    attends = rank < H                                                                      (k,)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ppexport.networks.camixer.mixer import Predictor, places_in_windows
from ppexport.twin.blocks import partition


class Places(nn.Module):
    """What all mixers know of every pixel: what the global predictor says, and its place in its window."""

    within_rows: Tensor
    within_columns: Tensor

    def __init__(self, size: tuple[int, int], window: int) -> None:
        super().__init__()
        height, width = self.size = size
        self.register_buffer("within_rows", places_in_windows(height, window, window)[0, 0, :, 0].clone())
        self.register_buffer("within_columns", places_in_windows(window, width, window)[0, 1, 0].clone())

    def forward(self, predicted: Tensor) -> Tensor:
        """(1, 2, h, w) -> (1, 4, h, w)."""
        h, w = self.size
        # Repeated in the graph, so that no file holds a constant that grows with the image.
        within = [self.within_rows.view(1, 1, h, 1).expand(1, 1, h, w), self.within_columns.expand(1, 1, h, w)]
        return torch.cat((predicted, *within), dim=1)


def rank_scores(scores: Tensor, windows: Tensor) -> Tensor:
    """(k,) int32: the rank of every window by descending *scores* (k,), ties by *windows* = 0 ... k - 1."""
    larger = scores.unsqueeze(0) > scores.unsqueeze(1)
    earlier = torch.logical_and(scores.unsqueeze(0) == scores.unsqueeze(1), windows.unsqueeze(0) < windows.unsqueeze(1))
    return torch.logical_or(larger, earlier).float().sum(dim=1).to(torch.int32)


def image_windows(image: Tensor, window: int) -> Tensor:
    """(1, c, h, w) -> (k, window^2, c)."""
    return partition(image[0].permute(1, 2, 0), window, window)


class PictureMean(nn.Module):
    """What AdaptiveAvgPool2d(1) computes, in operations that Core AI knows."""

    def forward(self, x: Tensor) -> Tensor:
        """(1, c, h, w) -> (1, c, 1, 1)."""
        return x.flatten(2).mean(dim=2, keepdim=True).unsqueeze(-1)


class StaticPredictor(nn.Module):
    """What the mixer reads off a condition, for one image."""

    def __init__(self, source: Predictor, chooses: bool) -> None:
        super().__init__()
        self.window = source.window
        self.in_conv, self.out_offsets = copy.deepcopy(source.in_conv), copy.deepcopy(source.out_offsets)
        self.out_mask = copy.deepcopy(source.out_mask) if chooses else None
        self.out_CA, self.out_SA = copy.deepcopy(source.out_CA), copy.deepcopy(source.out_SA)
        self.out_CA[0] = PictureMean()

    def forward(self, condition: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        """Offsets (1, 2, h, w) or None, channel weights (1, c, 1, 1), spatial weights (1, 1, h, w), scores (k,)."""
        u, scores = self.in_conv(condition), None
        if self.out_mask is not None:
            logits = self.out_mask(image_windows(u.mean(dim=1, keepdim=True), self.window).squeeze(-1))
            scores = logits[:, 0] - logits[:, 1]
        offsets = None if self.out_offsets is None else 8 * torch.tanh(self.out_offsets(u))
        return offsets, self.out_CA(u), self.out_SA(u), scores


class Choice(nn.Module):
    """Which windows attend, in a module of its own so that its name is the same in every graph."""

    hard: Tensor

    def __init__(self, hard: int) -> None:
        super().__init__()
        self.register_buffer("hard", torch.tensor([hard], dtype=torch.int32))

    def forward(self, ranks: Tensor) -> Tensor:
        """*ranks* (k,) int32 -> (k,) bool."""
        return ranks < self.hard
