"""Rows of a tensor by their index, as one operator.

Before:  x.index_select(d, index)        GATHER_ND, with eight more operators that check the bounds of every index
After:   F.embedding(index, rows of x)   EMBEDDING_LOOKUP

The table of an EMBEDDING_LOOKUP is fp32 of rank 2. Other ranks are reshaped; whole numbers, which here are tokens and
ranks below 2^20, pass through fp32 exactly.

Where both the table and the index are constants the converter would compute the result and store that: a position bias
of 1 MB in every layer in place of a table of 15 KB. So a zero is added to such an index that only a run can tell:

Before:  table.index_select(1, index)                                    (heads, area * area), stored
After:   table.index_select(1, index + int(min(|first pixel|, 0)))       (heads, 961), stored
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppexport.backends.litert.rewrite.rewritten import Run


def look_up(run: Run, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """What `x.index_select(dim, index)` gives, for a *x* of any rank and an *index* (m,)."""
    index = index.to(torch.int32)
    if all(run.is_constant(node) for node in run.node.all_input_nodes):
        index = index + run.opaque_zero()
    rows = x.float().movedim(dim, 0)
    found = F.embedding(index, rows.reshape(rows.shape[0], -1))
    return found.reshape(-1, *rows.shape[1:]).movedim(0, dim).to(x.dtype)
