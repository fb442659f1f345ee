"""The static twin of CAMixer-ATD-light for one LR size.

Before (networks/camixer_atd/camixer_atd_light.py): windows are sorted by their score, and the hard ones are gathered
from and scattered into all windows.

After: a layer of ATD-light's portable twin whose windows are ranked by comparing all pairs (`static_mixer`), and
gathered into as many slots as attend (`windows`), a constant of the size.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.networks.atd.atd_light import ATDLight, TransformerLayer
from ppexport.networks.camixer import hard_windows
from ppexport.networks.camixer_atd.camixer_atd_light import CAMixerATDLight, MixingLayer, WindowMixer
from ppexport.twin.atd_twin import AtdTwin, make_atd_twin
from ppexport.twin.blocks import merge, to_blocks
from ppexport.twin.layers import PortableLayer, Shared, StaticWindowAttention, image_of, tokens_of
from ppexport.twin.static_mixer import Choice, Places, StaticPredictor, image_windows, rank_scores
from ppexport.twin.windows import WindowPlan


class StaticWindowMixer(StaticWindowAttention):
    """The mixer of one image; the query scale is folded into wqkv."""

    def __init__(self, source: WindowMixer, size: tuple[int, int]) -> None:
        super().__init__(source, size, 0)
        self.window, self.count = source.window, size[0] * size[1] // source.window**2
        self.hard = hard_windows(self.count, source.ratio)
        self.conv_sptial, self.choice = copy.deepcopy(source.conv_sptial), Choice(self.hard)
        self.route, self.plan = StaticPredictor(source.route, chooses=True), WindowPlan()

    def forward(self, qkv: Tensor, shared: Shared) -> Tensor:
        """*qkv* (n, 3c) -> branch output (n, c)."""
        assert shared.condition is not None
        channels, cut, windows = self.channels, shared.cuts[0], shared.tokens[: self.count]
        known = torch.cat((image_of(qkv[:, 2 * channels :], self.size), shared.condition), dim=1)
        _, by_channel, spatial, scores = self.route(known)
        assert scores is not None
        slots = self.plan(self.choice(rank_scores(scores, windows)), windows, windows[: self.hard])
        blocks = to_blocks(qkv.view(*self.size, 3 * channels), cut.kinds[0])
        easy = blocks[:, :, 2 * channels :] * image_windows(spatial, self.window)
        mixed = slots.write(self.attend_blocks(slots.read(blocks), self.window**2, cut.indices[0]), easy)
        mixed = merge(mixed, self.window, self.window, self.size).reshape(-1, channels)
        # Summed as tokens, so that the projection reads no transposed image: int8 knows plain linear layers only.
        around = tokens_of(F.gelu(self.conv_sptial(image_of(mixed, self.size))) * by_channel)
        out: Tensor = self.proj(around + mixed)
        return out


class PortableMixingLayer(PortableLayer):
    """A portable layer with a mixer."""

    def _add_windows(self, source: TransformerLayer, size: tuple[int, int]) -> None:
        assert isinstance(source, MixingLayer)
        self.attn_win = StaticWindowMixer(source.attn_win, size)


class CAMixerAtdTwin(AtdTwin):
    """The twin of CAMixer-ATD-light."""

    layers_by_flavour = {"portable": PortableMixingLayer}  # noqa: RUF012

    def __init__(self, network: ATDLight, size: tuple[int, int], capacity: int, flavour: str) -> None:
        super().__init__(network, size, capacity, flavour)
        assert isinstance(network, CAMixerATDLight)
        self.global_predictor: nn.Module = copy.deepcopy(network.global_predictor)
        self.places = Places(self.padded, network.config.window)

    def condition(self, first: Tensor) -> Tensor:
        """As `AtdTwin.condition`."""
        out: Tensor = self.places(self.global_predictor(first))
        return out


def make_camixer_atd_twin(network: ATDLight, size: tuple[int, int], capacity: int | None, flavour: str) -> AtdTwin:
    """The twin of *network*, as `make_twin`, which has checked size and capacity."""
    return make_atd_twin(network, size, capacity, flavour, CAMixerAtdTwin)
