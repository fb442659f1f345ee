"""SwinIR-light (arXiv 2108.10257): window attention on a regular and a shifted grid, the same for every image.

Needs neither torch nor pydantic: profiles are read on machines that lack both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppexport.device.mask import Layout
from ppexport.networks.architecture import NORMS, Architecture, Detected, Macs, Routing, Shape, scale_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.network import Network
    from ppexport.networks.swinir.swinir_light import PPSwinIROptions

LAYER = "layers.*.residual_group.blocks.*"
PRODUCT = frozenset({"Gemm", "MatMul", "Add"})
_ANY_LAYER = r"layers\.\d+\.residual_group\.blocks\.\d+"
NORM_COST = 5
"""What the published counting of multiply-adds takes for every element of a LayerNorm."""


@dataclass(frozen=True)
class SwinIRConfig:
    """The published configuration of SwinIR-light, the same at every scale."""

    dim: int = 60
    depths: tuple[int, ...] = (6, 6, 6, 6)
    heads: int = 6
    window: int = 8
    hidden: int = 120


class SwinIRLightArchitecture(Architecture):
    """SwinIR-light."""

    name = "swinir_light"
    summary = "SwinIR-light: attention inside 8x8 windows of a regular and a shifted grid"
    scales = (2, 3, 4)
    layout = Layout(8, "reflect", group=0)
    twin = "ppexport.twin.swinir_twin:make_swinir_twin"
    flavours: tuple[str, ...] = ("portable", "ort")
    # Everything but position bias, softmax, norms and the sum through all layers.
    half = {  # noqa: RUF012
        f"{LAYER}.attn": frozenset({"MatMul"}),
        **{f"{LAYER}.{part}": PRODUCT for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
        f"{LAYER}.mlp": frozenset({"Erf", "Div", "Mul", "Add"}),
        "layers.*.conv": frozenset({"Conv"}),
        "conv_after_body": frozenset({"Conv"}),
    }
    half_modules = tuple(role for role in half if role.startswith(LAYER))
    int8_groups = {  # noqa: RUF012
        "qkv": f"{LAYER}.attn.qkv",
        "window_proj": f"{LAYER}.attn.proj",
        "ffn_in": f"{LAYER}.mlp.fc1",
        "ffn_out": f"{LAYER}.mlp.fc2",
        "block_conv": "layers.*.conv",
        "body_conv": "conv_after_body",
    }
    int8_costly = ("body_conv",)
    int8_summed = ("block_conv", "body_conv")
    block = "layers.*"
    branch_patterns = {  # noqa: RUF012
        rf"{_ANY_LAYER}\.attn.*": "window attention",
        rf"{_ANY_LAYER}\.mlp.*": "FFN",
        rf"{_ANY_LAYER}(\..*)?": "norms and sums",
        r".*": "head and tail",
    }
    branches: Sequence[str] = ("window attention", "FFN", "norms and sums", "head and tail")

    def detect(self, shapes: Mapping[str, Shape]) -> Detected | None:
        """Weights with blocks of window attention."""
        if "layers.0.residual_group.blocks.0.attn.qkv.weight" not in shapes:
            return None
        return Detected(self, scale_of(shapes, "upsample.0.weight"))

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained SwinIR-light."""
        from ppexport.networks.swinir.swinir_light import SwinIRLight

        return SwinIRLight(scale)

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """As `Architecture.cost`, with *impure* tokens in hard windows, as many in both grids as they have.

        Windows that the shift wraps around the border attend, and are counted as the whole windows of the paper.
        """
        c = SwinIRConfig()
        n, d, layers = self.layout.tokens(size), c.dim, sum(c.depths)
        inside = math.prod(side - c.window for side in self.layout.padded(size))
        m = n if impure is None else impure
        attending = layers // 2 * (m + min(m, inside) + n - inside)
        return Macs(
            {
                "convolutions": n * (27 * d + (len(c.depths) + 1) * 9 * d * d + 27 * d * scale**2),
                "qkv": layers * n * d * d + attending * 2 * d * d,
                "window": attending * c.window**2 * d * 2 + layers * n * d * d,
                "ffn": layers * n * 2 * d * c.hidden,
                "mask": 3 * colors * n,
                NORMS: NORM_COST * n * d * (2 + 2 * layers),
            }
        )


class PPSwinIRLightArchitecture(SwinIRLightArchitecture):
    """PP-SwinIR-light."""

    name = "pp_swinir_light"
    summary = "PP-SwinIR-light: SwinIR-light whose pure windows skip attention"
    layout = Layout(8, "reflect", group=64, grids=(0, 4))
    masks = ("graph", "input")
    routing = Routing(mask="pure_pass")
    half = {  # noqa: RUF012
        **{f"{LAYER}.attn.{part}": PRODUCT for part in ("qk", "v")},
        **{role: kinds for role, kinds in SwinIRLightArchitecture.half.items() if role != f"{LAYER}.attn.qkv"},
    }
    half_modules = tuple(role for role in half if role.startswith(LAYER))
    int8_groups = {  # noqa: RUF012
        "qk": f"{LAYER}.attn.qk",
        "value": f"{LAYER}.attn.v",
        **{name: role for name, role in SwinIRLightArchitecture.int8_groups.items() if name != "qkv"},
    }
    branch_patterns = {  # noqa: RUF012
        r"(pure_pass.*)?": "mask",
        **SwinIRLightArchitecture.branch_patterns,
    }
    branches = (*SwinIRLightArchitecture.branches, "mask")

    def options(self) -> type[PPSwinIROptions]:
        """Colours, window, cross-shift mask fusion and compensation."""
        from ppexport.networks.swinir.swinir_light import PPSwinIROptions

        return PPSwinIROptions

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained PP-SwinIR-light."""
        from ppexport.networks.swinir.swinir_light import PPSwinIRLight

        return PPSwinIRLight(scale, self.options().model_validate(options or {}))


ARCHITECTURES = (SwinIRLightArchitecture(), PPSwinIRLightArchitecture())
