"""Several operators become one, and compute the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_networks import random_small_network, small_network
from tensorrt_models import random_network, shorten

import ppexport
from ppexport.backends.onnx import strip_attention
from ppexport.backends.onnx.branch_where import branch_where
from ppexport.backends.onnx.drop_whole_slices import drop_whole_slices
from ppexport.backends.onnx.export_onnx import fuse, trace
from ppexport.backends.onnx.fuse_unit_rows import fuse_unit_rows
from ppexport.backends.onnx.model_file import iter_graphs
from ppexport.backends.onnx.narrow_indices import narrow_indices
from ppexport.backends.onnx.narrow_sums import narrow_sums
from ppexport.backends.onnx.pattern import Graph
from ppexport.errors import ExportError
from ppexport.parity.run import run_parity


def operators(model):
    """How many nodes of each type, those of branches and loops included."""
    return Counter(node.op_type for graph in iter_graphs(model) for node in graph.node)


def run(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


class Attention(torch.nn.Module):
    def __init__(self, bias, scale):
        super().__init__()
        self.scale = scale
        self.register_buffer("bias", bias)

    def forward(self, q, k, v):
        q, k, v = (x.view(-1, 128, 4, 12) for x in (q, k, v))
        q = q.transpose(1, 2)
        logits = (q if self.scale is None else q * self.scale) @ k.permute(0, 2, 3, 1)
        mixed = (logits if self.bias is None else logits + self.bias).softmax(-1) @ v.transpose(1, 2)
        return mixed.transpose(1, 2).reshape(-1, 48)


@pytest.mark.parametrize("scale", [None, 3.7])
@pytest.mark.parametrize("bias", [None, (1, 4, 128, 128), (4, 4, 128, 128)])
def test_the_fused_operator_computes_the_same(bias, scale, tmp_path):
    rng = torch.Generator().manual_seed(3)
    module = Attention(None if bias is None else torch.randn(bias, generator=rng), scale)
    inputs = {name: torch.randn(4 * 128, 48, generator=rng) for name in "qkv"}
    trace(module, inputs, ("out",), tmp_path / "plain.onnx")
    plain = onnx.load(tmp_path / "plain.onnx")
    fused = fuse(plain, (512,))
    onnx.checker.check_model(fused, full_check=True)
    assert operators(plain)["Softmax"] == 1
    assert set(operators(fused)) <= {"Attention", "Constant", "Reshape"}
    read = {name for node in fused.graph.node for name in node.input}
    assert {init.name for init in fused.graph.initializer} <= read
    feeds = {name: value.numpy() for name, value in inputs.items()}
    assert np.abs(run(plain, feeds) - run(fused, feeds)).max() < 1e-5


def chain(axis=-1, perm=(0, 2, 3, 1), width=12, extra=False):
    """Attention, with something that must stop the pass."""
    nodes = []
    for name, order in (("q", (0, 2, 1, 3)), ("k", perm), ("v", (0, 2, 1, 3))):
        nodes.append(helper.make_node("Reshape", [name, f"shape_{name}"], [f"{name}4"]))
        nodes.append(helper.make_node("Transpose", [f"{name}4"], [f"{name}h"], perm=order))
    nodes += [
        helper.make_node("MatMul", ["qh", "kh"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "vh"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["rows"], perm=(0, 2, 1, 3)),
        helper.make_node("Reshape", ["rows", "flat"], ["out"]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    if extra:
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2 * 16, 48]) for n in "qkv"]
    shapes = {"shape_q": (-1, 16, 4, 12), "shape_k": (-1, 16, 4, 12), "shape_v": (-1, 16, 48 // width, width)}
    stored = [numpy_helper.from_array(np.array(value), key) for key, value in {**shapes, "flat": (-1, 48)}.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("other", [{"axis": 2}, {"perm": (2, 0, 3, 1)}, {"width": 24}, {"extra": True}])
def test_what_is_not_attention_is_left_alone(other):
    assert operators(fuse(chain(), (32,)))["Attention"] == 1
    with pytest.raises(ExportError, match="no attention"):
        fuse(chain(**other), (32,))


def stripped(module, rows, monkeypatch, tmp_path, capacities=None, strip=1 << 18):
    """The graphs of attention over *rows* as one call and in strips of *strip* bytes, and one input for both."""
    inputs = {name: torch.randn(rows, 48) for name in "qkv"}
    path = tmp_path / "plain.onnx"
    trace(module, inputs, ("out",), path)
    plain = onnx.load(path)
    if capacities:
        for info in plain.graph.input:
            info.type.tensor_type.shape.dim[0].dim_param = "rows"
        plain.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    graphs = []
    monkeypatch.setattr(strip_attention, "STRIP", strip)
    for whole in (1 << 40, 0):
        monkeypatch.setattr(strip_attention, "WHOLE", whole)
        graphs.append(fuse(plain, capacities or (rows,)))
        onnx.checker.check_model(graphs[-1], full_check=True)
    return graphs, {name: value.numpy() for name, value in inputs.items()}


@pytest.mark.parametrize(("groups", "per_strip"), [(7, 1), (5, 1), (6, 3), (8, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_strips_compute_the_same_bit_for_bit(groups, per_strip, bias, monkeypatch, tmp_path):
    module = Attention(torch.randn(1, 4, 128, 128) if bias else None, 3.7)
    (whole, strips), feeds = stripped(module, groups * 128, monkeypatch, tmp_path, strip=1 << 20)
    assert operators(whole)["Scan"] == 0
    (scan,) = (node for node in strips.graph.node if node.op_type == "Scan")
    (body,) = (a.g for a in scan.attribute if a.name == "body")
    assert [node.op_type for node in body.node] == ["Attention"]
    assert body.input[0].type.tensor_type.shape.dim[0].dim_value == per_strip
    assert np.array_equal(run(whole, feeds), run(strips, feeds))


def test_strips_fit_every_capacity(monkeypatch, tmp_path):
    capacities = (768, 1536, 3072)
    (whole, strips), _ = stripped(Attention(None, 1.0), 768, monkeypatch, tmp_path, capacities, strip=1 << 30)
    for rows in capacities:
        feeds = {name: np.random.default_rng(rows).standard_normal((rows, 48), np.float32) for name in "qkv"}
        assert np.array_equal(run(whole, feeds), run(strips, feeds))


def test_a_bias_for_every_group_cannot_be_cut(monkeypatch, tmp_path):
    with pytest.raises(ExportError, match="one bias for all groups"):
        stripped(Attention(torch.randn(6, 4, 128, 128), None), 768, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("compensation", "capacities"), [("value", [640, 1280]), ("zero", None), ("normed", [640, 1280])]
)
def test_a_network_with_attention_in_strips(compensation, capacities, monkeypatch, tmp_path):
    """The export compares the file with the twin at every capacity."""
    monkeypatch.setattr(strip_attention, "WHOLE", 0)
    network = shorten(random_network("pp_atd_light", 2, compensation), 2)
    out = ppexport.export(
        network, backend="onnx", size=(32, 40), out=tmp_path / "a", flavour="ort", capacities=capacities
    )
    found = operators(onnx.load(out / "model.onnx"))
    assert found["Scan"] == found["Attention"] > 0


class UnitRows(torch.nn.Module):
    def __init__(self, least, power=2.0):
        super().__init__()
        self.least, self.power = least, power

    def forward(self, x):
        length = x.pow(self.power).sum(dim=1, keepdim=True).sqrt()
        return x / torch.maximum(length, torch.tensor(self.least))


def test_unit_rows_become_one_operator(tmp_path):
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(5))
    x[3] = 0
    trace(UnitRows(1e-12), {"x": x}, ("out",), tmp_path / "plain.onnx")
    plain = onnx.load(tmp_path / "plain.onnx")
    fused = onnx.load(tmp_path / "plain.onnx")
    fuse_unit_rows(fused)
    assert set(operators(fused)) <= {"LpNormalization", "Constant"}
    feeds = {"x": x.numpy()}
    expected, out = run(plain, feeds), run(fused, feeds)
    assert np.abs(expected - out).max() < 1e-6
    assert not out[3].any()


@pytest.mark.parametrize("other", [{"least": 1e-3}, {"least": 1e-12, "power": 4.0}])
def test_what_is_not_a_length_is_left_alone(other, tmp_path):
    trace(UnitRows(**other), {"x": torch.randn(4, 8)}, ("out",), tmp_path / "plain.onnx")
    model = onnx.load(tmp_path / "plain.onnx")
    before = operators(model)
    fuse_unit_rows(model)
    assert operators(model) == before


class Choice(torch.nn.Module):
    """A where between what two matrices of weights make, both of which are used elsewhere as told."""

    def __init__(self, over=(0, 1), shared=False, one_row=False):
        super().__init__()
        self.over, self.shared, self.one_row = over, shared, one_row
        self.a, self.b, self.last = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        y = x.exp()
        a, b = self.a(y).relu(), self.b(y.sum(dim=0, keepdim=True) if self.one_row else y)
        out = self.last(torch.where(x.amax(dim=self.over, keepdim=True) > 0, a, b))
        return out + a if self.shared else out


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_choice_computes_one_side(sign, tmp_path):
    x = sign * torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    trace(Choice(), {"x": x}, ("out",), tmp_path / "plain.onnx")
    plain, branched = (onnx.load(tmp_path / "plain.onnx") for _ in range(2))
    branch_where(branched)
    onnx.checker.check_model(branched, full_check=True)
    (choice,) = [node for node in branched.graph.node if node.op_type == "If"]
    then, other = ({node.op_type for node in helper.get_node_attr_value(choice, f"{side}_branch").node}
                   for side in ("then", "else"))  # fmt: skip
    assert then - {"Constant"} == {"Gemm", "Relu"}
    assert other - {"Constant"} == {"Gemm"}
    # What both sides read, and the weights of both, stay outside.
    assert Counter(node.op_type for node in branched.graph.node)["Exp"] == 1
    assert {i.name for i in branched.graph.initializer} == {i.name for i in plain.graph.initializer}
    assert np.array_equal(run(plain, {"x": x.numpy()}), run(branched, {"x": x.numpy()}))


@pytest.mark.parametrize("other", [{"over": (0,)}, {"shared": True}, {"one_row": True}])
def test_a_choice_that_saves_nothing_or_broadcasts_is_left_alone(other, tmp_path):
    trace(Choice(**other), {"x": torch.randn(6, 4)}, ("out",), tmp_path / "plain.onnx")
    model = onnx.load(tmp_path / "plain.onnx")
    before = operators(model)
    branch_where(model)
    assert operators(model) == before


class Histogram(torch.nn.Module):
    """Adds values at the places of a symbolic number of indices."""

    def __init__(self, fewer=0):
        super().__init__()
        self.fewer = fewer

    def forward(self, x, slots):
        cells = slots.squeeze(0).long()
        values = (slots.squeeze(0) >= 0).float()
        return x.scatter_add(0, cells[self.fewer :], values)


@pytest.mark.parametrize("fewer", [0, 2])
def test_a_slice_goes_if_it_takes_everything(fewer, tmp_path):
    inputs = {"x": torch.zeros(8), "slots": torch.tensor([[3, 1, 3, 3, 7]], dtype=torch.int32)}
    trace(Histogram(fewer), inputs, ("out",), tmp_path / "plain.onnx")
    plain, dropped = (onnx.load(tmp_path / "plain.onnx") for _ in range(2))
    drop_whole_slices(dropped)
    onnx.checker.check_model(dropped, full_check=True)
    assert operators(plain)["Slice"] - operators(dropped)["Slice"] == (0 if fewer else 1)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    assert np.array_equal(run(plain, feeds), run(dropped, feeds))


class Sums(torch.nn.Module):
    """int32 summed for a reader of int32, for one of int64, and from int64."""

    def forward(self, x):
        return x.sum(1, dtype=torch.int32), x.sum(0), x.long().sum(1).int()


def test_sums_of_int32_stay_int32(tmp_path):
    x = torch.randint(-9, 2**20, (3, 5), dtype=torch.int32)
    trace(Sums(), {"x": x}, ("a", "b", "c"), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert operators(model)["Cast"] == 6
    narrow_sums(model)
    onnx.checker.check_model(model, full_check=True)
    # What is summed in int64 by name is the same number in int32, all but b.
    assert operators(model)["Cast"] == 2
    results = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    for result, expected in zip(results, Sums()(x), strict=True):
        assert result.dtype == expected.numpy().dtype
        assert np.array_equal(result, expected.numpy())


class Indexed(torch.nn.Module):
    """int32 that is widened only to index, and int32 that something else reads wide as well."""

    def forward(self, x, order):
        wide, shown = order.long(), order.flip(0).long()
        return x[wide].scatter(0, wide, x), x[shown], shown


def test_indices_stay_as_narrow_as_they_were(tmp_path):
    inputs = {"x": torch.randn(5), "order": torch.tensor([3, 1, 4, 0, 2], dtype=torch.int32)}
    trace(Indexed(), inputs, ("a", "b", "c"), tmp_path / "plain.onnx")
    plain, narrow = (onnx.load(tmp_path / "plain.onnx") for _ in range(2))
    narrow_indices(narrow)
    onnx.checker.check_model(narrow, full_check=True)
    assert (operators(plain)["Cast"], operators(narrow)["Cast"]) == (2, 1)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    sessions = (onnxruntime.InferenceSession(model.SerializeToString()) for model in (plain, narrow))
    for one, other in zip(*(session.run(None, feeds) for session in sessions), strict=True):
        assert np.array_equal(one, other)


def test_an_artifact_for_onnx_runtime_has_nothing_but_fused_attention_and_is_the_network(tmp_path, capfd):
    """By parity, which tells near ties from errors."""
    network = small_network(layers=2)
    out = ppexport.export(
        network, backend="onnx", size=(24, 37), out=tmp_path / "a", flavour="ort", capacities=[512, 1024, 1536]
    )
    found = operators(onnx.load(out / "model.onnx"))
    # A plain layer with one kind of block, a shifted one with four, and category attention in each.
    # Of the latter there are two: a picture without pure tokens takes the branch that has no slots.
    assert found["If"] == 2
    assert found["Attention"] == 1 + 4 + 2 * 2
    # The softmax of two dictionaries and of the refinement between them is left.
    assert found["Softmax"] == 3
    # As somebody opens it who does not know this project: ONNX Runtime finds nothing to warn of.
    capfd.readouterr()
    onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")
    report = run_parity(network, ppexport.open_artifact(out), tmp_path / "run", lambda *_: None)
    assert report.passed, report.pairs


@pytest.mark.parametrize("whole", [strip_attention.WHOLE, 0])
def test_swinir_for_onnx_runtime_moves_its_tokens_once_a_layer(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(strip_attention, "WHOLE", whole)
    network = random_small_network("swinir_light", layers=4)
    # The export compares the file with the twin.
    out = ppexport.export(network, backend="onnx", size=(24, 37), out=tmp_path / "a", flavour="ort")
    model = onnx.load(out / "model.onnx")
    found = operators(model)
    # Two plain layers with one kind of block, two shifted ones with four.
    assert found["Attention"] == 2 * (1 + 4)
    assert found["Scan"] == (0 if whole else found["Attention"])
    assert found["Softmax"] == 0
    assert not [node for node in model.graph.node if node.op_type == "Transpose" and "/attn/" in node.name]
    graph, rows = Graph(model), [24 * 40, network.config.dim]
    moved = [node for node in model.graph.node if node.op_type == "Gather" and graph.shape(node.output[0]) == rows]
    assert len(moved) == 4 + 1
