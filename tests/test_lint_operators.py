"""The report, and the rules on versions, operators and types: models that break them, and models that do not."""

from __future__ import annotations

import json

import lint_models as m
import numpy as np
import onnx
import pytest
from lint_models import COREML, ERROR, NOTE, TRT, WARNING, by_rule, lint, model, node, only, unary, value
from onnx import TensorProto, helper

from ppexport.backends.onnx.lint.lint_child import RULES
from ppexport.backends.onnx.lint.linting import Runtime, Severity


def test_a_plain_model_has_no_findings() -> None:
    report = lint(m.plain())
    assert report.findings == ()
    assert report.ok
    assert report.counts == {ERROR: 0, WARNING: 0, NOTE: 0}
    facts = report.facts
    assert (facts["file"], facts["ir_version"], facts["opsets"]) == ("model.onnx", 8, {"": 17})
    assert facts["nodes"] == 2
    assert facts["operators"] == {"Conv": 1, "Reshape": 1}
    assert facts["initializer_bytes"] == 4 * 4 * 9 * 4 + 3 * 8
    assert facts["file_bytes"] == len(m.plain().SerializeToString())
    assert facts["inputs"] == [{"name": "x", "type": "float", "shape": [1, 4, 8, 8]}]
    assert facts["outputs"] == [{"name": "y", "type": "float", "shape": [1, 4, 64]}]


def test_a_model_of_another_project() -> None:
    report = lint(m.everything_wrong())
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is False
    assert data["counts"]["error"] == sum(finding["severity"] == "error" for finding in data["findings"])
    assert data["runtimes"]["tensorrt"] == "TensorRT 10.3"
    assert {"severity", "rule", "message", "way_out", "runtimes", "node", "op", "module"} <= set(data["findings"][0])
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=list(Severity).index), "errors come first"
    found = {(finding.rule, finding.module) for finding in report.findings if finding.severity is ERROR}
    expected = [
        ("sorting", "route"),
        ("data-dependent-operator", "mask"),
        ("control-flow", "again"),
        ("rank", "windows"),
    ]
    assert set(expected) <= found
    assert not by_rule(report, "invalid-graph")


def test_rules_have_distinct_names_and_ways_out() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == 29
    for rule in RULES:
        assert rule.name == rule.name.lower().replace("_", "-")
        assert rule.way_out


@pytest.mark.parametrize(
    ("rule", "ir", "opset", "severity"),
    [
        *(("ir-version", ir, 17, severity) for ir, severity in ((8, None), (9, WARNING), (10, ERROR))),
        *(("opset-version", 8, opset, None) for opset in (11, 17)),
        *(("opset-version", 8, opset, WARNING) for opset in (18, 19)),
        ("opset-version", 8, 20, ERROR),
    ],
)
def test_versions(rule: str, ir: int, opset: int, severity: Severity | None) -> None:
    proto = m.plain()
    proto.ir_version, proto.opset_import[0].version = ir, opset
    assert [finding.severity for finding in by_rule(lint(proto), rule)] == ([severity] if severity else [])


def test_operators_newer_than_opset_17() -> None:
    gelu = model(
        [node("Gelu", "x", "a", "/body.0/act/Gelu"), node("Gelu", "a", "y", "/body.1/act/Gelu")],
        opset=20,
        outputs=[value("y", [1, 4, 8, 8])],
    )
    finding = only(lint(gelu), "operator-version")
    assert (finding.op, finding.module, finding.severity) == ("Gelu", "body.0.act", ERROR)
    assert "opset 20, 2 times, in body.0.act, body.1.act" in finding.message
    mean = model([node("ReduceMean", "x axes", "y")], [m.ints("axes", 1)], opset=18, outputs=[value("y", [1, 1, 8, 8])])
    assert "ReduceMean of opset 18, 1 time, " in only(lint(mean), "operator-version").message
    relu = unary("Relu")
    relu.opset_import[0].version = 18
    assert not by_rule(lint(relu), "operator-version")
    inputs = [value(name, [1, 4, 16, 12]) for name in "qkv"]
    proto = model([node("Attention", "q k v", "y")], opset=23, inputs=inputs, outputs=[value("y", [1, 4, 16, 12])])
    assert only(lint(proto), "operator-version").op == "Attention"


def test_unknown_operator() -> None:
    finding = only(lint(unary("Reluu")), "unknown-operator")
    assert (finding.op, finding.node) == ("Reluu", "/layer/Reluu")
    assert not by_rule(lint(unary("Relu")), "unknown-operator")


@pytest.mark.parametrize(
    ("domain", "runtimes"),
    [("com.microsoft", (TRT, COREML)), ("ai.onnx.contrib", tuple(Runtime)), ("mine", tuple(Runtime))],
)
def test_foreign_domain(domain: str, runtimes: tuple[Runtime, ...]) -> None:
    proto = model([node("FusedMatMul", "x x", "y", domain=domain)], domains={domain: 1})
    finding = only(lint(proto), "foreign-domain")
    assert (finding.op, finding.module, finding.runtimes) == ("FusedMatMul", "layer", runtimes)
    assert not by_rule(lint(unary("Relu", domain="ai.onnx")), "foreign-domain")


@pytest.mark.parametrize(("k", "words"), [(8, "K = 8 sorts"), (3840, "K = 3840 sorts"), (4096, "K = 4096; TensorRT")])
def test_sorting(k: int, words: str) -> None:
    proto = model(
        [node("TopK", "x k", "y i", "/layers.0/attn_aca/TopK")],
        [m.ints("k", k)],
        inputs=[value("x", [1, 8192])],
        outputs=[value("y", [1, k]), value("i", [1, k], m.INT64)],
    )
    finding = only(lint(proto), "sorting")
    assert words in finding.message
    assert (finding.severity, finding.module) == (ERROR, "layers.0.attn_aca")
    assert ("3840" in finding.message) == (k >= 3840)


def test_sorting_with_a_k_from_the_data() -> None:
    proto = model(
        [node("TopK", "x k", "y i")],
        inputs=[value("x", [1, 16]), value("k", [1], m.INT64)],
        outputs=[value("y", None), value("i", None, m.INT64)],
    )
    report = lint(proto)
    assert "only the data tells; TensorRT takes a constant up to 3840" in only(report, "sorting").message
    assert only(report, "data-dependent-shape").tensor == "k"


STFT = model(
    [node("STFT", "x step - length", "y")],
    [m.constant("step", np.array(4)), m.constant("length", np.array(8))],
    inputs=[value("x", [1, 64, 1])],
)
CUMSUM = model([node("CumSum", "x axis", "y")], [m.constant("axis", np.array(2))], outputs=[value("y", [1, 4, 8, 8])])


@pytest.mark.parametrize(
    ("rule", "op", "proto", "runtimes", "words"),
    [
        (
            "data-dependent-operator",
            "NonZero",
            model([node("NonZero", "x", "y")]),
            (TRT, COREML),
            "depends on the data",
        ),
        ("data-dependent-operator", "Unique", model([node("Unique", "x", "y")]), (TRT, COREML), "depends on the data"),
        *(
            ("random", op, unary(op), tuple(Runtime), op)
            for op in ("RandomNormalLike", "RandomUniformLike", "Bernoulli")
        ),
        ("tensorrt-operator", "STFT", STFT, (TRT,), "TensorRT 10.3 does not import STFT"),
        ("cumsum", "CumSum", CUMSUM, (TRT,), "8 steps"),
        ("control-flow", "If", m.branches(), (TRT, COREML), "If is control flow"),
    ],
)
def test_operators(rule: str, op: str, proto: onnx.ModelProto, runtimes: tuple[Runtime, ...], words: str) -> None:
    report = lint(proto)
    finding = only(report, rule)
    assert (finding.op, finding.module, finding.severity) == (op, "layer", ERROR)
    assert finding.runtimes == runtimes
    assert words in finding.message
    assert not by_rule(report, "data-dependent-shape"), "one finding is enough"
    assert not by_rule(lint(m.plain()), rule)


def test_what_is_inside_control_flow() -> None:
    report = lint(m.branches())
    assert only(report, "rank").module == "layer.inner"
    assert only(report, "cumsum").op == "CumSum"


def test_sequence() -> None:
    proto = model(
        [node("SplitToSequence", "x", "s", axis=1), node("SequenceAt", "s zero", "y")],
        [m.constant("zero", np.array(0))],
    )
    assert {finding.op for finding in by_rule(lint(proto), "sequence")} == {"SplitToSequence", "SequenceAt"}


def test_local_functions_are_expanded() -> None:
    report = lint(m.functions())
    found = by_rule(report, "sorting")
    assert [finding.module for finding in found] == ["best", "best"]
    assert "K = 3" in found[0].message
    assert report.facts["operators"] == {"Constant": 2, "TopK": 2, "Relu": 2}
    assert not by_rule(report, "foreign-domain")


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


@pytest.mark.parametrize(("activation", "point"), [(np.uint8, 0), (np.uint8, 128), (np.int8, 3)])
def test_quantization(activation: type, point: int) -> None:
    found = by_rule(lint(m.quantized(activation, point)), "quantization")
    assert {finding.node for finding in found} == {"/conv/q", "/conv/dq"}
    assert {finding.runtimes for finding in found} == {(TRT,)}


def test_weights_behind_quantisation_are_no_false_alarm() -> None:
    assert lint(m.quantized()).findings == ()


def test_sparse_constant() -> None:
    assert only(lint(m.sparse()), "sparse-constant").tensor == "s"


def test_invalid_graph() -> None:
    assert "nobody" in only(lint(model([node("Relu", "nobody", "y")])), "invalid-graph").message


def test_shape_conflict() -> None:
    proto = unary("Relu")
    proto.graph.output[0].CopyFrom(value("y", [1, 4, 16, 16]))
    assert only(lint(proto), "shape-conflict").severity is WARNING
