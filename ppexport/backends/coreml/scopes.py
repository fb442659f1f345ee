"""Which PyTorch module an operation comes from, told by its name in the package.

coremltools keeps TorchScript's scopes while it converts, and drops them when it saves. A tracing scope is a path of
calls, in which lists do not appear (`0/residual_group/3` is `layers.0.residual_group.layers.3`); `module_paths` finds
them again. In the saved package the path is part of every name, as an identifier, which is all that MIL allows:

    layers__0__residual_group__layers__3__attn_aca___matmul_2       the third matmul of that module
    ___reshape                                                      the first reshape of the network itself
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from torch import nn

DOT, END = "__", "___"
_NAME = re.compile(r"(?P<path>(?:[A-Za-z0-9]\w*?)?)___(?P<op>[a-z]\w*?)(?:_(?P<number>\d+))?")


def path_of_scope(module: nn.Module, scope: Sequence[str]) -> str:
    """The dotted path below *module* of a tracing *scope*, as far as it can be followed."""
    path: list[str] = []
    for name in scope:
        # The name may hold the list it comes from: layers.0.
        for part in name.split("."):
            children = dict(module.named_children())
            if part in children:
                path.append(part)
                module = children[part]
                continue
            lists = [k for k, child in children.items() if isinstance(child, nn.ModuleList) and part in child._modules]
            if len(lists) != 1:
                return ".".join(path)
            path += [lists[0], part]
            module = children[lists[0]].get_submodule(part)
    return ".".join(path)


class ModulePaths:
    """The module of every operation of a program in coremltools' memory."""

    def __init__(self, root: nn.Module, within: str) -> None:
        """Paths below the submodule *within* of *root* are given without its name."""
        self._within = within
        self._path = cache(lambda scope: path_of_scope(root, scope))

    def of(self, operation: Any) -> str | None:
        """The dotted path, "" for *root* or *within* itself, None where no scope is known."""
        from coremltools.converters.mil.mil.scope import ScopeSource

        scope = operation.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME)
        # The last entry is the operation's own name.
        if not scope:
            return None
        path = str(self._path(tuple(scope[:-1])))
        return path.removeprefix(self._within).removeprefix(".") if path.partition(".")[0] == self._within else path


def encode(path: str, operation: str, number: int) -> str:
    """The name of the *number*-th *operation* of the module *path*."""
    return path.replace(".", DOT) + END + operation + (f"_{number}" if number else "")


def decode(name: str) -> str | None:
    """The module's path in a name that `encode` made, None for another name."""
    match = _NAME.fullmatch(name)
    return None if match is None else match["path"].replace(DOT, ".")


class Namer:
    """Gives names in the order of the program."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def name(self, path: str, operation: str) -> str:
        """The next name of that *operation* in that module."""
        self.counts[path, operation] += 1
        return encode(path, operation, self.counts[path, operation] - 1)


def module_of(name: str, reads: Iterable[str] = ()) -> str | None:
    """The module of the operation *name*, or of the first of those it *reads* that tells one."""
    return next((path for path in map(decode, (name, *reads)) if path is not None), None)
