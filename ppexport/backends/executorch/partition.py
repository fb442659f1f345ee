"""Which operators XNNPACK computes, and in which subgraphs: every operator is looked at once.

ExecuTorch's own partitioner starts with a subgraph for every operator and tries to join every pair of them; for every
pair it walks through what comes after both. With 4,000 operators that takes half an hour.

Here an operator's level is the number of times that the longest way to it changes from other kernels to XNNPACK:

    level of an operator that XNNPACK takes    max over its inputs: their level, plus 1 where another kernel computes it
    level of any other operator                max over its inputs of their level

and the operators of one level are one subgraph. No way leaves a subgraph and returns, since levels only grow; and no
partition has fewer subgraphs, since those on the longest way cannot be joined.
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
    """The level, from 1, of every node of *groups*, each of which is to be in one subgraph.

    Constants, which are inputs of the graph, are of no level of their own. A group whose nodes are not next to each
    other gets the level of its last one.
    """
    group_of = {node: number for number, group in enumerate(groups) for node in group if node.op == "call_function"}
    found: dict[Node, int] = {}
    while True:
        before = dict(found)
        for node in graph.nodes:
            taken = node in group_of
            level = max((found.get(x, 0) + (taken and x not in group_of) for x in node.all_input_nodes), default=0)
            found[node] = max(level, found.get(node, 0), int(taken))
        # Nodes of one group share the level of the last one, which those after them have to see.
        for group in groups:
            members = [node for node in group if node in group_of]
            highest = max((found[node] for node in members), default=0)
            found.update(dict.fromkeys(members, highest))
        if found == before:
            return {node: found[node] for node in group_of}


Report = Callable[[int, int], None]
"""Receives how many subgraphs are lowered, and how many there are."""


class LevelPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's partitioner with one subgraph for every level."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        """Subgraphs, known once a graph was partitioned."""

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
        return [partitions[number] for number in sorted(partitions)]

    @contextmanager
    def reporting(self, report: Report) -> Iterator[None]:
        """While it is entered, *report* is called after every subgraph; ExecuTorch itself tells nothing."""
        lower, done = XnnpackBackend.preprocess, 0

        def lower_and_report(*given: Any) -> Any:
            nonlocal done
            result = lower(*given)
            done += 1
            report(done, self.count)
            return result

        with mock.patch.object(XnnpackBackend, "preprocess", staticmethod(lower_and_report)):
            yield
