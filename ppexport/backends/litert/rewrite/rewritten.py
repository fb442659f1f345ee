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


SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""Operators that give what they take."""


class Rewritten(nn.Module):
    """Computes a traced program with *rewrites*: inputs by name -> {name: output}."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        inputs: tuple[str, ...],
        outputs: Mapping[str, bool],
        rewrites: Mapping[object, Rewrite],
    ) -> None:
        """*outputs* are {name: whether it is needed}; one that is not is left out where it is a constant or another
        output, which `names` tells."""
        super().__init__()
        self.inputs, self.rewrites = inputs, rewrites
        self.module = cast(fx.GraphModule, program.module())
        self.constants: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op != "placeholder" and all(given in self.constants for given in node.all_input_nodes):
                self.constants.add(node)
        (given,) = self.module.graph.output_node().args
        first: dict[fx.Node, str] = {}
        self.places: dict[str, int] = {}
        self.names: dict[str, str] = {}
        """{output: the one that holds it}, without constants that nobody needs."""
        for place, ((name, needed), node) in enumerate(zip(outputs.items(), cast(list[fx.Node], given), strict=True)):
            while node.target in SAME:
                node = node.all_input_nodes[0]
            if needed or (node not in first and node not in self.constants):
                self.places[name] = place
                first.setdefault(node, name)
            if node in first:
                self.names[name] = first[node]

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """The outputs for what is *given*, the inputs by name."""
        run = Run(self.module, self.rewrites, self.constants)
        found = run.run(*(given[name] for name in self.inputs), enable_io_processing=False)
        return {name: found[place] for name, place in self.places.items()}
