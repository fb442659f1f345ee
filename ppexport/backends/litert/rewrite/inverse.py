"""The inverse of a permutation without a scatter.

Before:  order = tokens.scatter(0, rank, tokens)            STABLEHLO_SCATTER, which accelerators refuse
After:   order = topk of -rank: the places of the smallest ranks, in ascending order            TOPK_V2

*tokens* are 0 ... n - 1 and *rank* (n,) is a permutation of them, so that the scatter writes its inverse. Ranks below
2^24 are exact in fp32, and no two are equal, so that the order is the only one.
"""

from __future__ import annotations

from torch import Tensor

from ppexport.backends.litert.rewrite.rewritten import Run
from ppexport.errors import ExportError


def inverse_by_topk(run: Run, tokens: Tensor, dim: int, rank: Tensor, written: Tensor) -> Tensor:
    """What `tokens.scatter(dim, rank, written)` gives where *written* is *tokens*, 0 ... n - 1. Raises ExportError."""
    if run.node.args[0] is not run.node.args[3] or tokens.dim() != 1:
        raise ExportError("a scatter that inverts no permutation has no form for LiteRT: rewrite that part of the twin")
    return (-rank.float()).topk(rank.shape[0]).indices.to(tokens.dtype)
