"""Which LR sizes and how many slots a file may be made for. Imports the standard library and NumPy only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from ppexport.device.mask import ATD_LAYOUT, Layout
from ppexport.errors import InputError

MAX_TOKENS = 1 << 20
"""Largest padded image: beyond a million tokens the logits of one layer alone need 4 GB."""


def whole_numbers(values: Any) -> list[int]:
    """The items of *values* as ints. Raises TypeError for a text, a bool, a fraction or no list at all."""
    found = list(values)
    if isinstance(values, (str, bytes)) or any(isinstance(value, bool) for value in found):
        raise TypeError("not whole numbers")
    return [operator.index(value) for value in found]


def check_size(size: Any, layout: Layout = ATD_LAYOUT) -> tuple[int, int]:
    """*size* as (h, w). Raises InputError unless it is two whole numbers of at least 1, or pads to too many tokens."""
    try:
        height, width = whole_numbers(size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"a size is (height, width) in whole pixels of at least 1x1, such as (64, 64), not {size!r}")
    tokens = layout.tokens((height, width))
    if tokens > MAX_TOKENS:
        raise InputError(
            f"{height}x{width} pads to {tokens} tokens; a twin takes at most {MAX_TOKENS}: export smaller tiles"
        )
    return height, width


def check_capacities(capacities: Any, size: tuple[int, int], layout: Layout) -> tuple[int, ...]:
    """*capacities* as ints. Raises InputError unless they ascend in multiples of the *layout*'s group that LR images
    of *size* have."""
    tokens, group = layout.tokens(size), layout.group
    try:
        chosen = whole_numbers(capacities)
    except TypeError:
        chosen = []
    if not chosen or not ascend(chosen, tokens, group):
        raise InputError(f"capacities are ascending multiples of {group} from {group} to {tokens}, not {capacities!r}")
    return tuple(chosen)


def ascend(capacities: Sequence[int], tokens: int, group: int) -> bool:
    """Whether *capacities* ascend in multiples of *group* up to *tokens*."""
    return list(capacities) == sorted({c for c in capacities if group and c % group == 0 and 0 < c <= tokens})


def capacity_set(size: Any, steps: int = 32, layout: Layout = ATD_LAYOUT) -> list[int]:
    """At most *steps* even capacities for LR images of *size* (h, w), the last one full.

    *layout* is the network's, `find_architecture(arch).layout`; that of PP-ATD-light if left out. Raises InputError.
    """
    tokens, group = layout.tokens(check_size(size, layout)), layout.group
    if not group:
        raise InputError("this network has no capacities: it computes the same for every image")
    return sorted({-(-tokens * i // (steps * group)) * group for i in range(1, steps + 1)})


def smallest_capacity(capacities: Sequence[int], impure: int) -> int:
    """The first of the ascending *capacities* that holds *impure* tokens, or the last where none does."""
    return next((c for c in capacities if c >= impure), capacities[-1])


def capacity_function(capacity: int) -> str:
    """The function for *capacity* slots in a model file of a capacity set."""
    return f"capacity_{capacity}"


def function_name(capacity: int, capacities: Sequence[int]) -> str:
    """The function for *capacity* in a model file of *capacities*."""
    return "main" if len(capacities) < 2 else capacity_function(capacity)
