"""The rules on ranks and shapes: models that break them, and models that do not."""

from __future__ import annotations

from pathlib import Path

import lint_models as m
import numpy as np
import onnx
import pytest
from lint_models import by_rule, lint, model, node, only, value

from ppexport.backends.onnx.rules import Runtime, Severity
from ppexport.errors import InputError

ERROR, NOTE = Severity.ERROR, Severity.NOTE
TRT, COREML = Runtime.TENSORRT, Runtime.COREML


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
    assert report.facts.symbols == {"slots": 1024, "groups": 8}
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
    """`x.view(b, c * h * w)` of (n, 4, 8, 8): the batch is unknown, the 256 is not."""
    proto = model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node("Slice", "s one end", "chw"),
            node("ReduceProd", "chw", "size", keepdims=1),
            node("Unsqueeze", "n axis", "batch"),
            node("Concat", "batch size", "shape", axis=0),
            node("Reshape", "x shape", "y"),
        ],
        [m.constant("zero", np.array(0)), m.ints("one", 1), m.ints("end", 4), m.ints("axis", 0)],
        inputs=[value("x", ["n", 4, 8, 8])],
    )
    report = lint(proto)
    assert report.facts.outputs["y"].shape == (None, 256)
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
