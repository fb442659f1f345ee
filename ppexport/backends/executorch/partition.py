"""Which operators XNNPACK computes, and in which subgraphs: every operator is looked at once.

ExecuTorch's own partitioner starts with a subgraph for every operator and tries to join every pair of them; for every
pair it walks through what comes after both. With 4,000 operators that takes half an hour.

Here an operator's level is how often the longest way from it to the end leaves other kernels for XNNPACK:

    level of an operator that XNNPACK takes    max over its users: their level, plus 1 where another kernel computes it
    level of any other operator                max over its users of their level

and the operators of one level are one subgraph. No way leaves a subgraph and returns, since levels only fall; and no
partition has fewer subgraphs, since those on the longest way cannot be joined. Because they are counted from the end,
nothing is computed long before it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.passes.infra.partitioner import Partition


def levels(graph: Graph, groups: list[list[Node]]) -> dict[Node, int]:
    """The level, from 1, of every operator of *groups*, each of which is to be in one subgraph.

    Raises ValueError where a way leaves a group and returns to it.
    """
    taken = [[node for node in group if node.op == "call_function"] for group in groups]
    group_of = {node: group for group in taken for node in group}
    order = [node for node in reversed(graph.nodes) if node.op == "call_function"]
    found = dict.fromkeys(order, 0)
    while True:
        before = dict(found)
        for node in order:
            own = node in group_of
            users = (user for user in node.users if user in found)
            level = max((found[user] + (own and user not in group_of) for user in users), default=0)
            found[node] = max(level, found[node], int(own))
        # A group has the level of its first operator, which those before it have to see: then all are looked at again.
        for group in taken:
            found.update(dict.fromkeys(group, max((found[node] for node in group), default=0)))
        if max(found.values(), default=0) > len(order):
            raise ValueError("operators that XNNPACK computes as one depend on another kernel in between")
        if found == before:
            return {node: found[node] for node in group_of}


Report = Callable[[int, int], None]
"""Receives how many subgraphs are lowered, first none, and how many there are."""


class LevelPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's partitioner with one subgraph for every level."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report, self.count = report, 0

    def generate_partitions(self, ep: ExportedProgram) -> list[Any]:
        """The subgraphs, with the constants that their operators read."""
        groups = self.get_matched_nodes_from_configs(ep)
        level = levels(ep.graph_module.graph, groups)
        partitions: dict[int, Partition] = {}
        for group in groups:
            number = max(level[node] for node in group if node in level)
            partition = partitions.setdefault(number, Partition(id=number))
            for node in group:
                partition.add_node(node)
        self.count = len(partitions)
        self.report(0, self.count)
        return [partitions[number] for number in sorted(partitions, reverse=True)]

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """While it is entered, every subgraph that is lowered is reported; ExecuTorch itself tells nothing."""
        lower, done = XnnpackBackend.preprocess, 0

        def lower_and_report(*given: Any) -> Any:
            nonlocal done
            result = lower(*given)
            done += 1
            self.report(done, self.count)
            return result

        with mock.patch.object(XnnpackBackend, "preprocess", staticmethod(lower_and_report)):
            yield
