"""The inverse of a permutation without a scatter.

Before:  order = tokens.scatter(0, rank, tokens)            STABLEHLO_SCATTER, which accelerators refuse
After:   order = topk of falling[rank]: the places of the smallest ranks, in ascending order       GATHER, TOPK_V2

*tokens* are 0 ... n - 1 and *rank* (n,) is a permutation of them, so that the scatter writes its inverse. Accelerators
sort floats only, and some compute every float in fp16, where whole numbers above 2048 are not exact. So *falling* is a
table of n numbers that fp16 holds exactly: no two are equal, and the order is the only one. Of more than 61,440 tokens,
for which fp16 has not enough numbers, it is minus the ranks, exact in fp32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppexport.backends.litert.rewrite.rewritten import Run
from ppexport.errors import ExportError

LARGEST, SMALLEST = 0x7BFF, 0x0400
"""The bits of the largest and of the smallest positive number of fp16, between which numbers grow with their bits."""
MOST = 2 * (LARGEST - SMALLEST + 1)
"""How many numbers the table can have, positive and negative ones."""


def falling(count: int) -> Tensor:
    """(count,) fp32: numbers that fp16 holds, up to `MOST`, each smaller than the one before."""
    positive = np.arange(LARGEST, SMALLEST - 1, -1, dtype=np.uint16).view(np.float16)
    return torch.from_numpy(np.concatenate([positive, -positive[::-1]])[:count].astype(np.float32))


def inverse_by_topk(run: Run, tokens: Tensor, dim: int, rank: Tensor, written: Tensor) -> Tensor:
    """What `tokens.scatter(dim, rank, written)` gives where *written* is *tokens*, 0 ... n - 1. Raises ExportError."""
    from litert_torch.backend.experimental import torch_tfl  # noqa: F401  # registers its operators

    if run.node.args[0] is not run.node.args[3] or tokens.dim() != 1:
        raise ExportError("a scatter that inverts no permutation has no form for LiteRT: rewrite that part of the twin")
    count = rank.shape[0]
    keys: Tensor = -rank.float() if count > MOST else torch.ops.tfl.gather(falling(count), rank.to(torch.int32), 0)
    return keys.topk(count).indices.to(tokens.dtype)
