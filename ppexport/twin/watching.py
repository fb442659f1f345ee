"""What the layers of a twin are given while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ppexport.twin.build import StaticTwin
from ppexport.twin.layers import StaticLayer


def layers_of(twin: StaticTwin) -> list[StaticLayer]:
    """The layers in the order in which they run."""
    return [module for module in twin.modules() if isinstance(module, StaticLayer)]


@contextmanager
def layer_inputs(twin: StaticTwin) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Gives a list that grows by the tokens (n, c) and the dictionary (t, c) of every layer as *twin* runs."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        # A block starts with its own parameter.
        found.append((given[0].detach(), given[1].detach()))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers_of(twin)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
