"""The static twin of CAMixerSR and PP-CAMixerSR for one LR size.

Before (networks/camixer/camixersr.py): windows are sorted by their score, and the hard ones are gathered from and
scattered into all windows.

After: windows are ranked (`static_mixer`), and the hard ones, whose number is a constant of the size, gathered into
slots (`windows`). With Pure-Pass the mask tells them, once for all blocks.

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
    margins,
    read_between,
)
from ppexport.networks.network import Network, Trace
from ppexport.twin.blocks import kinds_of, merge
from ppexport.twin.counting_sort import count_up
from ppexport.twin.static_mixer import Choice, Places, StaticPredictor, image_windows, rank_scores
from ppexport.twin.static_pure_pass import StaticPurePass
from ppexport.twin.twin import StaticTwin
from ppexport.twin.windows import WindowPlan, WindowSlots, count_slots, hard_windows_of, plan_windows


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
        self.plan = None if hard is None else WindowPlan()

    def choose(self, scores: Tensor | None, given: Given) -> WindowSlots:
        """The slots of the windows that attend, by *scores* (k,) where nothing else says so."""
        if given.slots is not None:
            return given.slots
        assert scores is not None
        assert self.choice is not None
        assert self.plan is not None
        attends = own = self.choice(rank_scores(scores, given.windows))
        if given.trace is not None:
            given.trace.categories.append(own.long())
            given.trace.gaps.append(margins(scores.unsqueeze(0), own.unsqueeze(0)).squeeze(0))
        if given.forced is not None:
            attends = next(given.forced).bool()
        planned: WindowSlots = self.plan(attends, given.windows, given.windows[: self.hard])
        return planned

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """(1, c, h, w) -> (1, c, h, w)."""
        v = self.project_v(x)
        offsets, channels, spatial, scores = self.route(torch.cat((v, given.condition), dim=1))
        values, slots = image_windows(v, self.window), self.choose(scores, given)
        read = slots.read(image_windows(x, self.window))
        assert offsets is not None
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
        self.places = Places(padded, window)
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
        condition = self.places(self.global_predictor(head))
        pixels = torch.cat((self.across.expand(1, 1, h, w), self.down.view(1, 1, h, 1).expand(1, 1, h, w)), dim=1)
        # One by one, not by iter(), which would put another operation into the graph.
        forced = None if categories is None else (categories[block] for block in itertools.count())
        y, given = head, Given(condition, pixels, self.windows, plan, forced, trace)
        for group in self.body:
            y = group(y, given)
        sr = self.tail(self.body_tail(y) + head)[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale]
        routed = torch.zeros(1, dtype=torch.int32) if plan is None else plan.hard * self.group
        return sr, routed

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
