"""The static twin of networks of the ATD family, with and without Pure-Pass, for one LR size."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import count

import torch
from torch import Tensor, nn

from ppexport.errors import TwinError
from ppexport.networks.atd.atd_light import ATDLight, Block, PatchNorm, PPATDLight, TransformerLayer
from ppexport.networks.atd.convolutions import SLOPE, DoublingConv
from ppexport.networks.network import Trace
from ppexport.twin.blocks import BlockCut
from ppexport.twin.counting_sort import count_up, total
from ppexport.twin.folded import add_mean, spread
from ppexport.twin.layers import PortableLayer, Shared, StaticLayer, image_of, tokens_of
from ppexport.twin.ort_layers import RowLayer
from ppexport.twin.padded_heads import PaddedLayer
from ppexport.twin.static_pure_pass import StaticPurePass
from ppexport.twin.twin import StaticTwin

FLAVOURS: dict[str, type[StaticLayer]] = {"portable": PortableLayer, "ort": RowLayer, "tensorrt": PaddedLayer}
"""The layers that a twin is made of."""


class StaticGroup(nn.Module):
    """The layers of one block and their dictionary."""

    def __init__(self, source: Block, size: tuple[int, int], dense: bool, layer: type[StaticLayer]) -> None:
        super().__init__()
        group = source.residual_group
        self.td = nn.Parameter(group.td.detach().clone())
        sources = [x for x in group.layers if isinstance(x, TransformerLayer)]
        self.layers = nn.ModuleList(layer(x, group.td, size, dense) for x in sources)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        dictionary: Tensor = self.td
        for layer in self.layers:
            x, dictionary = layer(x, dictionary, shared)
        return x


class StaticBlock(nn.Module):
    """Transformer layers, a convolution and a residual connection."""

    def __init__(self, source: Block, size: tuple[int, int], dense: bool, layer: type[StaticLayer]) -> None:
        super().__init__()
        self.size = size
        self.residual_group = StaticGroup(source, size, dense, layer)
        self.conv, self.norm = copy.deepcopy(source.conv), copy.deepcopy(source.norm)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        y = self.residual_group(x, shared)
        out = tokens_of(self.conv(image_of(y, self.size))) + x
        return out if self.norm is None else self.norm(out)


class AtdTwin(StaticTwin):
    """The twin of a network of the ATD family."""

    layers_by_flavour: Mapping[str, type[StaticLayer]] = FLAVOURS
    mean: Tensor
    high: Tensor
    low: Tensor

    def __init__(self, network: ATDLight, size: tuple[int, int], capacity: int, flavour: str) -> None:
        super().__init__(network, size, capacity, flavour)
        self.categories = network.config.dictionary_tokens
        dense = not isinstance(network, PPATDLight)
        if isinstance(network, PPATDLight):
            self.pure_pass = StaticPurePass(network.options, *self.padded)
        window = network.config.window
        self.cut, self.shifted_cut = (BlockCut(self.padded, window, shift) for shift in (0, window // 2))
        self.conv_first = copy.deepcopy(network.conv_first)
        self.patch_embed: PatchNorm = copy.deepcopy(network.patch_embed)
        self.layers = nn.ModuleList(
            StaticBlock(block, self.padded, dense, self.layers_by_flavour[flavour])
            for block in network.layers
            if isinstance(block, Block)
        )
        self.norm = copy.deepcopy(network.norm)
        self.conv_after_body = copy.deepcopy(network.conv_after_body)
        self.tail = network.tail
        for name in self.tail:
            self.add_module(name, static_upsampler(network.get_submodule(name)))
        self._add_mean(network.mean)
        self.register_buffer("mean", network.mean.detach().clone())
        for name, value in zip(("high", "low"), count_up(self.tokens), strict=True):
            self.register_buffer(name, value)

    def _add_mean(self, mean: Tensor) -> None:
        """Put the *mean* of images into the last convolution."""
        last = self.get_submodule(self.tail[-1])
        if isinstance(last, nn.Conv2d):
            self.add_module(self.tail[-1], add_mean(last, mean, 1))
        else:
            assert isinstance(last, nn.Sequential)
            assert isinstance(last[0], nn.Conv2d)
            last[0] = add_mean(last[0], mean, self.scale)

    def condition(self, first: Tensor) -> Tensor | None:
        """What content-aware mixers know of every pixel (1, 4, h, w), of the *first* convolution's output."""
        return None

    def forward(
        self,
        lr: Tensor,
        mask: Tensor | None = None,
        slots: Tensor | None = None,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `StaticTwin.forward`."""
        self.check(lr, mask, slots, categories)
        padded = self.pad(lr)
        pure = None if self.pure_pass is None else self.pure_pass(padded) if mask is None else mask.view(-1) > 0.5
        if pure is None:
            impure = torch.full((1,), self.tokens, dtype=torch.int32)
        else:
            impure = self.tokens - total(pure.float().view(-1, 1)).view(1)
        tokens = (self.high + self.low).view(-1)
        capacity = self.capacity if slots is None else slots.shape[1]
        cuts = self.cut(tokens), self.shifted_cut(tokens)
        # One by one, not by iter(), which would put another operation into the graph.
        forced = None if categories is None else (categories[layer] for layer in count())
        shared = Shared(tokens, {cut.shift: cut for cut in cuts}, pure, forced=forced, trace=trace)
        self.layers_by_flavour[self.flavour].prepare(shared, capacity, impure, self.categories)
        first = self.conv_first(padded - self.mean)
        shared.condition = self.condition(first)
        x = self.patch_embed(first).squeeze(0)
        for block in self.layers:
            x = block(x, shared)
        deep = self.conv_after_body(image_of(self.norm(x), self.padded)) + first
        for name in self.tail:
            deep = self.get_submodule(name)(deep)
        return deep[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale], impure

    def routed_layers(self) -> dict[str, nn.Module]:
        """{module path: layer} in the order in which they run."""
        return {name: module for name, module in self.named_modules() if isinstance(module, StaticLayer)}


def static_upsampler(module: nn.Module) -> nn.Module:
    """A copy of one module of an upsampler, without interpolation."""
    if not isinstance(module, DoublingConv):
        return copy.deepcopy(module)
    return nn.Sequential(spread(module), nn.PixelShuffle(2), nn.LeakyReLU(SLOPE))


def make_atd_twin(
    network: ATDLight, size: tuple[int, int], capacity: int | None, flavour: str, kind: type[AtdTwin] = AtdTwin
) -> AtdTwin:
    """The twin of *network*, of a *kind*, as `make_twin`, which has checked size and capacity."""
    tokens = network.layout.tokens(size)
    if capacity not in (None, tokens) and not isinstance(network, PPATDLight):
        raise TwinError(f"{network.arch} has no pure tokens, so every token needs a slot: leave the capacity out")
    return kind(network, size, capacity or tokens, flavour).eval()
