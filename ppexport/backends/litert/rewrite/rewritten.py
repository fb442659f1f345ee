"""A traced module in which some operators are computed by other ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

Rewrite = Callable[..., Any]
"""Called with the `Run` and what an operator takes; returns what the operator gives, computed by other operators, or
NotImplemented where the operator is fine as it is. Shapes are plain numbers."""


class Run(fx.Interpreter):
    """One run through a traced graph, which may itself be traced. `env` holds what all nodes so far have given."""

    node: fx.Node
    """What is computed."""

    def __init__(self, module: fx.GraphModule, rewrites: Mapping[object, Rewrite], constants: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.rewrites, self.constants = rewrites, constants
        self._zero: Tensor | None = None

    def is_constant(self, node: object) -> bool:
        """Whether what *node* gives depends on no input of the graph."""
        return node in self.constants

    def opaque_zero(self) -> Tensor:
        """(1,) int32: 0 for every image, but not for a compiler, which cannot fold what it is added to."""
        if self._zero is None:
            image = next(self.env[node] for node in self.module.graph.nodes if node.op == "placeholder")
            self._zero = torch.minimum(image.reshape(-1)[:1].abs(), torch.zeros(1)).to(torch.int32)
        return self._zero

    def run_node(self, n: fx.Node) -> Any:
        """As `Interpreter.run_node`."""
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator *target*, or its rewrite."""
        rewrite = self.rewrites.get(target)
        found = NotImplemented if rewrite is None else rewrite(self, *args, **kwargs)
        return super().call_function(target, args, kwargs) if found is NotImplemented else found

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Nothing: the only module in a traced graph checks the shapes of its inputs."""
        return None


class Rewritten(nn.Module):
    """Computes a traced program with *rewrites*: inputs by name -> {name: output}."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        rewrites: Mapping[object, Rewrite],
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.rewrites = inputs, outputs, rewrites
        module = cast(fx.GraphModule, program.module())
        self.module = module
        self.constants: set[fx.Node] = set()
        for node in module.graph.nodes:
            if node.op != "placeholder" and all(given in self.constants for given in node.all_input_nodes):
                self.constants.add(node)

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """The outputs for what is *given*, the inputs by name."""
        run = Run(self.module, self.rewrites, self.constants)
        found = run.run(*(given[name] for name in self.inputs), enable_io_processing=False)
        return dict(zip(self.outputs, found, strict=True))
