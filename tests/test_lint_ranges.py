"""The rule `count-in-half`: whole numbers above 2048, and any above 65504, where they are computed in fp16."""

from __future__ import annotations

import numpy as np
import pytest
from lint_models import BOOL, ERROR, FLOAT, INT32, by_rule, constant, ints, lint, model, node, value
from onnx import TensorProto

from ppexport.backends.onnx.lint.linting import Runtime

HALF = TensorProto.FLOAT16
RULE = "count-in-half"


def counting(size, element=FLOAT, splits=None):
    """How many of *size* truth values are true: summed as floats of a type, from parts of *splits* on in int32."""
    flags = node("Cast", "x", "f", to=element)
    if splits is None:
        nodes, constants = [flags, node("ReduceSum", "f axes", "y", keepdims=0)], [ints("axes", 0)]
    else:
        constants = [ints("axes", 1), ints("shape", -1, splits), ints("first", 0)]
        nodes = [
            flags, node("Reshape", "f shape", "r"), node("ReduceSum", "r axes", "s", "/parts", keepdims=0),
            node("Cast", "s", "i", to=INT32), node("ReduceSum", "i first", "y", keepdims=0),
        ]  # fmt: skip
    made = element if splits is None else INT32
    return model(nodes, constants, [value("x", [size], BOOL)], [value("y", [], made)])


@pytest.mark.parametrize(("size", "splits", "found"), [(2048, None, 0), (2049, None, 1), (1 << 14, 64, 0)])
@pytest.mark.parametrize("element", [FLOAT, HALF])
def test_sums(size, splits, found, element):
    findings = by_rule(lint(counting(size, element, splits)), RULE)
    assert len(findings) == found
    if findings:
        (finding,) = findings
        # fp32 is fp16 on one kind of processor, fp16 on all.
        expected = (Runtime.QNN,) if element == FLOAT else tuple(Runtime)
        assert (finding.op, finding.module, finding.severity, finding.runtimes) == (
            "ReduceSum",
            "layer",
            ERROR,
            expected,
        )
        assert "up to 2049 in float" in finding.message
        assert "cast to int32" in finding.way_out


def test_a_product_of_levels_is_found_once_and_not_what_follows_from_it():
    nodes = [
        node("Clip", "x zero one", "c"), node("Mul", "c most", "m", "/levels"), node("Floor", "m", "f"),
        node("Mul", "f weight", "k", "/keys"), node("Add", "k k", "y", "/more"),
    ]  # fmt: skip
    numbers = {"zero": 0, "one": 1, "most": 255, "weight": 100}
    constants = [constant(name, np.float32(number)) for name, number in numbers.items()]
    (finding,) = by_rule(lint(model(nodes, constants)), RULE)
    assert finding.node == "/keys"
    assert "whole numbers up to 25500" in finding.message


@pytest.mark.parametrize(
    ("number", "words"),
    [(2048.0, None), (2050.0, "whole numbers up to 2050"), (3000.5, None), (70000.5, "fp16 ends at 65504")],
)
def test_constants(number, words):
    proto = model([node("Mul", "x c", "y")], [constant("c", np.float32(number))])
    findings = by_rule(lint(proto), RULE)
    assert [words in finding.message for finding in findings] == ([] if words is None else [True])


@pytest.mark.parametrize(
    "proto",
    [
        model([node("ScatterElements", "x", "y")]),
        model([node("ArgMax", "x", "y", axis=9)]),
        model([node("CumSum", "x a", "y")], [ints("a", 77)]),
        model([node("Mul", "c c", "d"), node("Mul", "d d", "y")], [constant("c", np.float64(1e200))]),
    ],
)
def test_what_makes_no_sense_is_left_to_other_rules(proto):
    assert all(finding.tensor == "c" for finding in by_rule(lint(proto), RULE))
