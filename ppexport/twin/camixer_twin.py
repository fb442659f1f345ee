"""The static twin of CAMixerSR and PP-CAMixerSR for one LR size.

Before (networks/camixer/camixersr.py): windows are sorted by their score, and the hard ones are gathered from and
scattered into all windows.

After: k windows are few (16 at 64x64), so that the rank of each comes out of comparing all pairs, without Sort or TopK;
H, the number of hard ones, is a constant of the size:

    rank    = how many windows have a larger score, or an equal one and a smaller index     (k,)
    attends = rank < H                                                                      (k,)

Windows that attend are gathered into slots (`windows`). With Pure-Pass the mask tells them, once for all blocks.

Keys are read at places between the pixels, and only those of hard windows are used. So they alone are read, by four
gathers of pixels, which every runtime has, where grid_sample is known to few.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.errors import TwinError
from ppexport.networks.camixer import hard_windows
from ppexport.networks.camixer.camixersr import (
    CAMixerSR,
    Mixer,
    MixerBlock,
    MixerGroup,
    PPCAMixerSR,
    Predictor,
    margins,
    places_in_windows,
    read_between,
)
from ppexport.networks.network import Network, Trace
from ppexport.twin.blocks import kinds_of, merge, partition
from ppexport.twin.counting_sort import count_up
from ppexport.twin.static_pure_pass import StaticPurePass
from ppexport.twin.twin import StaticTwin
from ppexport.twin.windows import WindowSlots, count_slots, hard_windows_of, plan_windows


@dataclass
class Given:
    """What all blocks of one run share."""

    condition: Tensor
    """(1, 4, h, w): what the global predictor says, and every pixel's place in its window."""
    pixels: Tensor
    """(1, 2, h, w): column and row of every pixel."""
    windows: Tensor
    """(k,) int32: 0 ... k - 1."""
    slots: WindowSlots | None
    """By the mask, for all blocks; None where every block chooses its own."""
    forced: Iterator[Tensor] | None
    """For every block (k,): 1 for the windows that attend, in place of its own choice."""
    trace: Trace | None
    """Filled with what every block chose and computed."""


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

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Offsets (1, 2, h, w), channel weights (1, c, 1, 1), spatial weights (1, 1, h, w), scores (k,) of windows."""
        u, scores = self.in_conv(condition), None
        if self.out_mask is not None:
            logits = self.out_mask(image_windows(u.mean(dim=1, keepdim=True), self.window).squeeze(-1))
            scores = logits[:, 0] - logits[:, 1]
        return 8 * torch.tanh(self.out_offsets(u)), self.out_CA(u), self.out_SA(u), scores


class Choice(nn.Module):
    """Which windows attend, in a module of its own so that its name is the same in every graph."""

    hard: Tensor

    def __init__(self, hard: int) -> None:
        super().__init__()
        self.register_buffer("hard", torch.tensor([hard], dtype=torch.int32))

    def forward(self, ranks: Tensor) -> Tensor:
        """*ranks* (k,) int32 -> (k,) bool."""
        return ranks < self.hard


class StaticMixer(nn.Module):
    """The content-aware mixer of one image with *hard* windows; None where the mask says which."""

    def __init__(self, source: Mixer, padded: tuple[int, int], hard: int | None) -> None:
        super().__init__()
        self.window, self.padded, self.hard = source.window, padded, hard
        self.project_v, self.project_out = copy.deepcopy(source.project_v), copy.deepcopy(source.project_out)
        self.project_q, self.project_k = copy.deepcopy(source.project_q), copy.deepcopy(source.project_k)
        self.conv_sptial = copy.deepcopy(source.conv_sptial)
        self.route = StaticPredictor(source.route, chooses=hard is not None)
        self.choice = None if hard is None else Choice(hard)

    def choose(self, scores: Tensor | None, given: Given) -> WindowSlots:
        """The slots of the windows that attend, by *scores* (k,) where nothing else says so."""
        if given.slots is not None:
            return given.slots
        assert scores is not None
        assert self.choice is not None
        attends = own = self.choice(rank_scores(scores, given.windows))
        if given.trace is not None:
            given.trace.categories.append(own.long())
            given.trace.gaps.append(margins(scores.unsqueeze(0), own.unsqueeze(0)).squeeze(0))
        if given.forced is not None:
            attends = next(given.forced).bool()
        return plan_windows(attends, given.windows, given.windows[: self.hard])

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """(1, c, h, w) -> (1, c, h, w)."""
        v = self.project_v(x)
        offsets, channels, spatial, scores = self.route(torch.cat((v, given.condition), dim=1))
        values, slots = image_windows(v, self.window), self.choose(scores, given)
        read = slots.read(image_windows(x, self.window))
        places = slots.read(image_windows(given.pixels + offsets, self.window)).view(-1, 2)
        pixels = x.view(x.shape[1], -1).transpose(0, 1)
        between = read_between(pixels, places[:, 0], places[:, 1], self.padded).view(-1, self.window**2, x.shape[1])
        q, k = self.project_q(read), self.project_k(read + between)
        attended = (q @ k.transpose(1, 2)).softmax(dim=-1) @ slots.read(values)
        mixed = slots.write(attended, values * image_windows(spatial, self.window))
        image = merge(mixed, self.window, self.window, self.padded).permute(2, 0, 1).unsqueeze(0)
        out: Tensor = self.project_out(F.gelu(self.conv_sptial(image)) * channels + image)
        return out


class StaticMixerBlock(nn.Module):
    """Mixer and FFN, each with a residual connection and a norm behind it."""

    def __init__(self, source: MixerBlock, padded: tuple[int, int], hard: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ffn = (copy.deepcopy(m) for m in (source.norm1, source.norm2, source.ffn))
        self.mixer = StaticMixer(source.mixer, padded, hard)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """(1, c, h, w) -> (1, c, h, w)."""
        x = self.norm1(x + self.mixer(x, given))
        x = x + self.ffn(x)
        if given.trace is not None:
            given.trace.tokens.append(x)
        out: Tensor = self.norm2(x)
        return out


class StaticMixerGroup(nn.Module):
    """Blocks, a 1x1 convolution and a residual connection."""

    def __init__(self, source: MixerGroup, padded: tuple[int, int], hard: int | None) -> None:
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
    """The twin of CAMixerSR and of PP-CAMixerSR."""

    windows: Tensor
    high: Tensor
    low: Tensor
    within_rows: Tensor
    within_columns: Tensor
    across: Tensor
    down: Tensor

    def __init__(self, network: CAMixerSR, size: tuple[int, int], capacity: int | None) -> None:
        window = network.config.window
        super().__init__(network, size, capacity, "portable")
        padded = height, width = self.padded
        count, self.window = self.tokens // window**2, window
        hard = None
        if isinstance(network, PPCAMixerSR):
            self.pure_pass, self.share = StaticPurePass(network.options, *padded), network.options.share
            for name, value in zip(("high", "low"), count_up(self.tokens), strict=True):
                self.register_buffer(name, value)
        else:
            hard = hard_windows(count, network.ratio)
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
        """As `StaticTwin.forward`. A window's category is 1 where it attends, else 0."""
        self.check(lr, mask, slots, categories)
        h, w = self.padded
        padded, plan = self.pad(lr), None
        if self.pure_pass is not None:
            pure = self.pure_pass(padded) if mask is None else mask.view(-1) > 0.5
            plan = self.plan(pure, self.capacity if slots is None else slots.shape[1])
        head = self.head(padded)
        # Repeated in the graph, so that no file holds a constant that grows with the image.
        within = [self.within_rows.view(1, 1, h, 1).expand(1, 1, h, w), self.within_columns.expand(1, 1, h, w)]
        condition = torch.cat((self.global_predictor(head), *within), dim=1)
        pixels = torch.cat((self.across.expand(1, 1, h, w), self.down.view(1, 1, h, 1).expand(1, 1, h, w)), dim=1)
        # One by one, not by iter(), which would put another operation into the graph.
        forced = None if categories is None else (categories[block] for block in itertools.count())
        y, given = head, Given(condition, pixels, self.windows, plan, forced, trace)
        for group in self.body:
            y = group(y, given)
        sr = self.tail(self.body_tail(y) + head)[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale]
        routed = torch.zeros(1) if plan is None else plan.hard * self.group
        return sr, routed.to(torch.int32)

    def plan(self, pure: Tensor, capacity: Tensor | int) -> WindowSlots:
        """The slots for an image with these *pure* pixels (n,)."""
        (kind,) = kinds_of(*self.padded, self.window, 0)
        hard = hard_windows_of(pure, self.padded, kind, self.share)
        tokens = (self.high + self.low).view(-1)
        return plan_windows(hard, self.windows, count_slots(tokens, len(self.windows), kind.area, capacity))

    def routed_layers(self) -> dict[str, nn.Module]:
        """{module path: block} in the order in which they run; none where the mask chooses."""
        blocks = self.named_modules() if self.pure_pass is None else ()
        return {name: module for name, module in blocks if isinstance(module, StaticMixerBlock)}


def make_camixer_twin(network: Network, size: tuple[int, int], capacity: int | None, flavour: str) -> CAMixerTwin:
    """The twin of *network*, as `make_twin`; *size* is checked."""
    if not isinstance(network, CAMixerSR):
        raise TwinError(f"no static rewrite is known for {type(network).__name__}: use camixersr")
    return CAMixerTwin(network, size, capacity).eval()
