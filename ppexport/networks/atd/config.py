"""What networks of the ATD family differ in, and how their weights tell it.

Needs neither torch nor pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Literal, cast

from ppexport.networks.architecture import Shape, scale_of

GROUP = 128
"""Tokens of a group of category attention in the light networks."""
FEATURES = 64
"""Channels of the upsamplers `pixelshuffle` and `nearest+conv`."""
Upsampler = Literal["pixelshuffledirect", "pixelshuffle", "nearest+conv"]
Residual = Literal["1conv", "3conv"]


@dataclass(frozen=True)
class AtdConfig:
    """What networks of the family differ in; the defaults are the published configuration of ATD-light."""

    dim: int = 48
    depths: tuple[int, ...] = (6, 6, 6, 6)
    heads: int = 4
    window: int = 16
    dictionary_tokens: int = 64
    reduced_dim: int = 8
    hidden: int = 48
    """Channels inside the FFN."""
    kernel: int = 7
    """Side of the FFN's depthwise convolution."""
    dictionary_channels: int = 0
    """Channels of the FFN that every token reads off its category's entry of the dictionary: 4 in version 2 of the
    network, which does not refine the dictionary and normalises what a block returns; none in version 1."""
    category_size: int = GROUP
    """Tokens of a group of category attention."""
    upsampler: Upsampler = "pixelshuffledirect"
    residual: Residual = "1conv"
    """The convolutions behind the layers of every block and behind all blocks."""
    mixes: bool = False
    """Whether a content-aware mixer is in place of window attention, which only networks of `camixer_atd` have."""

    @property
    def is_second(self) -> bool:
        """Whether this is version 2 of the network."""
        return self.dictionary_channels > 0


SECOND = AtdConfig(heads=3, dictionary_tokens=128, reduced_dim=12, dictionary_channels=4)
"""The published configuration of ATD-light v2 (arXiv 2603.02581)."""
CLASSICAL = AtdConfig(
    dim=210,
    depths=(6,) * 6,
    heads=6,
    dictionary_tokens=128,
    reduced_dim=20,
    hidden=420,
    kernel=5,
    category_size=256,
    upsampler="pixelshuffle",
)
"""The published configuration of ATD (arXiv 2401.08209)."""
MIXING = AtdConfig(mixes=True)
"""ATD-light with a content-aware mixer, whose networks have no published weights."""
PUBLISHED = {AtdConfig(): "_light", SECOND: "_light_v2", MIXING: "_light"}
"""The end of the name of an architecture with exactly one configuration."""

LIMITS = {
    "dim": (512, "channels"),
    "heads": (64, "heads"),
    "dictionary_tokens": (1024, "entries of the dictionary"),
    "reduced_dim": (512, "channels of the similarity"),
    "hidden": (2048, "channels of the FFN"),
    "kernel": (31, "rows of the depthwise convolution"),
    "dictionary_channels": (512, "channels that the FFN reads off the dictionary"),
}
"""The largest sizes that weights may ask for, and what they are: a hostile file could ask for any memory."""
MOST_LAYERS = 100
BLOCK, LAYER = "layers.0.residual_group", "layers.0.residual_group.layers.0"
UPSAMPLERS: Mapping[str, Upsampler] = {
    "conv_up1.weight": "nearest+conv",
    "conv_before_upsample.0.weight": "pixelshuffle",
    "upsample.0.weight": "pixelshuffledirect",
}
"""The key that tells an upsampler; the first that weights have counts."""
RESIDUALS: Mapping[str, Residual] = {"layers.0.conv.weight": "1conv", "layers.0.conv.0.weight": "3conv"}


def config_of(shapes: Mapping[str, Shape]) -> AtdConfig | None:
    """The configuration of weights with tensors of these *shapes*, by key; None for those of another family.

    The size of the groups of category attention, which no tensor tells, is that of ATD-light. Only the tensors that
    tell something are looked at: the others are compared when the weights are loaded.

    Raises ValueError, which says what is wrong, for weights of the family that tell no network that can be built.
    """
    if f"{BLOCK}.td" not in shapes:
        return None

    def sides(key: str, rank: int) -> Shape:
        if key not in shapes:
            raise ValueError(f"there is no key {key!r}, which networks with a token dictionary have")
        if len(shapes[key]) != rank or 0 in shapes[key]:
            raise ValueError(f"{key!r} has shape {shapes[key]}, which is not one of {rank} sides")
        return shapes[key]

    entries, dim = sides(f"{BLOCK}.td", 2)
    rows, heads = sides(f"{LAYER}.attn_win.relative_position_bias_table", 2)
    window = (math.isqrt(rows) + 1) // 2
    if rows != (2 * AtdConfig.window - 1) ** 2:
        raise ValueError(f"its windows are {window}x{window}, and those of networks here 16x16")
    second = f"{LAYER}.fc_td.weight" in shapes
    config = AtdConfig(
        dim=dim,
        depths=_depths(shapes, dim),
        heads=heads,
        dictionary_tokens=entries,
        reduced_dim=sides(f"{LAYER}.attn_atd.wq.weight", 2)[0],
        hidden=sides(f"{LAYER}.convffn.fc1.weight", 2)[0],
        kernel=sides(f"{LAYER}.convffn.dwconv.depthwise_conv.0.weight", 4)[2],
        dictionary_channels=sides(f"{LAYER}.fc_td.weight", 2)[0] if second else 0,
        upsampler=cast(Upsampler, _kind(shapes, UPSAMPLERS, "upsampler")),
        residual=cast(Residual, _kind(shapes, RESIDUALS, "residual connection")),
        mixes=f"{LAYER}.attn_win.route.in_conv.0.weight" in shapes,
    )
    for name, (most, what) in LIMITS.items():
        if getattr(config, name) > most:
            raise ValueError(f"it has {getattr(config, name)} {what}, and networks here at most {most}")
    if dim % heads:
        raise ValueError(f"its {dim} channels do not divide into {heads} heads")
    if config.residual == "3conv" and dim < 4:
        raise ValueError(f"its {dim} channels are too few for the residual connection 3conv")
    if config.kernel % 2 == 0:
        raise ValueError(f"the depthwise convolution has an even side, {config.kernel}")
    return config


def _depths(shapes: Mapping[str, Shape], dim: int) -> tuple[int, ...]:
    """How many layers every block has."""
    depths: list[int] = []
    for block in count():
        depth = 0
        while (key := f"layers.{block}.residual_group.layers.{depth}.wqkv.weight") in shapes:
            if shapes[key] != (3 * dim, dim):
                raise ValueError(f"{key!r} has shape {shapes[key]}, not {(3 * dim, dim)}")
            depth += 1
        if not depth:
            break
        depths.append(depth)
    if not 0 < sum(depths) <= MOST_LAYERS:
        raise ValueError(f"it has {sum(depths)} layers, and networks here 1 to {MOST_LAYERS}")
    return tuple(depths)


def _kind(shapes: Mapping[str, Shape], kinds: Mapping[str, str], what: str) -> str:
    found = next((kind for key, kind in kinds.items() if key in shapes), None)
    if found is None:
        raise ValueError(f"its {what} is not {' or '.join(kinds.values())}, whose keys begin with {', '.join(kinds)}")
    return found


def upscaling(shapes: Mapping[str, Shape], config: AtdConfig) -> float:
    """The scale of weights with these *shapes*, as `Detected.scale`."""
    if config.upsampler == "pixelshuffledirect":
        return scale_of(shapes, "upsample.0.weight")
    if config.upsampler == "nearest+conv":
        return 4
    steps = takewhile(shapes.__contains__, (f"upsample.{i}.weight" for i in count(0, 2)))
    return math.prod(math.sqrt((shapes[key] or (0,))[0] / FEATURES) for key in steps)


def shuffle_steps(scale: int) -> list[int]:
    """The factors by which the upsampler `pixelshuffle` enlarges, one after the other."""
    return [3] if scale == 3 else [2] * (scale.bit_length() - 1)
