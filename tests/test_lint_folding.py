"""Arithmetic on shapes as the linter does it, against onnx's reference evaluator."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ppexport.backends.onnx.reading.constants import SMALL
from ppexport.backends.onnx.reading.folding import fold

INT = np.array([7, -7, 5, -5], np.int64)
TWO = np.array([2, 2, -3, -3], np.int64)
TABLE = np.arange(24, dtype=np.int64).reshape(2, 3, 4)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


CASES = [
    ("Add", [INT, TWO], {}),
    ("Sub", [INT, TWO], {}),
    ("Mul", [INT, TWO], {}),
    ("Div", [INT, TWO], {}),
    ("Div", [INT.astype(np.float32), TWO.astype(np.float32)], {}),
    ("Mod", [INT, TWO], {}),
    ("Mod", [INT, TWO], {"fmod": 1}),
    ("Min", [INT, TWO, ints(1)], {}),
    ("Max", [INT, TWO], {}),
    ("Neg", [INT], {}),
    ("Abs", [INT], {}),
    ("Equal", [INT, ints(7)], {}),
    ("Greater", [INT, TWO], {}),
    ("LessOrEqual", [INT, TWO], {}),
    ("Not", [INT > 0], {}),
    ("And", [INT > 0, TWO > 0], {}),
    ("Where", [INT > 0, INT, TWO], {}),
    ("Floor", [np.array([1.5, -1.5], np.float32)], {}),
    ("Cast", [np.array([1.5, -1.5], np.float32)], {"to": TensorProto.INT64}),
    ("Concat", [INT, TWO], {"axis": 0}),
    ("Gather", [TABLE, ints(-1, 0)], {"axis": 1}),
    ("Gather", [INT, np.array(2)], {}),
    ("Squeeze", [TABLE[:, :1]], {}),
    ("Squeeze", [TABLE[:, :1], ints(1)], {}),
    ("Unsqueeze", [TABLE, ints(0, -1)], {}),
    ("Reshape", [TABLE, ints(0, -1)], {}),
    ("Transpose", [TABLE], {"perm": [1, 0, 2]}),
    ("Transpose", [TABLE], {}),
    ("Expand", [ints(3), ints(2, 1, 4)], {}),
    ("Tile", [TABLE, ints(1, 2, 1)], {}),
    ("Range", [np.array(3), np.array(-8), np.array(-2)], {}),
    ("ReduceProd", [TABLE[0, 1:]], {"axes": [1], "keepdims": 0}),
    ("ReduceSum", [TABLE, ints(0, 2)], {}),
    ("ReduceSum", [TABLE], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [TABLE], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(ints(-1))}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("Slice", [TABLE, ints(0, 1), ints(1, 2**62), ints(0, 2)], {}),
    ("Slice", [TABLE, ints(-1), ints(-(2**62)), ints(1), ints(-1)], {}),
    ("Slice", [TABLE, ints(-2, 3), ints(-1, -99), ints(1, 2), ints(1, -2)], {}),
    ("Slice", [INT, ints(5), ints(9)], {}),
    ("Slice", [INT, ints(-9), ints(2)], {}),
]


@pytest.mark.parametrize(("op", "arrays", "attributes"), CASES, ids=[f"{op}{i}" for i, (op, _, _) in enumerate(CASES)])
def test_as_the_reference(op: str, arrays: list[np.ndarray], attributes: dict[str, object]) -> None:
    names = [f"i{number}" for number in range(len(arrays))]
    node = helper.make_node(op, names, ["y"], **attributes)
    types = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays, strict=True)
    ]
    graph = helper.make_graph([node], "g", types, [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (expected,) = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))
    found = fold(node, arrays)
    assert found is not None
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("op", "arrays"),
    [
        ("Div", [INT, ints(0)]),
        ("Mod", [INT, ints(0)]),
        ("Range", [np.array(0), np.array(2**62), np.array(1)]),
        ("Range", [np.array(0), np.array(1), np.array(0)]),
        ("ConstantOfShape", [ints(2**62, 2**62)]),
        ("ConstantOfShape", [ints(-1)]),
        ("Expand", [ints(1), ints(2**40)]),
        ("Tile", [ints(1), ints(2**40)]),
        ("Add", [np.zeros((SMALL, 1), np.int64), np.zeros(SMALL, np.int64)]),
        ("Gather", [ints(1), ints(5)]),
        ("Reshape", [TABLE, ints(5, 5)]),
        ("Concat", [INT, TABLE]),
        ("Slice", [TABLE, ints(0), ints(1), ints(9)]),
        ("Slice", [TABLE, ints(0), ints(1), ints(0), ints(0)]),
        ("Squeeze", [None]),
        ("MatMul", [TABLE, TABLE]),
    ],
)
def test_not_folded(op: str, arrays: list[np.ndarray | None]) -> None:
    node = helper.make_node(op, [f"i{number}" for number in range(len(arrays))], ["y"])
    assert fold(node, arrays) is None
