"""Padding of convolutions and pools."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ppexport.errors import ArtifactError


def window_pads(
    lengths: list[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pad_type: str,
    pad: list[int] | None,
) -> list[int]:
    """Elements before and after every spatial axis, as MIL counts them: from the first axis on."""
    if pad_type == "valid":
        return [0] * (2 * len(lengths))
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * len(lengths):
            raise ArtifactError(f"custom padding of {len(lengths)} axes takes {2 * len(lengths)} numbers, not {pad}")
        return pad
    if pad_type not in ("same", "same_lower"):
        raise ArtifactError(f"pad_type {pad_type!r} is not known")
    pads = []
    for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        pads += [small, large] if pad_type == "same" else [large, small]
    return pads


def pad_windows(
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pad_type: str,
    pad: list[int] | None,
    value: float,
) -> Tensor:
    """*x* (n, c, ...) with *value* around it, so that windows need no padding of their own."""
    pads = window_pads(list(x.shape[2:]), kernel, strides, dilations, pad_type, pad)
    backwards = [n for i in range(len(pads) - 2, -1, -2) for n in (pads[i], pads[i + 1])]
    return F.pad(x, backwards, value=value) if any(backwards) else x
