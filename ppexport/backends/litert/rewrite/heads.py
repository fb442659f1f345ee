"""Queries, keys and values of all heads, by tensors of rank 4.

Before:  qkv.view(g, s, m, heads, w).permute(2, 0, 3, 1, 4).unbind(0)             rank 5, which accelerators refuse
After:   qkv[..., i * heads * w : (i + 1) * heads * w].view(g, s, heads, w).permute(0, 2, 1, 3)     for each of m parts
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ppexport.backends.litert.rewrite.rewritten import Run

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def split_heads(run: Run, permuted: Tensor, dim: int = 0) -> Any:
    """What `permuted.unbind(dim)` gives, read off the tensor that the heads were a view of."""
    permutation = run.node.args[0]
    if dim != 0 or not isinstance(permutation, fx.Node) or permutation.target is not aten.permute.default:
        return NotImplemented
    view, order = permutation.args
    if order != [2, 0, 3, 1, 4] or not isinstance(view, fx.Node) or view.target not in VIEWS:
        return NotImplemented
    parts, groups, heads, size, width = permuted.shape
    source = run.env[view.all_input_nodes[0]]
    rows = source.reshape(groups * size, parts * heads * width)
    step = heads * width
    return [
        rows[:, i * step : (i + 1) * step].reshape(groups, size, heads, width).permute(0, 2, 1, 3) for i in range(parts)
    ]
