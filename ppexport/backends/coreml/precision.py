"""Which operations of a twin are computed in half precision.

Half precision is what costs time and is safe there: the projections, products and softmaxes of window and category
attention, the feed-forward part, and the values of the dictionary. In fp32 stay

    the Pure-Pass mask                     its labels are exact in nothing less
    counts, ranks                          fp16 counts exactly to 2048 only
    similarity to the dictionary, argmax   they choose the category, and one flip regroups thousands of tokens
    the refined dictionary                 its weights are 1 / n, subnormal in fp16 for large images
    the sum that runs through all layers   72 roundings, one on the other
    the convolutions between blocks        five operations, whose output is all that a block adds: in fp16 they are
                                           most of the picture's error (bundled x4, a photograph: 89 dB, else 98)
    norms, the image, the first and last convolutions

Whole numbers (slots, ranks, indices) are int32 at every precision. `computes_half_widely` leaves only what must be
exact in fp32: fewer operations leave the Neural Engine, and more categories flip.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Selector = Callable[[str, str], bool]
"""(dotted path of the module, "" for the twin itself; MIL operation) -> whether it is computed in fp16."""

HALF = re.compile(
    r"layers\.\d+\.residual_group\.layers\.\d+\."
    r"(wqkv|attn_win(\.proj)?|attn_aca(\.proj)?|attn_atd\.wv|convffn(\..+)?)"
)
"""Modules whose own operations are fp16."""
EXACT_MODULES = ("pure_pass", "picture")
"""Whole modules that are always fp32; `picture` is what turns an image input into numbers."""
EXACT_PARTS = frozenset({"router", "dense", "sort"})
"""Modules of that name inside a layer: the counting sort and the routing around it."""
EXACT_ROOT = frozenset({"sub", "reduce_sum", "gather", "cast"})
"""Operations of the twin itself: mirroring the image, subtracting the mean, counting the impure tokens."""


def computes_half(module: str, operation: str) -> bool:
    """Whether *operation* of *module* is computed in fp16 in a half-precision package."""
    return HALF.fullmatch(module) is not None


def computes_half_widely(module: str, operation: str) -> bool:
    """The same, with everything in fp16 that need not be exact."""
    parts = module.split(".")
    if parts[0] in EXACT_MODULES or EXACT_PARTS & set(parts):
        return False
    return module != "" or operation not in EXACT_ROOT


def compute_precision(precision: str, module_of: Callable[[Any], str | None], selector: Selector) -> Any:
    """coremltools' `compute_precision` for *precision* "fp32" or any other; *module_of* an operation may be unknown.

    What comes from an unknown module stays in fp32.
    """
    from ppexport.backends.coreml.mil_program import coremltools

    ct = coremltools()
    if precision == "fp32":
        return ct.precision.FLOAT32

    def select(operation: Any) -> bool:
        module = module_of(operation)
        return module is not None and selector(module, str(operation.op_type))

    return ct.transform.FP16ComputePrecision(op_selector=select)
