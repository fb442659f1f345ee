"""CAMixer-ATD-light, with which the paper of Pure-Pass compares: ATD-light with a content-aware mixer.

A reading without weights (`camixer_atd_light`). Needs neither torch nor pydantic: profiles are read on machines that
lack both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ppexport.networks.architecture import NORMS, Macs
from ppexport.networks.atd import HALF, LAYER, NORM_COST, AtdLight
from ppexport.networks.atd.config import MIXING
from ppexport.networks.camixer import hard_tokens, predictor_channels

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.camixer.camixersr import CAMixerOptions
    from ppexport.networks.network import Network

WINDOWS = f"{LAYER}.attn_win"
DEPTHWISE = f"{WINDOWS}.conv_sptial.*"
_ANY_MIXER = r"layers\.\d+\.residual_group\.layers\.\d+\.attn_win"


class CAMixerATDLightArchitecture(AtdLight):
    """CAMixer-ATD-light."""

    name = "camixer_atd_light"
    summary = (
        "CAMixer-ATD-light, the rival in the Pure-Pass paper: ATD-light where a learned predictor chooses a fixed "
        "share of windows for attention; a reading, without weights"
    )
    config = MIXING
    twin = "ppexport.twin.camixer_atd_twin:make_camixer_atd_twin"
    flavours = ("portable",)
    # What chooses the windows stays fp32, as does what is multiplied pixel by pixel. Parity looks into the
    # categories of tokens, as in ATD-light; which windows attend is not reported.
    half = {**HALF, WINDOWS: frozenset({"MatMul"}), DEPTHWISE: frozenset({"Conv"})}  # noqa: RUF012
    half_modules = (*(role for role in AtdLight.half_modules if role != WINDOWS), DEPTHWISE)
    int8_groups = {**AtdLight.int8_groups, "mixer_depthwise": DEPTHWISE}  # noqa: RUF012
    branch_patterns = {  # noqa: RUF012
        rf"({_ANY_MIXER}\.(route|choice)|global_predictor|places).*": "predictor",
        rf"{_ANY_MIXER}\..*": "mixer convolutions",
        **AtdLight.branch_patterns,
    }
    branches = (
        *AtdLight.branches,
        "predictor",  # what chooses the windows, and the weights of the others
        "mixer convolutions",
    )

    def options(self) -> type[CAMixerOptions]:
        """The share of windows that attend."""
        from ppexport.networks.camixer.camixersr import CAMixerOptions

        return CAMixerOptions

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained network."""
        from ppexport.networks.camixer_atd.camixer_atd_light import CAMixerATDLight

        return CAMixerATDLight(scale, self.options().model_validate(options or {}))

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """As `Architecture.cost`, with *impure* tokens in windows that attend; None is half of the windows."""
        c = self.config
        n, d, area, layers = self.layout.tokens(size), c.dim, c.window**2, sum(c.depths)
        e, attending = predictor_channels(d), hard_tokens(n, 0.5) if impure is None else impure
        dense = super().cost(scale, size).branches
        scores = n // area * (area * c.window + 2 * c.window)
        return Macs(
            {
                **dense,
                "window": layers * attending * 2 * area * d,
                "predictor": n * (8 * d + 144) + layers * (n * ((d + 4) * e + 9 * e) + e * d + scores),
                "mixer": layers * n * (d * d + 18 * d),
                NORMS: dense[NORMS] + NORM_COST * n * layers * e,
            }
        )

    def fixed_tokens(self, size: tuple[int, int], options: Mapping[str, Any]) -> int:
        """The tokens in windows that attend, whose share is the option `ratio`."""
        return hard_tokens(self.layout.tokens(size), options["ratio"])


ARCHITECTURES = (CAMixerATDLightArchitecture(),)
