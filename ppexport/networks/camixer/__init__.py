"""CAMixerSR (arXiv 2402.19289, CVPR 2024): a predictor chooses the windows that attend, a fixed share of them; and
PP-CAMixerSR, whose Pure-Pass mask chooses them.

Needs neither torch nor pydantic: profiles are read on machines that lack both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppexport.device.mask import Layout
from ppexport.networks.architecture import NORMS, Architecture, Detected, Macs, Routing, Shape, scale_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.camixer.camixersr import CAMixerOptions, PPCAMixerOptions
    from ppexport.networks.network import Network

BLOCK = "body.*.body.*"
CONV = frozenset({"Conv"})
PRODUCT = frozenset({"Gemm", "MatMul", "Add"})
_ANY_BLOCK = r"body\.\d+\.body\.\d+"
NORM_COST = 5
"""What the published counting of multiply-adds takes for every normalised element."""


@dataclass(frozen=True)
class CAMixerConfig:
    """The published configuration of CAMixerSR-S, whose weights are for x4."""

    dim: int = 36
    depths: tuple[int, ...] = (4, 4, 6, 6)
    window: int = 16

    @property
    def inner(self) -> int:
        """Channels of the predictor."""
        return predictor_channels(self.dim)


def predictor_channels(dim: int) -> int:
    """The channels of the predictor of a mixer with *dim* channels, which reads four more."""
    return (dim + 4) // 4


def hard_windows(windows: int, ratio: float) -> int:
    """How many of so many *windows* attend: the published *ratio* of them, rounded down, and at least one."""
    return max(1, int(windows * ratio))


def hard_tokens(tokens: int, ratio: float) -> int:
    """How many of so many *tokens* are in windows of 16x16 that attend."""
    area = CAMixerConfig().window ** 2
    return hard_windows(tokens // area, ratio) * area


class CAMixerSRArchitecture(Architecture):
    """CAMixerSR."""

    name = "camixersr"
    summary = "CAMixerSR: a learned predictor chooses a fixed share of 16x16 windows for attention"
    scales = (2, 3, 4)
    layout = Layout(16, "reflect", group=0)
    routing = Routing(f"{BLOCK}.mixer.choice", "Less", BLOCK)
    twin = "ppexport.twin.camixer_twin:make_camixer_twin"
    # Not what chooses the windows, softmax, norms and the sum through all blocks.
    half = {  # noqa: RUF012
        f"{BLOCK}.mixer": frozenset({"MatMul"}),
        **{f"{BLOCK}.mixer.project_{part}": PRODUCT for part in "qk"},
        **{f"{BLOCK}.mixer.{part}": CONV for part in ("conv_sptial.*", "project_out")},
        **{f"{BLOCK}.ffn.{part}": CONV for part in ("project_in", "dwconv", "project_out")},
        f"{BLOCK}.ffn": frozenset({"Erf", "Div", "Mul", "Add"}),
        "body.*.body_tail": CONV,
        "body_tail": CONV,
    }
    half_modules = tuple(role for role in half if role.startswith(BLOCK) and role != f"{BLOCK}.mixer")
    int8_groups = {  # noqa: RUF012
        "mixer_depthwise": f"{BLOCK}.mixer.conv_sptial.*",
        "mixer_out": f"{BLOCK}.mixer.project_out",
        "ffn_in": f"{BLOCK}.ffn.project_in",
        "ffn_depthwise": f"{BLOCK}.ffn.dwconv",
        "ffn_out": f"{BLOCK}.ffn.project_out",
        "block_conv": "body.*.body_tail",
        "body_conv": "body_tail",
    }
    int8_costly = ("body_conv",)
    int8_summed = ("block_conv", "body_conv")
    block = "body.*"
    branch_patterns = {  # noqa: RUF012
        rf"{_ANY_BLOCK}\.mixer\.route.*": "predictor",
        rf"{_ANY_BLOCK}\.mixer\.(project_q|project_k).*": "window attention",
        rf"{_ANY_BLOCK}\.mixer": "window attention",
        rf"{_ANY_BLOCK}\.mixer\..*": "mixer convolutions",
        rf"{_ANY_BLOCK}\.ffn.*": "FFN",
        rf"{_ANY_BLOCK}(\..*)?": "norms and sums",
        r".*": "head and tail",
    }
    branches: Sequence[str] = (
        "window attention",
        "predictor",  # what chooses the windows, and the weights of the others
        "mixer convolutions",
        "FFN",
        "norms and sums",
        "head and tail",
    )

    def options(self) -> type[CAMixerOptions | PPCAMixerOptions]:
        """The share of hard windows."""
        from ppexport.networks.camixer.camixersr import CAMixerOptions

        return CAMixerOptions

    def detect(self, shapes: Mapping[str, Shape]) -> Detected | None:
        """Weights with a predictor in every block."""
        if "body.0.body.0.mixer.route.in_conv.0.weight" not in shapes:
            return None
        return Detected(self, scale_of(shapes, "tail.0.weight"))

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained CAMixerSR-S."""
        from ppexport.networks.camixer.camixersr import CAMixerSR

        return CAMixerSR(scale, self.options().model_validate(options or {}))

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """As `Architecture.cost`, with *impure* tokens in hard windows; None is the published half of the windows, or
        all where the mask chooses.

        The bilinear warp, four multiply-adds for every channel of a pixel, is not counted.
        """
        c = CAMixerConfig()
        n, d, e, area, blocks = self.layout.tokens(size), c.dim, c.inner, c.window**2, sum(c.depths)
        chooses = self.masks == ("none",)
        if impure is None:
            impure = hard_tokens(n, 0.5) if chooses else n
        return Macs(
            {
                "convolutions": n * (27 * d + 9 * d * d + 27 * d * scale**2 + len(c.depths) * d * d),
                "predictor": n * (8 * d + 144) + blocks * n * ((d + 4) * e + e * (e // 2) + e // 2 * 2 + 9 * e)
                + chooses * blocks * n // area * (area * c.window + 2 * c.window),
                "window": blocks * impure * (2 * d * d + 2 * area * d),
                "mixer": blocks * n * (2 * d * d + 18 * d),
                "ffn": blocks * n * (3 * d * d + 18 * d),
                "mask": 3 * colors * n,
                NORMS: NORM_COST * n * blocks * (2 * d + e),
            }
        )  # fmt: skip

    def fixed_tokens(self, size: tuple[int, int], options: Mapping[str, Any]) -> int | None:
        """The tokens in hard windows, whose share is the option `ratio`; None where the mask chooses."""
        return hard_tokens(self.layout.tokens(size), options["ratio"]) if "ratio" in options else None


class PPCAMixerSRArchitecture(CAMixerSRArchitecture):
    """PP-CAMixerSR."""

    name = "pp_camixersr"
    summary = (
        "PP-CAMixerSR: CAMixerSR whose Pure-Pass mask chooses the windows for attention, as many as the picture has"
    )
    layout = Layout(16, "reflect", group=256, grids=(0,))
    masks = ("graph", "input")
    routing = Routing(mask="pure_pass")
    branch_patterns = {  # noqa: RUF012
        r"(pure_pass.*)?": "mask",
        **CAMixerSRArchitecture.branch_patterns,
    }
    branches = (*CAMixerSRArchitecture.branches, "mask")

    def options(self) -> type[PPCAMixerOptions]:
        """Colours, window, cross-shift mask fusion, and the share of pure pixels that makes a window easy."""
        from ppexport.networks.camixer.camixersr import PPCAMixerOptions

        return PPCAMixerOptions

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained PP-CAMixerSR-S."""
        from ppexport.networks.camixer.camixersr import PPCAMixerSR

        return PPCAMixerSR(scale, self.options().model_validate(options or {}))


ARCHITECTURES = (CAMixerSRArchitecture(), PPCAMixerSRArchitecture())
