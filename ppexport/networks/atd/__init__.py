"""ATD-light (arXiv 2401.08209), and PP-ATD-light (arXiv 2510.01997), which skips pure pixels with the same weights.

Needs neither torch nor pydantic: profiles are read on machines that lack both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppexport.device.mask import Layout
from ppexport.networks.architecture import NORMS, Architecture, Detected, Macs, Routing, Shape, scale_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.card import PurePassOptions
    from ppexport.networks.network import Network

GROUP = 128
"""Tokens that category attention mixes at a time."""
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
    "layers.*.conv": frozenset({"Conv"}),
    "conv_after_body": frozenset({"Conv"}),
}
_ANY_LAYER = r"layers\.\d+\.residual_group\.layers\.\d+"


@dataclass(frozen=True)
class AtdConfig:
    """What networks of the family differ in; the defaults are the published configuration of ATD-light."""

    dim: int = 48
    depths: tuple[int, ...] = (6, 6, 6, 6)
    heads: int = 4
    window: int = 16
    dictionary_tokens: int = 64
    reduced_dim: int = 8
    kernel: int = 7
    dictionary_channels: int = 0
    """Channels of the FFN that every token reads off its category's entry of the dictionary: 4 in version 2 of the
    network, which does not refine the dictionary and normalises what a block returns; none in version 1."""

    @property
    def is_second(self) -> bool:
        """Whether this is version 2 of the network."""
        return self.dictionary_channels > 0


class AtdLight(Architecture):
    """ATD-light."""

    name = "atd_light"
    summary = "ATD-light: adaptive token dictionary, category and window attention"
    scales = (2, 3, 4)
    layout = Layout(16, "mirror", GROUP)
    config = AtdConfig()
    twin = "ppexport.twin.atd_twin:make_atd_twin"
    flavours = ("portable", "ort", "tensorrt")
    routing = Routing(LAYER, f"{LAYER}.output", f"{LAYER}.norm1", f"{LAYER}.attn_atd.wk")
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
    branches = (
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
        """Weights with a token dictionary in every block; those of version 2 read it in their FFN."""
        second = "layers.0.residual_group.layers.0.fc_td.weight" in shapes
        if "layers.0.residual_group.td" not in shapes or second != self.config.is_second:
            return None
        return Detected(scale_of(shapes, "upsample.0.weight"))

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained ATD-light."""
        from ppexport.networks.atd.atd_light import ATDLight

        return ATDLight(scale, config=self.config)

    def branch_of(self, module: str, moves: bool) -> tuple[str, str]:
        """As `Architecture.branch_of`. In a layer and its category attention, what only moves tokens is routing."""
        block, branch = super().branch_of(module, moves)
        routes = moves and re.fullmatch(rf"{_ANY_LAYER}(\.attn_aca)?", module)
        return block, "routing" if routes else branch

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """As `Architecture.cost`. Category attention takes whole groups of 128 of the *impure* tokens.

        The published counting gives the figures of the ATD paper: 380.01, 167.96 and 100.09 G for 1280x720 output at
        x2, x3 and x4, LR padded to multiples of 16.
        """
        c = self.config
        n, d = self.layout.tokens(size), c.dim
        layers = sum(c.depths)
        refining = 0 if c.is_second else layers - len(c.depths)
        extra = c.dictionary_channels
        m = n if impure is None else impure
        slots = -(-m // GROUP) * GROUP
        t, r = c.dictionary_tokens, c.reduced_dim
        return Macs(
            {
                "convolutions": n * (27 * d + (len(c.depths) + 1) * 9 * d * d + 27 * d * scale**2),
                "qkv": layers * n * 3 * d * d,
                "dictionary": layers * (n * d * r + t * d * r + t * d * d + n * t * r + n * t * d),
                "category": layers * (slots * GROUP * d * 2 + m * d * d),
                "window": layers * n * (c.window**2 * d * 2 + d * d),
                "ffn": layers * (n * (2 * d * d + extra * d + c.kernel**2 * (d + extra)) + t * extra * d),
                "refinement": refining * t * n * d,
                "mask": 3 * colors * n,
                NORMS: NORM_COST * n * (d * (2 + 2 * layers + (len(c.depths) if c.is_second else 0)) + refining * t),
            }
        )


class PPAtdLight(AtdLight):
    """PP-ATD-light."""

    name = "pp_atd_light"
    summary = "PP-ATD-light: ATD-light whose pure pixels skip category attention"
    masks = ("graph", "input")
    routing = Routing(LAYER, f"{LAYER}.output", f"{LAYER}.norm1", f"{LAYER}.attn_atd.wk", mask="pure_pass")

    def options(self) -> type[PurePassOptions]:
        """Colours, window, cross-shift mask fusion and compensation."""
        from ppexport.networks.card import PurePassOptions

        return PurePassOptions

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained PP-ATD-light."""
        from ppexport.networks.atd.atd_light import PPATDLight

        return PPATDLight(scale, self.options().model_validate(options or {}), self.config)


SECOND = AtdConfig(heads=3, dictionary_tokens=128, reduced_dim=12, dictionary_channels=4)
"""The published configuration of ATD-light v2 (arXiv 2603.02581)."""


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


ARCHITECTURES = (AtdLight(), PPAtdLight(), AtdLightV2(), PPAtdLightV2())
