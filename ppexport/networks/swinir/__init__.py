"""SwinIR-light (arXiv 2108.10257): window attention on a regular and a shifted grid, the same for every image.

Needs neither torch nor pydantic: profiles are read on machines that lack both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppexport.device.mask import padded_tokens
from ppexport.networks.architecture import NORMS, Architecture, Detected, Macs, Shape, scale_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.network import Network

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
    multiple = 8
    twin = "ppexport.twin.swinir_twin:make_swinir_twin"
    flavours = ("portable", "ort")
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
    block = "layers.*"
    branch_patterns = {  # noqa: RUF012
        rf"{_ANY_LAYER}\.attn.*": "window attention",
        rf"{_ANY_LAYER}\.mlp.*": "FFN",
        rf"{_ANY_LAYER}(\..*)?": "norms and sums",
        r".*": "head and tail",
    }
    branches = ("window attention", "FFN", "norms and sums", "head and tail")

    def detect(self, shapes: Mapping[str, Shape]) -> Detected | None:
        """Weights with blocks of window attention."""
        if "layers.0.residual_group.blocks.0.attn.qkv.weight" not in shapes:
            return None
        return Detected(scale_of(shapes, "upsample.0.weight"))

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained SwinIR-light."""
        from ppexport.networks.swinir.swinir_light import SwinIRLight

        return SwinIRLight(scale)

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """As `Architecture.cost`; there is nothing to route."""
        c = SwinIRConfig()
        n, d, layers = padded_tokens(size, self.multiple), c.dim, sum(c.depths)
        return Macs(
            {
                "convolutions": n * (27 * d + (len(c.depths) + 1) * 9 * d * d + 27 * d * scale**2),
                "qkv": layers * n * 3 * d * d,
                "window": layers * n * (c.window**2 * d * 2 + d * d),
                "ffn": layers * n * 2 * d * c.hidden,
                NORMS: NORM_COST * n * d * (2 + 2 * layers),
            }
        )


ARCHITECTURES = (SwinIRLightArchitecture(),)
