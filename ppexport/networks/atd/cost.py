"""Multiply-adds and parameters of ATD-light and PP-ATD-light, by branch and in closed form.

Two countings. *Pure*: multiply-adds of convolutions, linear layers and matmuls. *Published*: the same plus 5 per
element of every LayerNorm and InstanceNorm, which gives the figures of the ATD paper (380.01, 167.96 and 100.09 G for
1280x720 output at x2, x3 and x4, LR padded to multiples of 16).
"""

from __future__ import annotations

from ppexport.device.mask import padded_tokens
from ppexport.networks.architecture import Macs
from ppexport.networks.atd.atd_light import AtdConfig
from ppexport.networks.atd.attention import group_size

NORM_COST = 5


def count_macs(scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
    """Multiply-adds for an LR image of *size* (h, w), padded to multiples of 16.

    *impure* tokens take part in category attention (None: all, as in ATD-light), in whole groups of 128;
    *colors* > 0 adds the mask's 3 multiply-adds per colour and pixel.
    """
    c = AtdConfig(scale)
    n, d = padded_tokens(size), c.dim
    refining = c.layers - len(c.depths)
    group = group_size(n)
    m = n if impure is None else impure
    slots = -(-m // group) * group
    convolutions = n * (27 * d + (len(c.depths) + 1) * 9 * d * d + 27 * d * scale**2)
    t, r = c.dictionary_tokens, c.reduced_dim
    return Macs(
        {
            "convolutions": convolutions,
            "qkv": c.layers * n * 3 * d * d,
            "dictionary": c.layers * (n * d * r + t * d * r + t * d * d + n * t * r + n * t * d),
            "category": c.layers * (slots * group * d * 2 + m * d * d),
            "window": c.layers * n * (c.window**2 * d * 2 + d * d),
            "ffn": c.layers * n * (2 * d * d + c.kernel**2 * d),
            "refinement": refining * t * n * d,
            "mask": 3 * colors * n,
            "norms": NORM_COST * n * (d * (2 + 2 * c.layers) + refining * t),
        }
    )
