"""Half precision in ONNX Runtime on a CPU, which left alone computes in fp32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ppexport.backends.onnx.onnx_probe import round_outputs, rounding_session


def chain(steps):
    """x (fp32) -> Cast h -> the operators of *steps*, each with a constant -> Cast f."""
    nodes, values, last = [helper.make_node("Cast", ["x"], ["h0"], to=TensorProto.FLOAT16)], [], "h0"
    for i, (operator, number) in enumerate(steps, 1):
        values.append(numpy_helper.from_array(np.float16(number), f"c{i}"))
        nodes.append(helper.make_node(operator, [last, f"c{i}"], [f"h{i}"], name=f"/{operator}_{i}"))
        last = f"h{i}"
    nodes.append(helper.make_node("Cast", [last], ["y"], to=TensorProto.FLOAT))
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [port("x", TensorProto.FLOAT, [64])], [port("y", TensorProto.FLOAT, [64])], values
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, x):
    return rounding_session(model, "a chain").run(["y"], {"x": x})[0]


@pytest.mark.parametrize(
    "steps",
    [
        [("Mul", 1.001), ("Add", 1000.0), ("Add", -1000.0)],
        [("Div", 3.0), ("Mul", 3.0), ("Div", 7.0)],
        [("Mul", 1e-4), ("Mul", 1e-3), ("Mul", 1e4)],
        [("Mul", 60000.0), ("Mul", 60000.0), ("Div", 60000.0)],
    ],
    ids=["sums", "quotients", "subnormal", "overflow"],
)
def test_every_step_is_rounded(steps):
    x = np.linspace(0.1, 3, 64, dtype=np.float32)
    expected = x.astype(np.float16)
    with np.errstate(over="ignore"):
        for operator, number in steps:
            ufunc = {"Mul": np.multiply, "Add": np.add, "Div": np.divide}[operator]
            # Computed in fp32 and rounded once, as one IEEE operation of fp16 is.
            expected = ufunc(expected.astype(np.float32), np.float32(np.float16(number))).astype(np.float16)
    assert np.array_equal(run(chain(steps), x), expected.astype(np.float32))


def test_a_graph_without_half_stays_as_it_is():
    model = chain([("Mul", 2.0)])
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for node in single.graph.node:
        for attribute in node.attribute:
            attribute.i = TensorProto.FLOAT
    del single.graph.initializer[:]
    single.graph.initializer.append(numpy_helper.from_array(np.float32(2), "c1"))
    assert round_outputs(single).SerializeToString() == single.SerializeToString()
