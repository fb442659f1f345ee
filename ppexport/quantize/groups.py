"""The layers that int8 is for, in groups; everything else stays as it is.

Attention scores, softmax, norms, mask, routing and the sum through all layers are in no group, nor are the first and
the last convolution, 0.4 % of the work at the picture's own resolution. The similarity to the
dictionary, which chooses the categories, is a group of its own that is measured, to show what its flips cost, and never
placed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx
from onnx import NodeProto

from ppexport.errors import InputError

_LAYER = r"^/layers\.\d+/residual_group/layers\.\d+"
PATTERNS = {
    "qkv": re.compile(_LAYER + r"/wqkv/"),
    "window_proj": re.compile(_LAYER + r"/attn_win/proj/"),
    "category_proj": re.compile(_LAYER + r"/attn_aca/proj/"),
    "ffn_in": re.compile(_LAYER + r"/convffn/fc1/"),
    "ffn_depthwise": re.compile(_LAYER + r"/convffn/dwconv/"),
    "ffn_out": re.compile(_LAYER + r"/convffn/fc2/"),
    "block_conv": re.compile(r"^/layers\.\d+/conv/Conv"),
    "body_conv": re.compile(r"^/conv_after_body/Conv"),
    "similarity": re.compile(_LAYER + r"/attn_atd/wq/"),
}
"""Node names of every group."""
ROUTING = "similarity"
GROUPS = tuple(name for name in PATTERNS if name != ROUTING)
"""The groups that may be placed."""
DEFAULT_GROUPS = tuple(name for name in GROUPS if name != "body_conv")
"""Without a recipe. The convolution behind all blocks reads the largest tokens: of x2 it alone costs 0.126 dB (standard
error 0.022), no other group more than 0.001."""
OPERATORS = ("Gemm", "MatMul", "Conv")


def group_of(name: str) -> str | None:
    """The group of the node *name*, None where it is in none."""
    return next((group for group, pattern in PATTERNS.items() if pattern.match(name)), None)


def quantisable(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions and linear layers with stored weights that are in a group, those of the routing included."""
    stored = {value.name for value in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in OPERATORS and node.input[1] in stored and group_of(node.name) is not None
    ]


def check_groups(names: Iterable[str]) -> tuple[str, ...]:
    """*names* in the order of GROUPS. Raises InputError for one that is not known or is never quantised."""
    chosen = set(names)
    if ROUTING in chosen:
        raise InputError(f"{ROUTING} chooses the categories and stays in float: leave it out")
    unknown = sorted(chosen - set(GROUPS))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no group of layers; there are {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in chosen)
