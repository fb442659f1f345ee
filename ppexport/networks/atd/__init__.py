"""The ATD family (arXiv 2401.08209), and Pure-Pass on it (arXiv 2510.01997), which takes the same weights.

The architectures of light networks have one configuration each; `atd` and `pp_atd` have any that weights tell.

Needs neither torch nor pydantic: profiles are read on machines that lack both.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from ppexport.device.mask import Layout
from ppexport.networks.architecture import NORMS, Architecture, Detected, Macs, Routing, Shape
from ppexport.networks.atd.config import (
    CLASSICAL,
    FEATURES,
    GROUP,
    SECOND,
    AtdConfig,
    config_of,
    shuffle_steps,
    upscaling,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.atd.atd_light import AtdOptions, PPAtdOptions
    from ppexport.networks.card import PurePassOptions
    from ppexport.networks.network import Network

NORM_COST = 5
"""What the published counting of multiply-adds takes for every element of a LayerNorm or InstanceNorm."""
LAYER = "layers.*.residual_group.layers.*"
ATTENTION = frozenset({"MatMul", "Gemm", "Mul"})
FFN = frozenset({"Gemm", "MatMul", "Conv", "Erf", "Div", "Mul", "Add"})
HALF = {
    # Attention: everything but bias and softmax; what the router counts is no part of it.
    f"{LAYER}.wqkv": frozenset({"Gemm", "MatMul", "Add"}),
    **{f"{LAYER}.attn_{kind}{part}": ATTENTION for kind in ("win", "aca") for part in ("", ".proj")},
    # The sum that runs through all layers stays fp32; the product that is added to it does not.
    f"{LAYER}.attn_atd.wv": frozenset({"Gemm"}),
    f"{LAYER}.attn_atd.Gemm": frozenset({"MatMul"}),
    **{f"{LAYER}.convffn{part}": FFN for part in ("", ".fc1", ".fc2", ".dwconv", ".dwconv.*")},
    # In a mixed file the product of these layers is int8, and the sum with the bias is a node of its own.
    **{f"{LAYER}.{layer}.Gemm": frozenset({"Add"}) for layer in ("wqkv", "convffn.fc1", "convffn.fc2")},
    **{role: frozenset({"Conv"}) for role in ("layers.*.conv", "conv_after_body")},
    # Those of the residual connection 3conv.
    **{role: frozenset({"Conv", "LeakyRelu"}) for role in ("layers.*.conv.*", "conv_after_body.*")},
}
ROUTING = Routing(choice=LAYER, tokens=f"{LAYER}.output", norm=f"{LAYER}.norm1", keys=f"{LAYER}.attn_atd.wk")
_ANY_LAYER = r"layers\.\d+\.residual_group\.layers\.\d+"


class AtdLight(Architecture):
    """ATD-light."""

    name = "atd_light"
    summary = "ATD-light: adaptive token dictionary, category and window attention"
    scales = (2, 3, 4)
    layout = Layout(16, "mirror", GROUP)
    config = AtdConfig()
    twin = "ppexport.twin.atd_twin:make_atd_twin"
    flavours: tuple[str, ...] = ("portable", "ort", "tensorrt")
    routing = ROUTING
    # Not attention scores, softmax, norms, mask, routing and the sum through all layers, nor the first and the last
    # convolution, which are 0.4 % of the work, at the picture's own resolution.
    int8_groups = {  # noqa: RUF012
        "qkv": f"{LAYER}.wqkv",
        "window_proj": f"{LAYER}.attn_win.proj",
        "category_proj": f"{LAYER}.attn_aca.proj",
        "ffn_in": f"{LAYER}.convffn.fc1",
        "ffn_depthwise": f"{LAYER}.convffn.dwconv.*",
        "ffn_out": f"{LAYER}.convffn.fc2",
        "block_conv": "layers.*.conv",
        "body_conv": "conv_after_body",
        "similarity": f"{LAYER}.attn_atd.wq",
    }
    int8_routing = "similarity"
    # The convolution behind all blocks reads the largest tokens: of x2 it alone costs 0.126 dB (standard error 0.022),
    # no other group more than 0.001.
    int8_costly = ("body_conv",)
    # With results in int8 it costs x2 0.30 dB, all other groups together 0.01.
    int8_summed = ("block_conv", "body_conv")
    half = HALF
    half_sums = (f"{LAYER}.attn_atd",)
    half_modules = tuple(role for role in HALF if role.startswith(LAYER) and not role.endswith(".Gemm"))
    block = "layers.*"
    branch_patterns = {  # noqa: RUF012
        # Directly in the network lies the plan of the slots, which is made once from the mask.
        r"(pure_pass.*)?": "mask",
        rf"{_ANY_LAYER}\.attn_win.*": "window attention",
        rf"{_ANY_LAYER}\.attn_aca\.(router|dense)(\..*)?": "routing",
        rf"{_ANY_LAYER}\.attn_aca.*": "category attention",
        rf"{_ANY_LAYER}\.(attn_atd|norm3).*": "dictionary",
        rf"{_ANY_LAYER}\.(convffn|norm2|output).*": "FFN",
        rf"{_ANY_LAYER}(\..*)?": "projections and norms",
        r".*": "head and tail",
    }
    branches: Sequence[str] = (
        "window attention",
        "category attention",
        "dictionary",  # cross-attention to the token dictionary, and its refinement
        "FFN",
        "routing",  # choice of the category, counting sort, gathers and scatters of slots
        "mask",  # Pure-Pass, and the plan of its slots
        "projections and norms",  # what window attention and category attention share
        "head and tail",  # the convolutions before and after the layers
    )

    def detect(self, shapes: Mapping[str, Shape]) -> Detected | None:
        """Weights with a token dictionary in every block, of this configuration or, where it may be any, of theirs."""
        config = config_of(shapes)
        if config is None or not ((self.any_size and not config.mixes) or config == self.config):
            return None
        return Detected(self.sized(config), upscaling(shapes, config))

    def sized(self, config: AtdConfig) -> AtdLight:
        """This architecture for networks of *config*."""
        sized = copy.copy(self)
        sized.config = config
        return sized

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained network without Pure-Pass."""
        from ppexport.networks.atd.atd_light import ATDLight

        model = self.options()
        return ATDLight(scale, None if model is None else model.model_validate(options or {}), self.config)

    def branch_of(self, module: str, moves: bool) -> tuple[str, str]:
        """As `Architecture.branch_of`. In a layer and its category attention, what only moves tokens is routing."""
        block, branch = super().branch_of(module, moves)
        routes = moves and re.fullmatch(rf"{_ANY_LAYER}(\.attn_aca)?", module)
        return block, "routing" if routes else branch

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """As `Architecture.cost`. Category attention takes whole groups of the *impure* tokens.

        The published counting gives the figures of the ATD paper for ATD-light: 380.01, 167.96 and 100.09 G for
        1280x720 output at x2, x3 and x4, LR padded to multiples of 16.
        """
        c = self.config
        n, d, h = self.layout.tokens(size), c.dim, c.hidden
        layers = sum(c.depths)
        refining = 0 if c.is_second else layers - len(c.depths)
        extra = c.dictionary_channels
        m = n if impure is None else impure
        slots = -(-m // c.category_size) * c.category_size
        t, r, q = c.dictionary_tokens, c.reduced_dim, d // 4
        residual = 9 * d * d if c.residual == "1conv" else 18 * d * q + q * q
        return Macs(
            {
                "convolutions": n * (27 * d + (len(c.depths) + 1) * residual + upsampling_cost(c, scale)),
                "qkv": layers * n * 3 * d * d,
                "dictionary": layers * (n * d * r + t * d * r + t * d * d + n * t * r + n * t * d),
                "category": layers * (slots * c.category_size * d * 2 + m * d * d),
                "window": layers * n * (c.window**2 * d * 2 + d * d),
                "ffn": layers * (n * (2 * d * h + extra * d + c.kernel**2 * (h + extra)) + t * extra * d),
                "refinement": refining * t * n * d,
                "mask": 3 * colors * n,
                NORMS: NORM_COST * n * (d * (2 + 2 * layers + (len(c.depths) if c.is_second else 0)) + refining * t),
            }
        )


def upsampling_cost(config: AtdConfig, scale: int) -> int:
    """Multiply-adds of the upsampler for every pixel of the LR image."""
    d, f = config.dim, FEATURES
    if config.upsampler == "pixelshuffledirect":
        return 27 * d * scale**2
    # How many pixels the convolutions between make of one, those that a shuffle puts in place included.
    made = (4, 16, 16) if config.upsampler == "nearest+conv" else accumulate((s * s for s in shuffle_steps(scale)), mul)
    return 9 * f * (d + f * sum(made) + 3 * scale**2)


class PPAtdLight(AtdLight):
    """PP-ATD-light."""

    name = "pp_atd_light"
    summary = "PP-ATD-light: ATD-light whose pure pixels skip category attention"
    masks = ("graph", "input")
    routing = replace(ROUTING, mask="pure_pass")

    def options(self) -> type[PurePassOptions]:
        """Colours, window, cross-shift mask fusion and compensation."""
        from ppexport.networks.card import PurePassOptions

        return PurePassOptions

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained network with Pure-Pass."""
        from ppexport.networks.atd.atd_light import PPATDLight

        return PPATDLight(scale, self.options().model_validate(options or {}), self.config)


class AtdLightV2(AtdLight):
    """ATD-light v2."""

    name = "atd_light_v2"
    summary = "ATD-light v2: the network that the authors' repository serves since March 2026, under the names of v1"
    config = SECOND


class PPAtdLightV2(PPAtdLight):
    """PP-ATD-light v2."""

    name = "pp_atd_light_v2"
    summary = "PP-ATD-light v2: ATD-light v2 whose pure pixels skip category attention"
    config = SECOND


class Atd(AtdLight):
    """Any network of the family; published is the classical one."""

    name = "atd"
    summary = "ATD, the classical network, and any other of the family, whose sizes the weights tell"
    # Whole groups of every size that the option `category_size` has.
    layout = Layout(16, "mirror", CLASSICAL.category_size)
    config = CLASSICAL
    any_size = True
    # The convolutions of 3conv; those of 1conv are in the same groups by the roles of ATD-light.
    int8_groups = {**AtdLight.int8_groups, "block_conv": "layers.*.conv.*", "body_conv": "conv_after_body.*"}  # noqa: RUF012

    def options(self) -> type[AtdOptions]:
        """The size of a group."""
        from ppexport.networks.atd.atd_light import AtdOptions

        return AtdOptions


class PPAtd(Atd, PPAtdLight):
    """Any network of the family, with Pure-Pass."""

    name = "pp_atd"
    summary = "PP-ATD: any network of the family whose pure pixels skip category attention"

    def options(self) -> type[PPAtdOptions]:
        """Those of Pure-Pass, and the size of a group."""
        from ppexport.networks.atd.atd_light import PPAtdOptions

        return PPAtdOptions


ARCHITECTURES = (AtdLight(), PPAtdLight(), AtdLightV2(), PPAtdLightV2(), Atd(), PPAtd())
