"""Every operation of the MIL evaluator against PyTorch: converted, saved, loaded, run, with random shapes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("coremltools")

from coreml_programs import evaluated, run_one, saved
from hypothesis import given
from hypothesis import strategies as st
from shared import examples

from ppexport.backends.coreml.evaluator import OPERATIONS
from ppexport.errors import ArtifactError

_B = 1.5
CASES = {
    # MIL operation: (function of PyTorch tensors, shapes with letters for random lengths)
    "add": (lambda x, y: x + y, ["abc", "bc"]),
    "sub": (lambda x, y: x - y, ["abc", "1c"]),
    "mul": (lambda x, y: x * y, ["abc", "abc"]),
    "real_div": (lambda x, y: x / y, ["abc", "c"]),
    "maximum": (torch.maximum, ["abc", "bc"]),
    "minimum": (torch.minimum, ["abc", "bc"]),
    "equal": (lambda x, y: (x.round() == y.round()).float(), ["ab", "ab"]),
    "not_equal": (lambda x, y: (x.round() != y.round()).float(), ["ab", "ab"]),
    "less": (lambda x, y: (x < y).float(), ["ab", "ab"]),
    "less_equal": (lambda x, y: (x.round() <= y.round()).float(), ["ab", "ab"]),
    "greater": (lambda x, y: (x > y).float(), ["ab", "ab"]),
    "greater_equal": (lambda x, y: (x.round() >= y.round()).float(), ["ab", "ab"]),
    "logical_and": (lambda x, y: ((x > 0) & (y > 0)).float(), ["ab", "ab"]),
    "logical_not": (lambda x: (~(x > 0)).float(), ["ab"]),
    "select": (lambda x, y: torch.where(x > y, x, y * 2), ["abc", "bc"]),
    "clip": (lambda x: x.clamp(-0.5, 0.25), ["abc"]),
    "cast": (lambda x: (x * 3).to(torch.int32), ["abc"]),
    "abs": (torch.abs, ["ab"]),
    "sign": (torch.sign, ["ab"]),
    "floor": (torch.floor, ["ab"]),
    "ceil": (torch.ceil, ["ab"]),
    "round": (torch.round, ["ab"]),
    "floor_div": (lambda x, y: torch.div(x, y, rounding_mode="floor"), ["ab", "ab"]),
    "pow": (lambda x: x.abs().pow(1.7), ["ab"]),
    "sqrt": (lambda x: x.abs().sqrt(), ["ab"]),
    "rsqrt": (lambda x: (x.abs() + 0.1).rsqrt(), ["ab"]),
    "exp": (torch.exp, ["ab"]),
    "exp2": (torch.exp2, ["ab"]),
    "log": (lambda x: torch.log(x.abs() + 0.1), ["ab"]),
    "sin": (torch.sin, ["ab"]),
    "cos": (torch.cos, ["ab"]),
    "erf": (torch.erf, ["ab"]),
    "relu": (F.relu, ["abc"]),
    "relu6": (lambda x: F.relu6(x * 5), ["abc"]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.3), ["abc"]),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3])), ["a3bc"]),
    "elu": (lambda x: F.elu(x, 0.7), ["abc"]),
    "sigmoid": (torch.sigmoid, ["abc"]),
    "sigmoid_hard": (F.hardsigmoid, ["abc"]),
    "silu": (F.silu, ["abc"]),
    "tanh": (torch.tanh, ["abc"]),
    "softplus": (F.softplus, ["abcd"]),
    "gelu": (F.gelu, ["abc"]),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), ["abc"]),
    "softmax": (lambda x: x.softmax(1), ["abc"]),
    "reduce_sum": (lambda x: x.sum((0, 2)), ["abc"]),
    "reduce_mean": (lambda x: x.mean(1, keepdim=True), ["abc"]),
    "reduce_max": (lambda x: x.amax((0, 1)), ["abc"]),
    "reduce_min": (lambda x: x.amin(2, keepdim=True), ["abc"]),
    "reduce_l2_norm": (lambda x: torch.linalg.vector_norm(x, dim=1), ["abc"]),
    "reduce_log_sum_exp": (lambda x: x.logsumexp(1), ["abc"]),
    "reduce_argmax": (lambda x: x.round().argmax(1), ["abc"]),
    "reduce_argmin": (lambda x: x.round().argmin(2), ["abc"]),
    "cumsum": (lambda x: x.cumsum(1), ["abc"]),
    "topk": (lambda x: x.topk(2, dim=1).values, ["a4b"]),
    "argsort": (lambda x: x.argsort(dim=-1), ["ab"]),
    "reshape": (lambda x: x.reshape(-1, x.shape[2]), ["abc"]),
    "transpose": (lambda x: x.permute(2, 0, 3, 1), ["abcd"]),
    "expand_dims": (lambda x: x[:, None, :, None], ["ab"]),
    "squeeze": (lambda x: x.squeeze(1), ["a1b"]),
    "tile": (lambda x: x.repeat(2, 1, 3), ["abc"]),
    "concat": (lambda x, y: torch.cat([x, y, x], 1), ["abc", "adc"]),
    "stack": (lambda x, y: torch.stack([x, y], 1), ["ab", "ab"]),
    "split": (lambda x: torch.split(x, [1, 3, 2], 1)[1], ["a6b"]),
    "reverse": (lambda x: x.flip(0, 2), ["abc"]),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3), value=_B), ["abcd"]),
    "pad reflect": (lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), ["ab45"]),
    "pad replicate": (lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"), ["abcd"]),
    "fill_like": (lambda x: x + torch.full_like(x, _B), ["abc"]),
    "slice_by_index": (lambda x: x[:, 1:-1, ::2], ["a5b"]),
    "gather": (lambda x: x.index_select(1, torch.tensor([2, 0, 2], dtype=torch.int32)) * x.sum(), ["a4b"]),
    "gather_along_axis": (lambda x, y: x.gather(1, y.argmax(0, keepdim=True).expand_as(x)), ["a4b", "44b"]),
    "scatter_along_axis": (lambda x, y: x.scatter(1, y.argmax(2, keepdim=True), x[:, :1] * 2), ["a41", "a14"]),
    "linear": (torch.nn.Linear(5, 7), ["ab5"]),
    "matmul": (lambda x, y: x @ y.transpose(-1, -2), ["abcd", "abed"]),
    "conv": (torch.nn.Conv2d(4, 6, 3, padding=(1, 2), stride=2, dilation=(1, 2), groups=2), ["a478"]),
    "conv 1d": (torch.nn.Conv1d(3, 4, 3, padding="same"), ["a3b"]),
    "scaled_dot_product_attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), ["abcd", "abed", "abed"]),
    "layer_norm": (torch.nn.LayerNorm(6), ["ab6"]),
    "instance_norm": (torch.nn.InstanceNorm2d(3, affine=True), ["a345"]),
    "max_pool": (torch.nn.MaxPool2d(3, stride=2, padding=1), ["ab78"]),
    "pixel_shuffle": (torch.nn.PixelShuffle(2), ["a8bc"]),
    "pixel_unshuffle": (torch.nn.PixelUnshuffle(2), ["ab46"]),
    "upsample_nearest_neighbor": (torch.nn.Upsample(scale_factor=2), ["abcd"]),
    "upsample_bilinear": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), ["ab34"],
    ),
}  # fmt: skip
INT_CASES = {
    "cast": (lambda x: x.float() * 2, "abc"),
    "gather": (lambda x: torch.arange(40, 80, dtype=torch.int32).index_select(0, (x % 40).view(-1)), "ab"),
    "range_1d": (lambda x: torch.arange(x.shape[0]) + x[:, 0], "ab"),
}
CALLED_DIRECTLY = {
    "thresholded_relu", "threshold", "linear_activation", "identity", "logical_xor", "logical_or", "mod", "inverse",
    "square", "reduce_l1_norm", "reduce_sum_square", "shape", "fill", "slice_by_size", "range_1d",
    "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_cast", "quantize", "dequantize",
}  # fmt: skip
"""Operations that no PyTorch function here converts to: called directly below, two in test_coreml_quantised."""


def drawn(shape, lengths):
    return [int(c) if c.isdigit() else lengths[c] for c in shape]


def random_inputs(name, shapes):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    lengths = {c: int(rng.integers(2, 6)) for c in "abcde"}
    return [torch.from_numpy(rng.normal(size=drawn(s, lengths)).astype(np.float32) * 2) for s in shapes]


@pytest.mark.parametrize("name", CASES)
def test_an_operation_computes_what_pytorch_does(name, tmp_path):
    function, shapes = CASES[name]
    # The opsets differ in parameters more than in meaning: each operation is converted for one of them.
    old = zlib.crc32(name.encode()) % 2 and name != "scaled_dot_product_attention"
    inputs = random_inputs(name, shapes)
    outputs, kinds = evaluated(saved(function, inputs, tmp_path, target="iOS16" if old else "iOS18"), inputs)
    assert name.split()[0] in kinds
    np.testing.assert_allclose(outputs[0], function(*inputs).numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", INT_CASES)
def test_an_operation_on_whole_numbers_computes_what_pytorch_does(name, tmp_path):
    function, shape = INT_CASES[name]
    rng = np.random.default_rng(7)
    x = torch.from_numpy(rng.integers(0, 60, drawn(shape, {"a": 3, "b": 5, "c": 2})).astype(np.int32))
    outputs, _ = evaluated(saved(function, [x], tmp_path), [x])
    np.testing.assert_array_equal(outputs[0], function(x).numpy())


def test_no_operation_is_left_out():
    tested = {name.split()[0] for name in CASES} | set(INT_CASES) | CALLED_DIRECTLY
    assert set(OPERATIONS) == tested


def rand(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


BY_HAND = [
    ("identity", {"x": rand(2, 3)}, {}, lambda x: x),
    ("logical_xor", {"x": rand(2, 3) > 0, "y": rand(2, 3) > 0.5}, {}, lambda x, y: x ^ y),
    ("logical_or", {"x": rand(2, 3) > 0, "y": rand(2, 3) > 0.5}, {}, lambda x, y: x | y),
    ("mod", {"x": rand(3, 4), "y": rand(4)}, {}, torch.remainder),
    ("inverse", {"x": rand(3, 4)}, {"epsilon": 0.5}, lambda x: torch.reciprocal(x + 0.5)),
    ("square", {"x": rand(3, 4)}, {}, torch.square),
    ("reduce_l1_norm", {"x": rand(3, 4)}, {}, lambda x: torch.linalg.vector_norm(x, ord=1)),
    ("thresholded_relu", {"x": rand(3, 4)}, {"alpha": 0.2}, lambda x: F.threshold(x, 0.2, 0.0)),
    ("threshold", {"x": rand(3, 4)}, {"alpha": 0.2}, lambda x: x.clamp(min=0.2)),
    ("linear_activation", {"x": rand(3, 4)}, {"alpha": 0.2, "beta": 3.0}, lambda x: 0.2 * x + 3),
    ("reduce_sum_square", {"x": rand(2, 3)}, {"axes": [1]}, lambda x: (x**2).sum(1)),
    ("slice_by_size", {"x": rand(4, 5)}, {"begin": [1, 2], "size": [2, -1]}, lambda x: x[1:3, 2:]),
    ("concat", {"values": [rand(2, 3), rand(2, 3) + 1]}, {"axis": 1, "interleave": True},
     lambda x, y: torch.stack([x, y], 2).flatten(1)),
    ("cumsum", {"x": rand(3, 4)}, {"axis": 1, "exclusive": True, "reverse": True},
     lambda x: x.flip(1).cumsum(1).flip(1) - x),
    ("max_pool", {"x": rand(1, 1, 5, 5)}, {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "same"},
     lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-9), 2)),
    ("slice_by_index", {"x": rand(4, 5)},
     {"begin": [3, 1], "end": [0, 9], "stride": [-1, 1], "end_mask": [True, False], "squeeze_mask": [False, True]},
     lambda x: x.flip(0)[:, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "tensors", "constants", "reference"), BY_HAND, ids=[c[0] for c in BY_HAND])
def test_an_operation_that_pytorch_does_not_convert_to(kind, tensors, constants, reference):
    flat = [torch.from_numpy(a) for v in tensors.values() for a in (v if isinstance(v, list) else [v])]
    expected = reference(*flat)
    kind_of = "bool" if expected.dtype == torch.bool else "fp32"
    (found,) = run_one(kind, tensors, constants, [(kind_of, expected.shape)])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_shape_fill_and_range():
    (found,) = run_one("shape", {"x": rand(4, 7)}, {}, [("int32", (2,))])
    assert found.tolist() == [4, 7]
    (found,) = run_one("fill", {}, {"shape": [2, 2], "value": 1.5}, [("fp16", (2, 2))])
    assert found.tolist() == [[1.5, 1.5]] * 2
    (found,) = run_one("range_1d", {}, {"start": 2, "end": 9, "step": 3}, [("int32", (3,))])
    assert found.tolist() == [2, 5, 8]
    # The first whole number that fp32 does not hold.
    odd = 2**24 + 1
    (found,) = run_one("fill", {}, {"shape": [1], "value": odd}, [("int32", (1,))])
    assert found.tolist() == [odd]
    (found,) = run_one("fill_like", {"ref_tensor": rand(1)}, {"value": odd}, [("int32", (1,))])
    assert found.tolist() == [odd]
    (found,) = run_one("range_1d", {}, {"start": odd, "end": odd + 2, "step": 1}, [("int32", (2,))])
    assert found.tolist() == [odd, odd + 1]


def test_an_exclusive_running_sum_does_not_lose_small_numbers():
    x = np.float32([1, 1e20, 1])
    (found,) = run_one("cumsum", {"x": x}, {"axis": 0, "exclusive": True}, [("fp32", (3,))])
    np.testing.assert_array_equal(found, np.float32([0, 1, 1e20]))


@examples(40)
@given(st.data())
def test_scatters_along_an_axis(data):
    n, m, k = (data.draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, updates = rng.normal(size=(n, m)).astype(np.float32), rng.normal(size=(k, m)).astype(np.float32)
    rows = rng.integers(0, n, (k, m)).astype(np.int32)
    for mode, sign in (("add", 1), ("sub", -1)):
        given = {"data": x, "indices": rows, "updates": updates}
        (found,) = run_one("scatter_along_axis", given, {"axis": 0, "mode": mode}, [("fp32", (n, m))])
        expected = x.copy()
        np.add.at(expected, (rows, np.arange(m)), sign * updates)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@examples(60)
@given(st.data())
def test_slices_are_numpys(data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    slices = [
        slice(data.draw(st.integers(-n, n - 1)), data.draw(st.integers(-n, n)), data.draw(st.integers(1, 3)))
        for n in shape
    ]
    expected = x[tuple(slices)]
    constants = {
        "begin": [s.start for s in slices],
        "end": [s.stop for s in slices],
        "stride": [s.step for s in slices],
    }
    (found,) = run_one("slice_by_index", {"x": x}, constants, [("fp32", expected.shape)])
    np.testing.assert_array_equal(found, expected)


@examples(40)
@given(st.data())
def test_gathers_are_numpys_take(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    where = data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=6))
    x, indices = rand(*shape), np.array(where, np.int32).reshape(1, -1)
    expected = np.take(x, indices, axis=axis)
    (found,) = run_one("gather", {"x": x, "indices": indices}, {"axis": axis}, [("fp32", expected.shape)])
    np.testing.assert_array_equal(found, expected)


@examples(40)
@given(st.data())
def test_convolutions_of_every_padding(data):
    draw = data.draw
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    pads = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    strides, dilations = ([draw(st.integers(1, 2)) for _ in range(axes)] for _ in range(2))
    x, weight = rand(2, 2 * groups, *[draw(st.integers(5, 7)) for _ in range(axes)]), rand(3 * groups, 2, *kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[::2], pads[1::2], strict=True)])
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    expected = function(
        torch.from_numpy(padded), torch.from_numpy(weight), stride=strides, dilation=dilations, groups=groups
    )
    constants = {"pad_type": "custom", "pad": pads, "strides": strides, "dilations": dilations, "groups": groups}
    (found,) = run_one("conv", {"x": x, "weight": weight}, constants, [("fp32", expected.shape)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_batched_gather():
    x, indices = rand(2, 4, 3), np.array([[0, 3], [2, 2]], np.int32)
    (found,) = run_one("gather", {"x": x, "indices": indices}, {"axis": 1, "batch_dims": 1}, [("fp32", (2, 2, 3))])
    np.testing.assert_array_equal(found, np.stack([x[0][indices[0]], x[1][indices[1]]]))


def test_indices_count_from_the_end_until_ios_16_only():
    x, indices = rand(4, 2), np.array([-1], np.int32)
    (found,) = run_one("gather", {"x": x, "indices": indices}, {}, [("fp32", (1, 2))], opset="CoreML6")
    np.testing.assert_array_equal(found, x[[-1]])
    with pytest.raises(ArtifactError, match=r"'tested' \(gather\): indices from -1 to -1 reach outside an axis of 4"):
        run_one("gather", {"x": x, "indices": indices}, {}, [("fp32", (1, 2))], opset="CoreML7")


def test_compressed_weights():
    data, scale = np.array([[1, -2], [3, 4]], np.int8), np.array([[0.5], [2.0]], np.float16)
    found = constant("constexpr_blockwise_shift_scale", {"data": data, "scale": scale}, "fp16", (2, 2))
    assert found.tolist() == [[0.5, -1.0], [6.0, 8.0]]
    values = {"quantized_data": data, "zero_point": np.int8(1), "scale": np.float32([1, 3]), "axis": np.int32(0)}
    assert constant("constexpr_affine_dequantize", values, "fp32", (2, 2)).tolist() == [[0, -3], [6, 9]]
    assert constant(
        "constexpr_cast", {"source_val": np.float16([1.5]), "output_dtype": "fp32"}, "fp32", (1,)
    ).tolist() == [1.5]


def constant(kind, values, element, shape):
    """A compressed constant, through an operation that reads it."""
    from coreml_programs import ELEMENTS

    from ppexport.backends.coreml.evaluator.evaluate import Evaluator
    from ppexport.backends.coreml.program import Function, Operation, Package, Port, Reference, TensorType

    ports = tuple(Port(name, TensorType(ELEMENTS[element], shape)) for name in ("w", "y"))
    weight = Operation(kind, "w", {k: [v] for k, v in values.items()}, ports[:1])
    reading = Operation("identity", "y", {"x": [Reference("w")]}, ports[1:])
    function = Function("main", "CoreML8", (), ("y",), (weight, reading))
    return Evaluator(Package({"main": function}, "main")).run({})["y"]


def test_half_precision_is_rounded_once_per_operation():
    x, y = np.full((1, 4096), 1.0, np.float16), np.full((4096, 1), 1.0 + 2.0**-10, np.float16)
    # The sum 4096 + 4 is kept in fp32 and rounded at the end; an fp16 accumulator would stop at 2048.
    (found,) = run_one("matmul", {"x": x, "y": y}, {}, [("fp16", (1, 1))])
    assert found.dtype == np.float16
    assert found.item() == 4100
    (found,) = run_one("mul", {"x": np.float16([300]), "y": np.float16([300])}, {}, [("fp16", (1,))])
    assert np.isinf(found).all()


@pytest.mark.parametrize(
    ("kind", "tensors", "constants", "results", "message"),
    [
        ("frobnicate", {"x": rand(2)}, {}, [("fp32", (2,))], r"does not know: frobnicate \(1\)"),
        ("add", {"x": rand(2)}, {}, [("fp32", (2,))], r"'tested' \(add\): it lacks its parameters \['y'\]"),
        ("relu", {"x": rand(2)}, {"alpha": 1.0}, [("fp32", (2,))], r"parameters \['alpha'\] are not known"),
        ("relu", {"x": rand(2)}, {}, [("fp32", (3,))], r"its result has shape \(2,\), the file says fp32 \(3\)"),
        ("add", {"x": rand(2), "y": rand(3)}, {}, [("fp32", (3,))], r"'tested' \(add\): "),
        ("cast", {"x": np.float32([7e4])}, {"dtype": "uint16"}, [("uint16", (1,))], "does not fit into uint16"),
        ("gelu", {"x": rand(2)}, {"mode": "ODD"}, [("fp32", (2,))], "gelu has no mode 'ODD'"),
        ("softmax", {"x": rand(2)}, {"axis": "left"}, [("fp32", (2,))], "a int is needed, not 'left'"),
        ("floor_div", {"x": np.int32([1]), "y": np.int32([0])}, {}, [("int32", (1,))], "divided by zero"),
        ("add", {"x": np.int32([2**31 - 1]), "y": np.int32([1])}, {}, [("int32", (1,))], "does not fit into int32"),
        ("sub", {"x": np.int32([-(2**31)]), "y": np.int32([1])}, {}, [("int32", (1,))], "does not fit into int32"),
        ("mul", {"x": np.int32([2**20]), "y": np.int32([2**20])}, {}, [("int32", (1,))], "does not fit into int32"),
        ("square", {"x": np.int32([2**16])}, {}, [("int32", (1,))], "does not fit into int32"),
        ("pow", {"x": np.int32([2]), "y": np.int32([31])}, {}, [("int32", (1,))], "does not fit into int32"),
        ("pow", {"x": np.int32([2]), "y": np.int32([64])}, {}, [("int32", (1,))], "is beyond 64 bits"),
        ("real_div", {"x": np.int32([7]), "y": np.int32([2])}, {}, [("int32", (1,))], "real_div of whole numbers"),
        ("relu", {"x": np.float32([0.5])}, {}, [("int32", (1,))], "holds fractions, the file says int32"),
        ("relu", {"x": np.float32([np.inf])}, {}, [("int32", (1,))], "infinity"),
        ("split", {"x": rand(5)}, {"axis": 0, "num_splits": 2}, [("fp32", (2,))], "does not split into 2"),
    ],
)
def test_errors_name_the_operation(kind, tensors, constants, results, message):
    with pytest.raises(ArtifactError, match=message):
        run_one(kind, tensors, constants, results)
