"""LiteRT's rewrites give the numbers of what they replace, bit for bit."""

from __future__ import annotations

import pytest
import torch
from small_networks import random_small_network
from torch import nn

import ppexport
from ppexport.backends.litert.rewrite import rewrite
from ppexport.backends.open_front import Front
from ppexport.backends.self_check import example_inputs
from ppexport.errors import ExportError
from ppexport.networks.architecture import architectures

aten = torch.ops.aten
FAST = ("pp_atd_light", "pp_swinir_light")


class Function(nn.Module):
    """One function as a module."""

    def __init__(self, function, **constants):
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)
        self.constants = tuple(constants)

    def forward(self, x):
        return (self.function(x, *(getattr(self, name) for name in self.constants)),)


def rewritten(function, x, **constants):
    """What *function* gives, what its rewrite gives, and the operators of the latter."""
    front = Function(function, **constants)
    module = rewrite(front, {"y": True}, {"x": x})
    program = torch.export.export(module, (), {"x": x})
    return front(x)[0], module(x=x)["y"], {node.target for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    ("shape", "dim"), [((6,), 0), ((6, 5), 0), ((5, 6), 1), ((6, 3, 4), 0), ((1, 3, 6, 4), 2), ((1, 3, 4, 6), 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_an_index_select_becomes_a_lookup(shape, dim, dtype):
    x = (torch.rand(shape) * 1e6).to(dtype)
    index = torch.tensor([5, 0, 0, 3], dtype=torch.int32)
    before, after, operators = rewritten(lambda x, index: x.index_select(dim, index), x, index=index)
    assert torch.equal(before, after)
    assert before.dtype == after.dtype
    assert torch.ops.tfl.gather.default in operators
    assert aten.index_select.default not in operators


def test_a_lookup_in_a_constant_table_depends_on_the_image():
    """Else the converter stores the result in place of the table."""
    table, index = torch.rand(3, 9), torch.arange(9, dtype=torch.int32).repeat(4)
    front = Function(lambda x, table, index: table.index_select(1, index) + x[0], table=table, index=index)
    x = torch.rand(1)
    module = rewrite(front, {"y": True}, {"x": x})
    program = torch.export.export(module, (), {"x": x})
    (lookup,) = (node for node in program.graph.nodes if node.target is torch.ops.tfl.gather.default)
    seen, todo = set(), [lookup.args[1]]
    while todo:
        node = todo.pop()
        seen.add(node.name)
        todo.extend(node.all_input_nodes)
    assert "x" in seen
    assert torch.equal(module(x=x)["y"], front(x)[0])


def test_an_inverse_permutation_becomes_a_topk():
    tokens = torch.arange(300, dtype=torch.int32)

    def invert(rank, tokens):
        return tokens.scatter(0, rank.long(), tokens)

    before, after, operators = rewritten(invert, torch.randperm(300).to(torch.int32), tokens=tokens)
    assert torch.equal(before, after)
    assert aten.topk.default in operators
    assert aten.scatter.src not in operators


def test_any_other_scatter_is_refused():
    module = rewrite(
        Function(lambda x: torch.zeros(3).scatter(0, x.long(), x)), {"y": True}, {"x": torch.tensor([2.0, 0.0, 1.0])}
    )
    with pytest.raises(ExportError, match="inverts no permutation"):
        module(x=torch.tensor([2.0, 0.0, 1.0]))


@pytest.mark.parametrize("parts", [2, 3])
def test_heads_are_split_without_rank_5(parts):
    def split(x):
        heads = x.view(-1, 8, parts, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return torch.stack([part * (i + 1) for i, part in enumerate(heads)]).sum(dim=0)

    before, after, operators = rewritten(split, torch.rand(16, parts * 12))
    assert torch.equal(before, after)
    assert aten.unbind.int not in operators


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 1), (-1, 4)), ((4,), (2, 1, 3, 4)), ((1, 1, 3, 1), (1, 1, 3, 4)), ((3,), (3,))]
)
def test_an_expand_becomes_a_repeat(shape, size):
    before, after, operators = rewritten(lambda x: x.expand(size) + 1, torch.rand(shape))
    assert torch.equal(before, after)
    assert before.shape == after.shape
    assert aten.expand.default not in operators


@pytest.mark.parametrize(
    "arch", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in architectures()]
)
def test_a_whole_twin_is_equal(arch):
    twin = ppexport.make_twin(random_small_network(arch), size=(20, 32))
    inputs = example_inputs(twin)
    front = Front(twin)
    module = rewrite(front, dict.fromkeys(front.outputs, True), inputs)
    with torch.no_grad():
        expected, found = front(**inputs), module(**inputs)
    assert list(found) == ["sr", "impure_tokens"]
    assert all(torch.equal(a, b) for a, b in zip(expected, found.values(), strict=True))
