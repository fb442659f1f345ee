"""The rewrites that make the portable twin of any network fit LiteRT: the flavour `lite`.

Nothing here knows a network. A twin is traced into operators of ATen, and where one of these has a rewrite, that is
computed in its place (`rewritten.Rewritten`). Every rewrite gives the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppexport.backends.litert.rewrite.for_gpu import FOR_GPU
from ppexport.backends.litert.rewrite.heads import split_heads
from ppexport.backends.litert.rewrite.inverse import inverse_by_topk
from ppexport.backends.litert.rewrite.lookups import look_up
from ppexport.backends.litert.rewrite.rewritten import Rewrite, Rewritten

aten = torch.ops.aten
REWRITES: Mapping[object, Rewrite] = {
    aten.index_select.default: look_up,
    aten.scatter.src: inverse_by_topk,
    aten.unbind.int: split_heads,
    **FOR_GPU,
}
"""{operator: what is computed in its place}."""


def rewrite(front: nn.Module, outputs: Mapping[str, bool], inputs: Mapping[str, Tensor]) -> Rewritten:
    """*front*, a module around a twin of the flavour `portable`, as litert-torch can convert it.

    Args:
        front: takes *inputs* by name, and returns a tuple.
        outputs: {the name of what it returns: whether it is needed}, as `Rewritten` takes them.
        inputs: an example of each.

    Raises:
        ExportError: when it is run or converted: an operator has no form that LiteRT takes.
    """
    with torch.no_grad():
        program = torch.export.export(front.eval(), (), dict(inputs))
    return Rewritten(program, tuple(inputs), outputs, REWRITES)
