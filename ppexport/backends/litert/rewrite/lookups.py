"""Rows of a tensor by their index, as one operator.

Before:  x.index_select(d, index)     GATHER_ND, with eight more operators that check the bounds of every index
After:   tfl.gather(x, index, d)      GATHER, of any type and rank

`tfl.gather` is an operator of litert-torch that is this one of the file. `F.embedding` would become an
EMBEDDING_LOOKUP, and one whose table is no constant ends the process of LiteRT's GPU accelerator.

Where both the table and the index are constants the converter would compute the result and store that: a position bias
of 1 MB in every layer in place of a table of 15 KB. So a zero is added to such an index that only a run can tell:

Before:  table.index_select(1, index)                                    (heads, area * area), stored
After:   table.index_select(1, index + int(min(|first pixel|, 0)))       (heads, 961), stored
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppexport.backends.litert.rewrite.rewritten import Run


def look_up(run: Run, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """What `x.index_select(dim, index)` gives, for a *x* of any rank and an *index* (m,)."""
    index = index.to(torch.int32)
    if all(run.is_constant(node) for node in run.node.all_input_nodes):
        index = index + run.opaque_zero()
    from litert_torch.backend.experimental import torch_tfl  # noqa: F401  # registers its operators

    found: Tensor = torch.ops.tfl.gather(x, index, dim)
    return found
