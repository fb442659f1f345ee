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

    def __init__(self, rewritten: Rewritten) -> None:
        super().__init__(rewritten.module, garbage_collect_values=False)
        self.traced = rewritten.module
        self.rewrites, self.constants, self.origins = rewritten.rewrites, rewritten.constants, rewritten.origins
        self._zero: Tensor | None = None

    def is_constant(self, node: object) -> bool:
        """Whether what *node* gives depends on no input of the graph."""
        return node in self.constants

    def opaque_zero(self) -> Tensor:
        """(1,) int32: 0 for every image, but not for a compiler, which cannot fold what it is added to."""
        if self._zero is None:
            image = next(self.env[node] for node in self.traced.graph.nodes if node.op == "placeholder")
            self._zero = torch.minimum(image.reshape(-1)[:1].abs(), torch.zeros(1)).to(torch.int32)
        return self._zero

    def run_node(self, n: fx.Node) -> Any:
        """As `Interpreter.run_node`."""
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator *target*, or its rewrite."""

        def compute() -> Any:
            rewrite = self.rewrites.get(target)
            found = NotImplemented if rewrite is None else rewrite(self, *args, **kwargs)
            return target(*args, **kwargs) if found is NotImplemented else found

        return self.origins[origin_of(self.node)](compute)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Nothing: the only module in a traced graph checks the shapes of its inputs."""
        return None


MARK = "from "
"""Begins the name of a class of `Origin`; names of tensors in the converted file hold it."""


class Origin(nn.Module):
    """Computes what one module of the twin does. The converter names a tensor by the classes of the modules that it
    comes from, so every module has a class of its own that is called like it."""

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What *compute* gives."""
        return compute()


def origin_of(node: fx.Node) -> str:
    """The path of the twin's module that *node* was traced in, with dashes for dots, which a module's name cannot have;
    "twin" for what is in none of them."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].replace(".", "-") if stack and stack[-1][0] else "twin"


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
        self.module = program.module()
        self.origins = nn.ModuleDict()
        self.constants: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            origin = origin_of(node)
            if origin not in self.origins:
                self.origins[origin] = type(MARK + origin, (Origin,), {"__module__": "builtins"})()
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
        run = Run(self)
        found = run.run(*(given[name] for name in self.inputs), enable_io_processing=False)
        return {name: found[place] for name, place in self.places.items()}
