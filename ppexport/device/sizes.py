"""Sizes and capacities as users give them: whole numbers, or an error that says what is needed."""

from __future__ import annotations

import operator
from typing import Any

from ppexport.device.artifact import GROUP
from ppexport.device.mask import padded_tokens
from ppexport.errors import InputError

MAX_TOKENS = 1 << 20
"""Largest padded image: beyond a million tokens the logits of one layer alone need 4 GB."""


def whole_numbers(values: Any) -> list[int]:
    """The items of *values* as ints. Raises TypeError for a text, a bool, a fraction or no list at all."""
    if isinstance(values, (str, bytes)):
        raise TypeError("a text")
    found = list(values)
    if any(isinstance(value, bool) for value in found):
        raise TypeError("a bool")
    return [operator.index(value) for value in found]


def check_size(size: Any) -> tuple[int, int]:
    """*size* as (h, w). Raises InputError unless it is two whole numbers of at least 1, or pads to too many tokens."""
    try:
        height, width = whole_numbers(size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"a size is (height, width) in whole pixels of at least 1x1, such as (64, 64), not {size!r}")
    tokens = padded_tokens((height, width))
    if tokens > MAX_TOKENS:
        raise InputError(
            f"{height}x{width} pads to {tokens} tokens; a twin takes at most {MAX_TOKENS}: export smaller tiles"
        )
    return height, width


def check_capacities(capacities: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """*capacities* as ints. Raises InputError unless they ascend in multiples of 128 that LR images of *size* have."""
    tokens = padded_tokens(size)
    try:
        chosen = whole_numbers(capacities)
    except TypeError:
        chosen = []
    if not chosen or chosen != sorted(set(chosen)) or any(c % GROUP or not 0 < c <= tokens for c in chosen):
        raise InputError(f"capacities are ascending multiples of {GROUP} from {GROUP} to {tokens}, not {capacities!r}")
    return tuple(chosen)


def capacity_set(size: Any, steps: int = 32) -> list[int]:
    """At most *steps* even capacities for LR images of *size* (h, w), the last one full. Raises InputError."""
    tokens = padded_tokens(check_size(size))
    return sorted({-(-tokens * i // (steps * GROUP)) * GROUP for i in range(1, steps + 1)})
