"""CAMixer-ATD-light: ATD-light (`networks.atd`) with the mixer of CAMixerSR (`networks.camixer`) for window attention.

The paper of Pure-Pass (arXiv 2510.01997) compares with this network, of which neither code nor weights were published.
It says that the mixer takes the place of window attention in every layer, with windows of 16x16 and without the shift,
and that a fixed ratio of the windows attends. A layer computes, on tokens x (b, n, c), as in ATD-light:

    z  = LayerNorm(x);  qkv = Linear(z)
    x <- x + dictionary(z) + category(qkv) + mixer(qkv)
    x <- x + ConvFFN(LayerNorm(x))

    mixer:  m    = attention(qkv) in the hard windows, v * spatial weight in the others
            m   <- m + GELU(depthwise convolutions(m)) * channel weights
            out  = Linear(m)

Where the paper is silent, this is the simplest reading that both networks allow:

* Hard windows attend as those of ATD-light do: q, k and v of the shared qkv, 4 heads, scale, position bias.
* Keys are not warped, so the predictor has no offsets: warped keys would need a projection of their own.
* The predictor is CAMixerSR's, and reads the same: v, two channels that a global predictor makes of the first
  convolution's output, once for all layers, and a pixel's place in its window.
* Windows are ranked as in `networks.camixer`: by the difference of the two logits, ties by index, and
  floor(ratio * windows) attend, at least one. The ratio is an option; 0.5 is CAMixerSR's.
* The convolutions are CAMixerSR's two of 3x3, the second with dilation 2. The 1x1 projection is that of window
  attention, so that there is one and not two.
* Category attention, dictionary, FFN, and everything outside the layers are those of ATD-light.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.networks.atd.atd_light import ATDLight, Routing, TransformerLayer
from ppexport.networks.atd.attention import WindowAttention, attend, merge_heads, split_heads
from ppexport.networks.atd.config import MIXING, AtdConfig
from ppexport.networks.camixer.camixersr import CAMixerOptions
from ppexport.networks.camixer.mixer import (
    Predictor,
    condition_of,
    from_windows,
    global_predictor,
    hardest,
    spatial_convolutions,
    to_windows,
)


class WindowMixer(WindowAttention):
    """Attention inside the hard windows of 16x16, a spatial weight in the others, and convolutions behind both."""

    ratio = 0.5
    """The share of windows that attend."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__(dim, window, heads)
        self.conv_sptial = spatial_convolutions(dim)
        self.route = Predictor(dim, window, warps=False)

    def mix(self, qkv: Tensor, size: tuple[int, int], index: Tensor, condition: Tensor) -> Tensor:
        """Branch output (b, n, c) of *qkv* (b, n, 3c) for an image of *size*, and the *condition* (b, 4, h, w)."""
        b, _, width = qkv.shape
        dim = width // 3
        image = qkv.transpose(1, 2).reshape(b, width, *size)
        _, channels, spatial, scores = self.route(torch.cat((image[:, 2 * dim :], condition), dim=1))
        windows, hard = to_windows(image, self.window), hardest(scores, self.ratio)
        q, k, v = split_heads(windows[hard], self.heads)
        attended = merge_heads(attend(q * self.scale, k, v, self.bias(index)))
        easy = windows[..., 2 * dim :] * to_windows(spatial, self.window)
        mixed = from_windows(easy.index_put((hard,), attended), self.window, *size)
        mixed = F.gelu(self.conv_sptial(mixed)) * channels + mixed
        out: Tensor = self.proj(mixed.flatten(2).transpose(1, 2))
        return out


class MixingLayer(TransformerLayer):
    """A layer without a shift, with a mixer under the name of window attention."""

    attn_win: WindowMixer

    def __init__(self, config: AtdConfig, shift: int, refines: bool) -> None:
        super().__init__(config, 0, refines)
        self.attn_win = WindowMixer(config.dim, config.window, config.heads)

    def mix_windows(self, qkv: Tensor, size: tuple[int, int], index: Tensor, routing: Routing) -> Tensor:
        """Output (b, n, c) of the mixer, of *qkv* (b, n, 3c)."""
        return self.attn_win.mix(qkv, size, index, cast(Tensor, routing.condition))


class CAMixerATDLight(ATDLight):
    """CAMixer-ATD-light: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "camixer_atd"
    layer = MixingLayer

    def __init__(self, scale: int, options: CAMixerOptions | None = None) -> None:
        options = options or CAMixerOptions()
        super().__init__(scale, options, MIXING)
        self.global_predictor = global_predictor(self.config.dim)
        for module in self.modules():
            if isinstance(module, WindowMixer):
                module.ratio = options.ratio

    def condition(self, first: Tensor) -> Tensor:
        """As `ATDLight.condition`."""
        return condition_of(self.global_predictor(first), self.config.window)
