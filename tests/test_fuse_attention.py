"""Five operators become one, and compute the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import ppexport
from ppexport.backends.onnx.build import trace
from ppexport.backends.onnx.fuse_attention import fuse_attention
from ppexport.cli import app
from ppexport.errors import ExportError


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def run(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


class Attention(torch.nn.Module):
    def __init__(self, bias, scale):
        super().__init__()
        self.scale = scale
        self.register_buffer("bias", bias)

    def forward(self, q, k, v):
        logits = (q if self.scale is None else q * self.scale) @ k.transpose(2, 3)
        return (logits if self.bias is None else logits + self.bias).softmax(-1) @ v


@pytest.mark.parametrize("scale", [None, 3.7])
@pytest.mark.parametrize("bias", [None, (4, 1, 128, 128), (1, 1, 128, 128), (4, 6, 128, 128)])
def test_the_fused_operator_computes_the_same(bias, scale, tmp_path):
    rng = torch.Generator().manual_seed(3)
    module = Attention(None if bias is None else torch.randn(bias, generator=rng), scale)
    inputs = {name: torch.randn(4, 6, 128, 12, generator=rng) for name in "qkv"}
    trace(module, inputs, ("out",), tmp_path / "plain.onnx")
    plain = onnx.load(tmp_path / "plain.onnx")
    fused = fuse_attention(plain)
    onnx.checker.check_model(fused, full_check=True)
    assert operators(plain)["Softmax"] == 1
    assert set(operators(fused)) <= {"Attention", "Constant"}
    read = {name for node in fused.graph.node for name in node.input}
    assert {init.name for init in fused.graph.initializer} <= read
    feeds = {name: value.numpy() for name, value in inputs.items()}
    assert np.abs(run(plain, feeds) - run(fused, feeds)).max() < 1e-5


def chain(axis=-1, perm=(0, 1, 3, 2), extra=False):
    """MatMul, Softmax, MatMul, with something that must stop the pass."""
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=perm),
        helper.make_node("MatMul", ["q", "kt"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "v"], ["out"]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    if extra:
        nodes.append(helper.make_node("Relu", ["logits"], ["seen"]))
        outputs.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, 16, 16]) for n in "qkv"]
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "unused")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("other", [{"axis": 2}, {"perm": (1, 0, 3, 2)}, {"extra": True}])
def test_what_is_not_attention_is_left_alone(other):
    assert fuse_attention(chain()) is not None
    with pytest.raises(ExportError, match="no attention"):
        fuse_attention(chain(**other))


@pytest.fixture(scope="module")
def ort(tmp_path_factory):
    out = tmp_path_factory.mktemp("ort") / "a"
    network = ppexport.load_network("pp_atd_light_x2")
    return ppexport.export(
        network, backend="onnx", size=(40, 52), out=out, flavour="ort", capacities=[1024, 2048, 3072]
    )


def test_an_artefact_for_onnx_runtime_has_nothing_but_fused_attention(ort):
    found = operators(onnx.load(ort / "model.onnx"))
    # 12 plain layers with one kind of block, 12 shifted with four, and category attention in each.
    assert found["Attention"] == 12 * 1 + 12 * 4 + 24
    # The softmax of 24 dictionaries and of their 20 refinements is left.
    assert found["Softmax"] == 44
    assert (ort / "model.onnx").stat().st_size < 5_000_000


def test_an_artefact_for_onnx_runtime_is_the_network(ort, tmp_path):
    """By parity, which tells near ties from errors."""
    done = CliRunner().invoke(app, ["parity", str(ort), "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
