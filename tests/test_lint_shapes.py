"""The rules on shapes and on constants: models that break them, and models that do not."""

from __future__ import annotations

from pathlib import Path

import lint_models as m
import numpy as np
import onnx
import pytest
from lint_models import COREML, ERROR, NOTE, TRT, WARNING, by_rule, lint, model, node, only, shape_of, value
from onnx import helper

from ppexport.backends.onnx.lint.linting import Runtime
from ppexport.errors import InputError


@pytest.mark.parametrize(("rank", "runtimes"), [(5, None), (6, (COREML,)), (9, (TRT, COREML))])
def test_rank(rank: int, runtimes: tuple[Runtime, ...] | None) -> None:
    shape = [1] * (rank - 4) + [4, 8, 8, 1]
    proto = model(
        [node("Reshape", "x s", "y", "/layers.3/attn_win/Reshape")], [m.ints("s", *shape)], outputs=[value("y", shape)]
    )
    found = by_rule(lint(proto), "rank")
    assert [finding.runtimes for finding in found] == ([] if runtimes is None else [runtimes])
    if found:
        assert found[0].module == "layers.3.attn_win"
        assert f"rank {rank}" in found[0].message


def test_rank_of_inputs_and_constants() -> None:
    shape = [1, 1, 2, 2, 2, 2]
    proto = model([node("Add", "x c", "y")], [m.zeros("layer.c", *shape)], [value("x", shape)], [value("y", shape)])
    proto.graph.node[0].input[1] = "layer.c"
    assert {finding.tensor for finding in by_rule(lint(proto), "rank")} == {"x", "layer.c", "y"}


def test_unknown_rank() -> None:
    proto = model(
        [node("Reshape", "x s", "a", "/up/Reshape"), node("Relu", "a", "y", "/up/Relu")],
        inputs=[value("x", [1, 4, 8, 8]), value("s", ["n"], m.INT64)],
    )
    finding = only(lint(proto), "unknown-rank")
    assert (finding.node, finding.module) == ("/up/Reshape", "up")
    assert not by_rule(lint(m.plain()), "unknown-rank")


def test_unknown_rank_of_an_input() -> None:
    assert only(lint(model([node("Relu", "x", "y")], inputs=[value("x", None)])), "unknown-rank").tensor == "x"


def test_dynamic_shape() -> None:
    proto = model(
        [node("Relu", "x", "a"), node("Relu", "a", "y")],
        inputs=[value("x", ["batch", 3, 8, 8])],
        outputs=[value("y", ["batch", 3, 8, 8])],
    )
    found = by_rule(lint(proto), "dynamic-shape")
    assert [(finding.severity, finding.tensor) for finding in found] == [(ERROR, "x"), (ERROR, "y"), (NOTE, "a")]
    assert "[batch, 3, 8, 8]" in found[0].message
    assert not by_rule(lint(proto, symbols={"batch": 2}), "dynamic-shape")


def slots_model() -> onnx.ModelProto:
    """As a capacity set does it: only the length of `slots` matters, the graph makes its own range."""
    return model(
        [
            node("Shape", "slots", "s"),
            node("Gather", "s one", "n"),
            node("Range", "zero n one", "r"),
            node("Gather", "x r", "g", axis=1),
            node("Reshape", "g groups", "y"),
        ],
        [m.constant("one", np.array(1)), m.constant("zero", np.array(0)), m.ints("groups", 1, -1, 128, 4)],
        inputs=[value("x", [1, 4096, 4]), value("slots", [1, "slots"], m.INT32)],
        outputs=[value("y", [1, "groups", 128, 4])],
    )


def test_symbols() -> None:
    report = lint(slots_model(), symbols={"slots": 1024, "groups": 8})
    assert report.findings == ()
    assert report.facts["symbols"] == {"slots": 1024, "groups": 8}
    assert by_rule(lint(slots_model()), "dynamic-shape")
    assert not by_rule(lint(slots_model()), "data-dependent-shape"), "a shape of a shape is not data"


@pytest.mark.parametrize("symbols", [{"nothing": 4}, {"slots": 0}])
def test_symbols_that_cannot_be(symbols: dict[str, int]) -> None:
    with pytest.raises(InputError):
        lint(slots_model(), symbols=symbols)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs"),
    [
        ("Reshape", "x data", "y"),
        ("Expand", "x data", "y"),
        ("Tile", "x data", "y"),
        ("ConstantOfShape", "data", "y"),
        ("Slice", "x data four axes", "y"),
        ("Slice", "x four data axes", "y"),
        ("Pad", "x data", "y"),
        ("Resize", "x - - data", "y"),
    ],
)
def test_data_dependent_shape(op: str, inputs: str, outputs: str) -> None:
    length = 8 if op == "Pad" else 4
    proto = model(
        [node("Cast", "sizes", "data", to=m.INT64), node(op, inputs, outputs, "/crop/op")],
        [m.ints("four", 1, 1, 1, 1), m.ints("axes", 0, 1, 2, 3)],
        inputs=[value("x", [1, 4, 8, 8]), value("sizes", [length])],
        outputs=[value("y", [1, 1, 1, 1])],
    )
    finding = only(lint(proto), "data-dependent-shape")
    assert (finding.op, finding.module, finding.tensor, finding.severity) == (op, "crop", "data", ERROR)


def test_arithmetic_on_static_shapes_is_followed() -> None:
    """What tracing writes for `x.expand(2, -1, -1, -1).roll(...)`, with an Equal, a Where and a Mod that onnx skips."""
    proto = model(
        [
            node("Shape", "x", "s"),
            node("ConstantOfShape", "four", "ones", value=m.ints("v", 1)),
            node("Mul", "ones minus", "m"),
            node("Equal", "target m", "e"),
            node("Where", "e ones target", "w"),
            node("Expand", "x w", "b"),
            node("Shape", "b", "bs"),
            node("Mod", "minus bs", "shifts"),
            node("Gather", "shifts two", "shift"),
            node("Slice", "b shift far two", "tail"),
            node("Slice", "b zero shift two", "head"),
            node("Concat", "tail head", "y", axis=2),
        ],
        [
            m.ints("four", 4),
            m.ints("minus", -1),
            m.ints("target", 2, -1, -1, -1),
            m.ints("two", 2),
            m.ints("zero", 0),
            m.ints("far", 2**62),
        ],
        outputs=[value("y", [2, 4, 8, 8])],
    )
    assert lint(proto).findings == ()


def test_a_flatten_with_a_dynamic_batch_keeps_what_is_known() -> None:
    """`x.view(b, c * h * w)` of (n, 4, 8, 8): the 256 is known."""
    proto = model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node("Gather", "s one", "c"),
            node("Mul", "c area", "size"),
            node("Concat", "n size", "shape", axis=0),
            node("Reshape", "x shape", "y"),
        ],
        [m.ints("zero", 0), m.ints("one", 1), m.ints("area", 64)],
        inputs=[value("x", ["n", 4, 8, 8])],
    )
    report = lint(proto)
    assert shape_of(report, "y") == ["n", 256]
    assert {finding.rule for finding in report.findings} == {"dynamic-shape", "int64"}


def test_the_way_out_of_a_symbolic_axis_is_an_option_that_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that the finding names is given, and the finding is gone."""
    from ppexport.cli import app

    shape = ["batch", 3, 8, 8]
    proto = model([node("Relu", "x", "y")], inputs=[value("x", shape)], outputs=[value("y", shape)])
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(SystemExit):
        app(["lint", str(tmp_path / "m.onnx")])
    said = capsys.readouterr().out
    assert "dynamic-shape" in said
    assert "--length AXIS=N" in said
    with pytest.raises(SystemExit) as ended:
        app(["lint", str(tmp_path / "m.onnx"), "--length", "batch=2"])
    assert ended.value.code == 0
    assert "dynamic-shape" not in capsys.readouterr().out
    for wrong in ("batch", "=3", "batch=0", "batch=two", "batch=1.5"):
        with pytest.raises(InputError, match="--length is AXIS=N, such as batch=1"):
            app(["lint", str(tmp_path / "m.onnx"), "--length", wrong], standalone_mode=False)


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
    assert report.facts["large_constant_bytes"] == 2**20
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
    assert report.facts["operators"] == {"Constant": 1, "Add": 1}


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
