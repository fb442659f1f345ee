"""Which PyTorch module an ONNX node or initializer comes from, as far as the exporter left a trace.

What torch's exporters write (checked with torch 2.13):

    tracing (dynamo=False)   node name     /layers.0/residual_group/layers.3/attn_aca/MatMul
                             initializer   layers.0.residual_group.layers.3.attn_aca.scale
    dynamo                   metadata      pkg.torch.onnx.name_scopes = ['', 'layers.0', ..., 'linear_1']
                             initializer   as above

A tracing scope is a path of calls, not of attributes: a list's name is joined to its element's (`layers.0`), a child of
an `nn.Sequential` repeats its parent's name (`/body/body.1` is `body.1`), and a second call of a module has a counter
(`/norm_1` is `norm` again). Where this is ambiguous, the names of the model's parameters decide.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Names alone need no onnx, so that a device without it can map its profile.
    from onnx import NodeProto

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_PARAMETER = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*\.[A-Za-z_]\w*")
_COUNTER = re.compile(r"_\d+$")
_INDEX_COUNTER = re.compile(r"(\.\d+)_\d+$")
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.export writes for nodes that it made itself, outside any module."""


def module_of(node: NodeProto, known: Collection[str] = ()) -> str | None:
    """Dotted path of the module that *node* comes from: "" is the network itself, None means that nothing is known.

    *known* are the paths of modules that certainly exist, see `known_modules`.
    """
    for entry in node.metadata_props:
        if entry.key == _NAME_SCOPES:
            scopes = [first or second for first, second in _QUOTED.findall(entry.value)]
            # The last scope is the operation, the one before it the module that ran it.
            if scopes and _NO_SCOPE not in scopes:
                return scopes[-2] if len(scopes) > 1 else ""
    return module_of_name(node.name, known)


def module_of_name(name: str, known: Collection[str] = ()) -> str | None:
    """Module of a node or tensor that torch's tracing exporter named `/module/module/Operator`, else None."""
    if not name.startswith("/"):
        return None
    path, previous = "", ""
    for segment in name.split("/")[1:-1]:
        path, previous = _descend(path, previous, segment, known), segment
    return path


def module_of_initializer(name: str) -> str | None:
    """Module that owns the parameter or buffer after which an initializer is named; None for a name that an exporter
    made up (`onnx::MatMul_175`, `val_18`), or might have: one without a dot."""
    return name.rpartition(".")[0] if _PARAMETER.fullmatch(name) else None


def known_modules(initializers: Iterable[str]) -> frozenset[str]:
    """Modules, and all modules around them, that own the parameters among *initializers*."""
    known: set[str] = set()
    for name in initializers:
        path = module_of_initializer(name)
        while path and path not in known:
            known.add(path)
            path = path.rpartition(".")[0]
    return frozenset(known)


def _descend(path: str, previous: str, segment: str, known: Collection[str]) -> str:
    """*path*, whose last call was to *previous*, extended by a call to *segment*."""
    # `body.1_2` can only be a counter: no attribute is called `1_2`. `norm_2` may be either.
    segment = _INDEX_COUNTER.sub(r"\1", segment)
    child = f"{path}.{segment}" if path else segment
    candidates = [child]
    if previous and segment.startswith(f"{previous}."):
        # The child of a Sequential, unless the parameters say that a list inside has its parent's name.
        candidates.insert(0, path[: len(path) - len(previous)] + segment)
    again = [_COUNTER.sub("", candidate) for candidate in candidates]
    return next((candidate for candidate in candidates + again if candidate in known), candidates[0])
