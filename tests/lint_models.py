"""Small ONNX models for the linter's tests, written by hand, and how to lint them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ppexport.backends.onnx.lint.lint_child import lint_here
from ppexport.backends.onnx.lint.linting import Finding, LintReport, Runtime, Severity

ERROR, WARNING, NOTE = Severity
TRT, COREML = Runtime.TENSORRT, Runtime.COREML
FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


def value(name: str, shape: Sequence[int | str | None] | None, element: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def constant(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def ints(name: str, *numbers: int) -> TensorProto:
    return constant(name, np.array(numbers, np.int64))


def zeros(name: str, *shape: int, dtype: type = np.float32) -> TensorProto:
    return constant(name, np.zeros(shape, dtype))


def node(op: str, inputs: str, outputs: str, name: str | None = None, **attributes: object) -> onnx.NodeProto:
    """Inputs and outputs as words; "-" is an input that is left out."""
    given = ["" if word == "-" else word for word in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=f"/layer/{op}" if name is None else name, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (value("x", [1, 4, 8, 8]),),
    outputs: Sequence[onnx.ValueInfoProto] = (value("y", None),),
    opset: int = 17,
    ir: int = 8,
    domains: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def plain() -> onnx.ModelProto:
    """Nothing to object to: a convolution and a static reshape."""
    return model(
        [node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Reshape", "a shape", "y")],
        [zeros("w", 4, 4, 3, 3), ints("shape", 1, 4, 64)],
        outputs=[value("y", [1, 4, 64])],
    )


def branches() -> onnx.ModelProto:
    """An If whose branches hold nodes of rank 6 and a CumSum."""

    def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [value(f"{name}_out", None)])

    high = branch(
        "high",
        [
            node("Reshape", "x six", "h", "/layer/inner/Reshape"),
            node("Reshape", "h four", "high_out", "/layer/inner/R2"),
        ],
    )
    low = branch("low", [node("CumSum", "x axis", "low_out", "/layer/CumSum")])
    return model(
        [node("If", "condition", "y", then_branch=high, else_branch=low)],
        [ints("six", 1, 2, 2, 8, 2, 4), ints("four", 1, 4, 8, 8), constant("axis", np.array(1))],
        inputs=[value("x", [1, 4, 8, 8]), value("condition", [], BOOL)],
        outputs=[value("y", [1, 4, 8, 8])],
    )


def functions() -> onnx.ModelProto:
    """Two calls of a local function that calls another, which holds a TopK."""
    inner = helper.make_function(
        "local",
        "Best",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"], value_ints=[3], name="/best/Constant"),
            helper.make_node("TopK", ["a", "k"], ["b", "i"], name="/best/TopK"),
        ],
        [helper.make_opsetid("", 17)],
    )
    outer = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["c"],
        [helper.make_node("Best", ["a"], ["b"], domain="local"), helper.make_node("Relu", ["b"], ["c"])],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    calls = [
        helper.make_node("Twice", ["x"], ["m"], domain="local", name="/one/Twice"),
        helper.make_node("Twice", ["m"], ["y"], domain="local", name="/two/Twice"),
    ]
    return model(calls, outputs=[value("y", [1, 4, 8, 3])], domains={"local": 1}, functions=[inner, outer])


def everything_wrong() -> onnx.ModelProto:
    """Another project's model: TopK, NonZero, a Loop, six dimensions."""
    body = helper.make_graph(
        [node("Add", "state one", "next", "/loop/Add"), node("Identity", "go", "still", "/loop/Identity")],
        "body",
        [value("i", [], INT64), value("go", [], BOOL), value("state", [])],
        [value("still", [], BOOL), value("next", [])],
    )
    return model(
        [
            node("Reshape", "x six", "r", "/windows/Reshape"),
            node("Transpose", "r", "t", "/windows/Transpose", perm=[0, 2, 4, 3, 5, 1]),
            node("TopK", "flat k", "best where", "/route/TopK"),
            node("NonZero", "x", "nz", "/mask/NonZero"),
            node("Loop", "trips - start", "looped", "/again/Loop", body=body),
        ],
        [
            ints("six", 1, 4, 2, 4, 2, 4),
            ints("k", 4096),
            zeros("start"),
            constant("trips", np.array(3)),
            constant("one", np.ones((), np.float32)),
        ],
        inputs=[value("x", [1, 4, 8, 8]), value("flat", [1, 8192])],
        outputs=[value("t", None), value("best", None), value("nz", None, INT64), value("looped", [])],
    )


def quantized(activation: type = np.int8, zero_point: int = 0) -> onnx.ModelProto:
    """QDQ around a convolution and a linear layer whose int8 weights are 2.25 MiB and 256 KiB."""
    point = constant("zp", np.array(zero_point, activation))
    return model(
        [
            node("QuantizeLinear", "x scale zp", "xq", "/conv/q"),
            node("DequantizeLinear", "xq scale zp", "xd", "/conv/dq"),
            node("DequantizeLinear", "wq scale wzp", "wd", "/conv/w_dq"),
            node("Conv", "xd wd", "c", "/conv/Conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("ReduceMean", "c", "m", "/pool/ReduceMean", axes=[2, 3], keepdims=0),
            node("DequantizeLinear", "vq scale wzp", "vd", "/head/v_dq"),
            node("Transpose", "vd", "vt", "/head/Transpose", perm=[1, 0]),
            node("MatMul", "m vt", "y", "/head/MatMul"),
        ],
        [
            constant("scale", np.array(0.1, np.float32)),
            point,
            constant("wzp", np.array(0, np.int8)),
            zeros("wq", 512, 512, 3, 3, dtype=np.int8),
            zeros("vq", 512, 512, dtype=np.int8),
        ],
        inputs=[value("x", [1, 512, 4, 4])],
        outputs=[value("y", [1, 512])],
    )


def sparse() -> onnx.ModelProto:
    """A Constant node with a sparse value."""
    held = helper.make_sparse_tensor(constant("", np.ones(2, np.float32)), ints("", 1, 3), [8])
    return model(
        [node("Constant", "", "s", sparse_value=held), node("Add", "x s", "y")], outputs=[value("y", [1, 4, 8, 8])]
    )


def all_models() -> dict[str, onnx.ModelProto]:
    makers = (plain, branches, functions, everything_wrong, quantized, sparse)
    return {maker.__name__: maker() for maker in makers}


def lint(proto: onnx.ModelProto, **options: Any) -> LintReport:
    """Lint *proto* as a file."""
    with tempfile.TemporaryDirectory() as folder:
        return lint_here(saved(proto, Path(folder)), **options)


def by_rule(report: LintReport, rule: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.rule == rule]


def shape_of(report: LintReport, output: str) -> list[int | str | None]:
    """As the facts tell it."""
    return next(port["shape"] for port in report.facts["outputs"] if port["name"] == output)


def only(report: LintReport, rule: str) -> Finding:
    """The one finding of *rule*."""
    found = by_rule(report, rule)
    assert len(found) == 1, [finding.message for finding in report.findings]
    return found[0]


def unary(op: str, **attributes: object) -> onnx.ModelProto:
    return model([node(op, "x", "y", **attributes)], outputs=[value("y", [1, 4, 8, 8])])
