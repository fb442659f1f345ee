"""The rules on types and structure, local functions, and models of other projects."""

from __future__ import annotations

import lint_models as m
import numpy as np
import pytest
from lint_models import by_rule, lint, model, node, only, unary, value
from onnx import TensorProto, helper

from ppexport.backends.onnx.rules import Runtime, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
TRT, COREML = Runtime.TENSORRT, Runtime.COREML


@pytest.mark.parametrize(
    "element", [TensorProto.BFLOAT16, TensorProto.UINT32, TensorProto.COMPLEX64, TensorProto.STRING]
)
def test_tensor_type(element: int) -> None:
    proto = model([node("Identity", "x", "y")], inputs=[value("x", [4], element)], outputs=[value("y", [4], element)])
    assert {finding.tensor for finding in by_rule(lint(proto), "tensor-type")} == {"x", "y"}


def test_string_constants() -> None:
    proto = model([node("Equal", "x w", "y")], [helper.make_tensor("w", TensorProto.STRING, [1], [b"cat"])])
    assert "w" in {finding.tensor for finding in by_rule(lint(proto), "tensor-type")}


def test_float64() -> None:
    proto = model(
        [
            node("Cast", "x", "a", "/norm/Cast", to=TensorProto.DOUBLE),
            node("Mul", "a c", "b", "/norm/Mul"),
            node("Cast", "b", "y", to=m.FLOAT),
        ],
        [m.constant("c", np.array(0.5))],
        outputs=[value("y", [1, 4, 8, 8])],
    )
    found = by_rule(lint(proto), "float64")
    assert [(finding.severity, finding.op) for finding in found] == [(ERROR, "Cast"), (ERROR, "Mul"), (NOTE, None)]
    assert found[0].module == "norm"
    assert not by_rule(lint(m.plain()), "float64")


def test_int64() -> None:
    proto = model(
        [node("ArgMax", "x", "a", axis=1), node("Cast", "a", "y", to=m.INT32), node("Identity", "a", "z")],
        outputs=[value("y", [1, 1, 8, 8], m.INT32), value("z", [1, 1, 8, 8], m.INT64)],
    )
    found = by_rule(lint(proto), "int64")
    assert [(finding.severity, finding.tensor) for finding in found] == [(WARNING, "z"), (NOTE, "a")]
    assert not by_rule(lint(m.plain()), "int64"), "shapes and axes do not count"


@pytest.mark.parametrize(("element", "found"), [(m.INT32, 1), (m.INT64, 1), (m.FLOAT, 0)])
def test_integer_choice(element: int, found: int) -> None:
    proto = model(
        [
            node("Cast", "x", "a", to=element),
            node("Cast", "x", "mask", to=TensorProto.BOOL),
            node("Where", "mask a w", "y", "/router/Where"),
        ],
        [m.constant("w", np.array(3, helper.tensor_dtype_to_np_dtype(element)))],
        outputs=[value("y", [1, 4, 8, 8], element)],
    )
    findings = by_rule(lint(proto), "integer-where")
    assert [(f.severity, f.module, f.runtimes) for f in findings] == [(ERROR, "router", (Runtime.OPENVINO,))] * found
    assert not by_rule(lint(m.plain()), "integer-where")


@pytest.mark.parametrize(("activation", "point"), [(np.uint8, 0), (np.uint8, 128), (np.int8, 3)])
def test_quantization(activation: type, point: int) -> None:
    found = by_rule(lint(m.quantized(activation, point)), "quantization")
    assert {finding.node for finding in found} == {"/conv/q", "/conv/dq"}
    assert {finding.runtimes for finding in found} == {(TRT,)}


def test_sparse_constant() -> None:
    assert only(lint(m.sparse()), "sparse-constant").tensor == "s"


def test_invalid_graph() -> None:
    finding = only(lint(model([node("Relu", "nobody", "y")])), "invalid-graph")
    assert "nobody" in finding.message


def test_shape_conflict() -> None:
    proto = unary("Relu")
    proto.graph.output[0].CopyFrom(value("y", [1, 4, 16, 16]))
    finding = only(lint(proto), "shape-conflict")
    assert finding.severity is WARNING


def test_local_functions_are_expanded() -> None:
    report = lint(m.functions())
    found = by_rule(report, "sorting")
    assert len(found) == 2
    assert {finding.module for finding in found} == {"best"}
    assert "K = 3" in found[0].message
    assert report.facts.operators == {"Constant": 2, "TopK": 2, "Relu": 2}
    assert not by_rule(report, "foreign-domain")


def test_only_the_asked_runtimes() -> None:
    proto = model(
        [node("CumSum", "x axis", "y")], [m.constant("axis", np.array(2))], outputs=[value("y", [1, 4, 8, 8])]
    )
    assert not lint(proto, runtimes=(TRT,)).ok
    report = lint(proto, runtimes=(COREML,))
    assert report.ok
    assert report.findings == ()


def test_a_model_of_another_project() -> None:
    report = lint(m.everything_wrong())
    found = {(finding.rule, finding.module) for finding in report.findings if finding.severity is ERROR}
    assert {
        ("sorting", "route"),
        ("data-dependent-operator", "mask"),
        ("control-flow", "again"),
        ("rank", "windows"),
    } <= found
    assert not by_rule(report, "invalid-graph")
