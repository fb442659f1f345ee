"""The report, and the rules on versions and operators: models that break them, and models that do not."""

from __future__ import annotations

import lint_models as m
import numpy as np
import pytest
from lint_models import by_rule, lint, model, node, only, unary, value

from ppexport.backends.onnx.lint import describe_rules
from ppexport.backends.onnx.rules import RULES, Runtime, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
TRT, COREML = Runtime.TENSORRT, Runtime.COREML


def test_a_plain_model_has_no_findings() -> None:
    report = lint(m.plain())
    assert report.findings == ()
    assert report.ok
    assert report.counts == {ERROR: 0, WARNING: 0, NOTE: 0}


def test_facts() -> None:
    facts = lint(m.plain()).facts
    assert (facts.file, facts.ir_version, facts.opsets) == ("model.onnx", 8, {"": 17})
    assert facts.nodes == 2
    assert facts.operators == {"Conv": 1, "Reshape": 1}
    assert facts.initializer_bytes == 4 * 4 * 9 * 4 + 3 * 8
    assert facts.file_bytes == len(m.plain().SerializeToString())
    assert facts.inputs["x"].shape == (1, 4, 8, 8)
    assert facts.outputs["y"].text() == "float [1, 4, 64]"


def test_a_report_is_json() -> None:
    import json

    data = json.loads(json.dumps(lint(m.everything_wrong()).to_dict()))
    assert data["ok"] is False
    assert data["counts"]["error"] == sum(finding["severity"] == "error" for finding in data["findings"])
    assert data["runtimes"]["tensorrt"] == "TensorRT 10.3"
    assert data["facts"]["inputs"][0] == {"name": "x", "type": "float", "shape": [1, 4, 8, 8]}
    assert {"severity", "rule", "message", "way_out", "runtimes", "node", "op", "module"} <= set(data["findings"][0])


def test_errors_come_first() -> None:
    severities = [finding.severity for finding in lint(m.everything_wrong()).findings]
    assert severities == sorted(severities, key=list(Severity).index)


def test_rules_are_documented_and_have_distinct_names() -> None:
    described = describe_rules()
    assert len(described) == len(RULES)
    for rule in RULES:
        assert rule.id == rule.id.lower().replace("_", "-")
        assert rule.way_out
        assert "Way out" in described[rule.id], rule.id


@pytest.mark.parametrize(("ir", "severity"), [(8, None), (9, WARNING), (10, ERROR)])
def test_ir_version(ir: int, severity: Severity | None) -> None:
    proto = m.plain()
    proto.ir_version = ir
    found = by_rule(lint(proto), "ir-version")
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize(("opset", "severity"), [(11, None), (17, None), (18, WARNING), (19, WARNING), (20, ERROR)])
def test_opset_version(opset: int, severity: Severity | None) -> None:
    proto = m.plain()
    proto.opset_import[0].version = opset
    found = by_rule(lint(proto), "opset-version")
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


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


def test_attention_of_opset_23() -> None:
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


@pytest.mark.parametrize("op", ["NonZero", "Unique"])
def test_data_dependent_operator(op: str) -> None:
    report = lint(
        model([node(op, "x", "y", "/mask/op")], outputs=[value("y", None, m.INT64 if op == "NonZero" else m.FLOAT)])
    )
    finding = only(report, "data-dependent-operator")
    assert (finding.op, finding.module, finding.severity) == (op, "mask", ERROR)
    assert not by_rule(report, "data-dependent-shape"), "one finding is enough"
    assert not by_rule(lint(unary("Relu")), "data-dependent-operator")


def test_control_flow_and_what_is_inside() -> None:
    report = lint(m.branches())
    assert only(report, "control-flow").op == "If"
    assert only(report, "rank").module == "layer.inner"
    assert only(report, "cumsum").op == "CumSum"
    assert only(lint(m.everything_wrong()), "control-flow").module == "again"


def test_sequence() -> None:
    proto = model(
        [node("SplitToSequence", "x", "s", axis=1), node("SequenceAt", "s zero", "y")],
        [m.constant("zero", np.array(0))],
    )
    assert {finding.op for finding in by_rule(lint(proto), "sequence")} == {"SplitToSequence", "SequenceAt"}
    assert not by_rule(lint(m.plain()), "sequence")


def test_cumsum() -> None:
    proto = model(
        [node("CumSum", "x axis", "y")], [m.constant("axis", np.array(2))], outputs=[value("y", [1, 4, 8, 8])]
    )
    finding = only(lint(proto), "cumsum")
    assert "8 steps" in finding.message
    assert finding.runtimes == (TRT,)


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random(op: str) -> None:
    assert only(lint(unary(op)), "random").op == op


def test_tensorrt_operator() -> None:
    proto = model(
        [node("STFT", "x step - length", "y")],
        [m.constant("step", np.array(4)), m.constant("length", np.array(8))],
        inputs=[value("x", [1, 64, 1])],
    )
    finding = only(lint(proto), "tensorrt-operator")
    assert (finding.op, finding.runtimes) == ("STFT", (TRT,))
    assert not by_rule(lint(m.plain()), "tensorrt-operator")
