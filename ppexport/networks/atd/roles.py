"""Which block and which branch of an ATD network a module belongs to, so that its time can be summed by them.

Needs neither torch nor pydantic: profiles are read on machines that lack both.
"""

from __future__ import annotations

import re

BRANCHES = (
    "window attention", "category attention", "dictionary", "FFN", "routing", "mask", "projections and norms",
    "head and tail",
)  # fmt: skip
"""Branches of a layer, and what is around the layers:

dictionary              cross-attention to the token dictionary, and its refinement
routing                 choice of the category, counting sort, gathers and scatters of slots
mask                    Pure-Pass, and the plan of its slots
projections and norms   what window attention and category attention share
head and tail           the convolutions before and after the layers
"""
_LAYER = re.compile(r"layers\.\d+\.residual_group\.layers\.\d+(?:\.(.*))?")
_BLOCK = re.compile(r"layers\.(\d+)(?:\.|$)")


def branch_of(module: str, moves: bool) -> tuple[str, str]:
    """Where an operation belongs.

    Args:
        module: Dotted path of its module, "" for the network itself.
        moves: Whether it moves or counts tokens, such as a gather, and computes no features. Inside category attention
            such operations are its routing.

    Returns:
        The block, "0", "1", ... or "head and tail", and the branch, one of `BRANCHES`.
    """
    match = _BLOCK.match(module)
    return match[1] if match else "head and tail", _branch(module, moves)


def _branch(module: str, moves: bool) -> str:
    # Directly in the network lies the plan of the slots, which is made once from the mask.
    if module == "" or module.startswith("pure_pass"):
        return "mask"
    match = _LAYER.fullmatch(module)
    if match is None:
        return "head and tail"
    inside = match[1] or ""
    if inside.startswith("attn_win"):
        return "window attention"
    if inside.startswith("attn_aca"):
        routing = re.match(r"attn_aca\.(router|dense)(\.|$)", inside) or (inside == "attn_aca" and moves)
        return "routing" if routing else "category attention"
    if inside.startswith(("attn_atd", "norm3")):
        return "dictionary"
    if inside.startswith(("convffn", "norm2", "output")):
        return "FFN"
    return "routing" if inside == "" and moves else "projections and norms"
