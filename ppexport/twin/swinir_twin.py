"""The static twin of SwinIR-light and PP-SwinIR-light for one LR size.

Before (networks/swinir/swinir_light.py): shifted layers roll the image by half a window, and add -100 to the logits
between the pieces of opposite borders.

After: as for ATD-light, what the mask keeps apart is cut apart (`blocks`), and the scale of the queries and the mean of
the image are in weights and biases (`folded`). With Pure-Pass the hard windows of each grid are gathered into slots
(`windows`); queries and keys are made for these alone.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ppexport.errors import TwinError
from ppexport.networks.network import Network, Trace
from ppexport.networks.swinir.swinir_light import PPSwinIRLight, SwinBlock, SwinIRLight, SwinLayer
from ppexport.twin.blocks import BlockCut, from_blocks, to_blocks
from ppexport.twin.counting_sort import count_up
from ppexport.twin.folded import add_mean, scale_queries, split_values
from ppexport.twin.layers import Shared, StaticWindowAttention, image_of, tokens_of
from ppexport.twin.ort_swin import RowHardSwinGroup, RowSwinGroup
from ppexport.twin.static_pure_pass import StaticPurePass
from ppexport.twin.twin import StaticTwin
from ppexport.twin.windows import count_slots, hard_windows_of, plan_windows


class StaticSwinAttention(StaticWindowAttention):
    """Window attention with its own projection to q, k and v."""

    def __init__(self, source: SwinLayer, size: tuple[int, int]) -> None:
        super().__init__(source.attn, size, source.shift)
        self.qkv = scale_queries(source.attn.qkv, source.attn.scale)

    def forward(self, z: Tensor, shared: Shared) -> Tensor:
        """Normed tokens (n, c) -> tokens (n, c)."""
        return super().forward(self.qkv(z), shared)


class StaticHardAttention(StaticWindowAttention):
    """Window attention of the hard windows; the others, and none of those that the shift cuts, take a compensation."""

    def __init__(self, source: SwinLayer, size: tuple[int, int]) -> None:
        super().__init__(source.attn, size, source.shift)
        self.qk, self.v = split_values(scale_queries(source.attn.qkv, source.attn.scale))
        self.compensation = source.compensation

    def attend(self, z: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """Normed tokens and values (windows, area, c) -> mixed (windows, area, c), not projected."""
        _, area, channels = z.shape
        width = channels // self.heads
        q, k = self.qk(z).view(-1, area, 2, self.heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table.index_select(1, index).view(1, self.heads, area, area)
        weights = (q @ k.transpose(2, 3) + bias).softmax(dim=-1)
        mixed: Tensor = weights @ v.view(-1, area, self.heads, width).transpose(1, 2)
        return mixed.transpose(1, 2).reshape(-1, area, channels)

    def forward(self, z: Tensor, shared: Shared) -> Tensor:
        """Normed tokens (n, c) -> tokens (n, c)."""
        cut, mixed = shared.cuts[self.shift], []
        images = z.view(*self.size, -1), self.v(z).view(*self.size, -1)
        for kind, index in zip(cut.kinds, cut.indices, strict=True):
            tokens, values = (to_blocks(image, kind) for image in images)
            slots = shared.windows.get((self.shift, kind.area))
            if slots is None:
                mixed.append(self.attend(tokens, values, index))
                continue
            # What easy windows take instead of attention.
            rest = {"value": values, "normed": tokens, "zero": torch.zeros(())}[self.compensation]
            mixed.append(slots.write(self.attend(slots.read(tokens), slots.read(values), index), rest))
        out: Tensor = self.proj(from_blocks(mixed, cut.kinds).reshape(z.shape))
        return out


class StaticSwinLayer(nn.Module):
    """One layer."""

    def __init__(self, source: SwinLayer, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = (copy.deepcopy(m) for m in (source.norm1, source.norm2, source.mlp))
        self.attn = attention

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        x = x + self.attn(self.norm1(x), shared)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class StaticSwinGroup(nn.Module):
    """The layers of one block."""

    attention: type[StaticSwinAttention | StaticHardAttention] = StaticSwinAttention

    def __init__(self, source: SwinBlock, size: tuple[int, int]) -> None:
        super().__init__()
        layers = [layer for layer in source.residual_group.blocks if isinstance(layer, SwinLayer)]
        self.blocks = nn.ModuleList(StaticSwinLayer(layer, self.attention(layer, size)) for layer in layers)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        for layer in self.blocks:
            x = layer(x, shared)
        return x


class HardSwinGroup(StaticSwinGroup):
    """The layers of one block, in which only hard windows attend."""

    attention = StaticHardAttention


Group = type[StaticSwinGroup | RowSwinGroup]
GROUPS: dict[str, tuple[Group, Group]] = {
    "portable": (StaticSwinGroup, HardSwinGroup),
    "ort": (RowSwinGroup, RowHardSwinGroup),
}
"""What the blocks of a flavour are made of, without and with Pure-Pass."""


class StaticSwinBlock(nn.Module):
    """Transformer layers, a 3x3 convolution and a residual connection."""

    def __init__(self, source: SwinBlock, size: tuple[int, int], group: Group) -> None:
        super().__init__()
        self.size = size
        self.residual_group = group(source, size)
        self.conv = copy.deepcopy(source.conv)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """Tokens (n, c) -> tokens (n, c)."""
        return tokens_of(self.conv(image_of(self.residual_group(x, shared), self.size))) + x


class SwinIRTwin(StaticTwin):
    """The twin of SwinIR-light and of PP-SwinIR-light."""

    mean: Tensor
    high: Tensor
    low: Tensor

    def __init__(self, network: SwinIRLight, size: tuple[int, int], capacity: int | None, flavour: str) -> None:
        window = network.config.window
        super().__init__(network, size, capacity, flavour)
        group, hard_group = GROUPS[flavour]
        if isinstance(network, PPSwinIRLight):
            self.pure_pass, group = StaticPurePass(network.options, *self.padded), hard_group
        self.cut, self.shifted_cut = (BlockCut(self.padded, window, shift) for shift in (0, window // 2))
        self.conv_first, self.patch_embed = copy.deepcopy(network.conv_first), copy.deepcopy(network.patch_embed)
        self.norm, self.conv_after_body = copy.deepcopy(network.norm), copy.deepcopy(network.conv_after_body)
        blocks = [block for block in network.layers if isinstance(block, SwinBlock)]
        self.layers = nn.ModuleList(StaticSwinBlock(block, self.padded, group) for block in blocks)
        last = network.upsample[0]
        assert isinstance(last, nn.Conv2d)
        self.upsample = nn.Sequential(add_mean(last, network.mean, self.scale), nn.PixelShuffle(self.scale))
        self.register_buffer("mean", network.mean.detach().clone())
        for name, value in zip(("high", "low"), count_up(self.tokens), strict=True):
            self.register_buffer(name, value)

    def forward(
        self,
        lr: Tensor,
        mask: Tensor | None = None,
        slots: Tensor | None = None,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `StaticTwin.forward`; tokens have no categories."""
        self.check(lr, mask, slots, categories)
        tokens, padded = (self.high + self.low).view(-1), self.pad(lr)
        pure = None if self.pure_pass is None else self.pure_pass(padded) if mask is None else mask.view(-1) > 0.5
        shared = Shared(tokens, {cut.shift: cut for cut in (self.cut(tokens), self.shifted_cut(tokens))}, pure)
        impure = torch.zeros(1, dtype=torch.int32)
        if pure is not None:
            impure = self.plan(shared, pure, self.capacity if slots is None else slots.shape[1])
        first = self.conv_first(padded - self.mean)
        x = self.patch_embed(first).squeeze(0)
        for block in self.layers:
            x = block(x, shared)
        deep = self.conv_after_body(image_of(self.norm(x), self.padded)) + first
        sr = self.upsample(deep)[:, :, : self.size[0] * self.scale, : self.size[1] * self.scale]
        return sr, impure

    def plan(self, shared: Shared, pure: Tensor, capacity: Tensor | int) -> Tensor:
        """Put the slots of both grids into *shared*, and tell how many tokens need one, (1,) int32."""
        hard = torch.zeros(1, dtype=torch.int32)
        for shift, cut in shared.cuts.items():
            kind = cut.kinds[0]
            if kind.area != self.group:
                # An image of one row or column of windows, whose shifted grid has none that is whole.
                continue
            flags = hard_windows_of(pure, self.padded, kind, 1.0)
            count = flags.shape[0]
            positions = count_slots(shared.tokens, count, kind.area, capacity)
            slots = shared.windows[shift, kind.area] = plan_windows(flags, shared.tokens[:count], positions)
            hard = slots.hard if not shift else torch.maximum(hard, slots.hard)
        return hard * self.group


def make_swinir_twin(network: Network, size: tuple[int, int], capacity: int | None, flavour: str) -> SwinIRTwin:
    """The twin of *network*, as `make_twin`; *size* is checked."""
    if not isinstance(network, SwinIRLight):
        raise TwinError(f"no static rewrite is known for {type(network).__name__}: use swinir_light")
    return SwinIRTwin(network, size, capacity, flavour).eval()
