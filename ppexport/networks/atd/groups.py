"""What quantisation knows of ATD-light: roles, which are patterns of dotted module paths.

Attention scores, softmax, norms, mask, routing and the sum through all layers are in no group, nor are the first and
the last convolution, 0.4 % of the work at the picture's own resolution.
"""

from __future__ import annotations

_LAYER = "layers.*.residual_group.layers.*"
INT8_GROUPS = {
    "qkv": f"{_LAYER}.wqkv",
    "window_proj": f"{_LAYER}.attn_win.proj",
    "category_proj": f"{_LAYER}.attn_aca.proj",
    "ffn_in": f"{_LAYER}.convffn.fc1",
    "ffn_depthwise": f"{_LAYER}.convffn.dwconv.*",
    "ffn_out": f"{_LAYER}.convffn.fc2",
    "block_conv": "layers.*.conv",
    "body_conv": "conv_after_body",
    "similarity": f"{_LAYER}.attn_atd.wq",
}
"""The convolutions and linear layers that int8 is for, in groups."""
ROUTING = "similarity"
"""The group that chooses the categories: it is measured, to show what its flips cost, and never placed."""
COSTLY = ("body_conv",)
"""Not int8 without a recipe. The convolution behind all blocks reads the largest tokens: of x2 it alone costs 0.126 dB
(standard error 0.022), no other group more than 0.001."""
