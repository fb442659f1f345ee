"""The rules on large, double and unused constants: models that break them, and models that do not."""

from __future__ import annotations

import lint_models as m
import numpy as np
import onnx
import pytest
from lint_models import by_rule, lint, model, node, only, value
from onnx import helper

from ppexport.backends.onnx.rules import Runtime, Severity

ERROR, WARNING = Severity.ERROR, Severity.WARNING


def large(
    shape: tuple[int, ...], user: onnx.NodeProto, dtype: type = np.float32, name: str = "onnx::Add_7"
) -> onnx.ModelProto:
    proto = model([user], [m.zeros("c", *shape, dtype=dtype)])
    proto.graph.initializer[0].name = name
    proto.graph.node[0].input[:] = [name if word == "c" else word for word in user.input]
    return proto


def test_large_constant() -> None:
    proto = large((4, 256, 256), node("Add", "x c", "y", "/layers.0/attn_win/Add"))
    proto.graph.input[0].CopyFrom(value("x", [16, 4, 256, 256]))
    report = lint(proto)
    finding = only(report, "large-constant")
    assert (finding.severity, finding.module, finding.op, finding.tensor) == (
        ERROR,
        "layers.0.attn_win",
        "Add",
        "onnx::Add_7",
    )
    assert "1.0 MiB" in finding.message
    assert "feeds Add" in finding.message
    assert report.facts.large_constant_bytes == 2**20
    assert finding.runtimes == tuple(Runtime)


@pytest.mark.parametrize("op", ["Add", "Mul", "Where", "Softmax"])
def test_large_constants_feed_anything_but_weights(op: str) -> None:
    inputs = {"Where": "b c x", "Softmax": "c"}.get(op, "x c")
    proto = model(
        [node(op, inputs, "y")],
        [m.zeros("c", 4, 128, 128), m.constant("b", np.array(True))],
        inputs=[value("x", [4, 128, 128])],
        outputs=[value("y", [4, 128, 128])],
    )
    assert only(lint(proto), "large-constant").op == op


def test_large_constants_in_constant_nodes() -> None:
    held = helper.make_node("Constant", [], ["c"], name="/layers.1/Constant", value=m.zeros("v", 4, 256, 256))
    proto = model(
        [held, node("Add", "x c", "y")], inputs=[value("x", [4, 256, 256])], outputs=[value("y", [4, 256, 256])]
    )
    report = lint(proto)
    assert only(report, "large-constant").module == "layers.1"
    assert report.facts.operators == {"Constant": 1, "Add": 1}


def test_several_large_constants_are_added_up() -> None:
    nodes = [node("Add", "x c0", "a0", "/l.0/Add"), node("Add", "a0 c1", "y", "/l.1/Add")]
    ones = np.ones((1, 4, 256, 256), np.float32)
    proto = model(
        nodes,
        [m.constant("c0", ones), m.constant("c1", 2 * ones)],
        [value("x", [1, 4, 256, 256])],
        [value("y", [1, 4, 256, 256])],
    )
    found = by_rule(lint(proto), "large-constant")
    assert [finding.module for finding in found] == ["l.0", "l.1"]
    assert all("one of 2, 2.0 MiB in all" in finding.message for finding in found)


@pytest.mark.parametrize(
    ("shape", "user"),
    [
        ((96, 96, 3, 3), node("Conv", "x c", "y")),
        ((96, 96, 3, 3), node("ConvTranspose", "x c", "y")),
        ((512, 512), node("MatMul", "x c", "y")),
        ((1, 512, 512), node("MatMul", "x c", "y")),
        ((512, 512), node("Gemm", "x c", "y")),
        ((40000, 4), node("Gather", "c i", "y")),
        ((40000,), node("LayerNormalization", "x c", "y")),
        ((40000,), node("BatchNormalization", "x c c c c", "y")),
    ],
)
def test_weights_are_no_large_constants(shape: tuple[int, ...], user: onnx.NodeProto) -> None:
    assert not by_rule(lint(large(shape, user)), "large-constant")


def test_a_stack_of_matrices_is_no_weight() -> None:
    assert by_rule(lint(large((4, 256, 256), node("MatMul", "x c", "y"))), "large-constant")


def test_named_and_index_constants_are_warnings() -> None:
    named = large((1, 256, 256), node("Add", "x c", "y"), name="vit.pos_embed")
    finding = only(lint(named), "large-constant")
    assert (finding.severity, finding.module) == (WARNING, "vit")
    index = large((65536,), node("Gather", "x c", "y", axis=3), np.int64)
    assert only(lint(index), "large-constant").severity is WARNING
    index = large((131072,), node("Gather", "x c", "y", axis=3), np.int64)
    assert only(lint(index), "large-constant").severity is ERROR


def test_weights_behind_quantisation_are_no_false_alarm() -> None:
    assert lint(m.quantized()).findings == ()


def test_duplicate_constant() -> None:
    table = np.arange(961 * 8, dtype=np.float32).reshape(961, 8)
    nodes = [node("Gather", f"t{i} k", f"g{i}", f"/l.{i}/Gather") for i in range(3)]
    tables = [m.constant(f"t{i}", table + (i == 2)) for i in range(3)]
    outputs = [value(f"g{i}", [2, 8]) for i in range(3)]
    report = lint(model(nodes, [*tables, m.ints("k", 0, 1)], outputs=outputs))
    finding = only(report, "duplicate-constant")
    assert (finding.severity, finding.module) == (WARNING, "l.1")
    assert "2 equal constants (t0, t1) waste 30 KiB" in finding.message


def test_unused_constant() -> None:
    proto = m.plain()
    proto.graph.initializer.append(m.zeros("body.old.weight", 256, 256))
    finding = only(lint(proto), "unused-constant")
    assert (finding.severity, finding.module, finding.tensor) == (WARNING, "body.old", "body.old.weight")
