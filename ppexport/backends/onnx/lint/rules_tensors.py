"""Rules on ranks, shapes and element types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from onnx import TensorProto

from ppexport.backends.lint_report import Finding, Severity
from ppexport.backends.onnx.graph_view import GraphView, Origin, TensorType, element_name, schema_of
from ppexport.backends.onnx.lint.linting import COMPILERS, Rule, Runtime, found, rule
from ppexport.backends.onnx.lint.rules_operators import CONTROL_FLOW, DATA_DEPENDENT

MAX_RANK = 5
"""Core ML's limit, in every version so far."""
TENSORRT_MAX_RANK = 8
"""nvinfer1::Dims::MAX_DIMS."""
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_SHAPE_SECOND = ("AffineGrid", "CenterCropPad", "Expand", "OneHot", "Reshape", "Split", "Squeeze", "Tile", "TopK")
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((*_SHAPE_SECOND, "Unsqueeze", "Upsample", *(f"Reduce{name}" for name in _REDUCTIONS)), (1,)),
    **{"Col2Im": (1, 2), "ConstantOfShape": (0,), "MaxUnpool": (2,), "Pad": (1, 3)},
    **{"Range": (0, 1, 2), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4)},
}
"""Inputs whose content, not only whose shape, decides the shape of what an operator makes."""
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE))
_INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL))
_COMMON = _FLOATS | _INTEGERS
"""Types that no rule here objects to, or that have a rule of their own."""


@rule(
    "rank",
    "split the permutation in two steps of at most five dimensions, or merge dimensions that stay together",
    Runtime.COREML,
)
def rank(graph: GraphView) -> Iterator[Finding]:
    """No tensor of more than five dimensions, which Core ML refuses in every version; TensorRT ends at eight.

    The usual source is a window partition written as one permutation of six dimensions.
    """
    for what, kind, place in _places(graph, lambda kind: len(kind.shape or ()) > MAX_RANK):
        count = len(kind.shape or ())
        both = count > TENSORRT_MAX_RANK
        limit = f"TensorRT takes {TENSORRT_MAX_RANK}, Core ML {MAX_RANK}" if both else f"Core ML takes {MAX_RANK}"
        made = f" makes {kind.text()}," if "node" in place else ""
        runtimes = COMPILERS if both else ()
        yield found(f"{what}{made} of rank {count}; {limit}", **place, runtimes=runtimes)


@rule("unknown-rank", "replace the operator, or give its shape input a constant length", *COMPILERS)
def unknown_rank(graph: GraphView) -> Iterator[Finding]:
    """No tensor of unknown rank: TensorRT and Core ML fix every rank when they build.

    Causes are operators that nobody defined, or a Reshape to a list of unknown length. Only the first such tensor of a
    chain is reported.
    """
    for name, kind in graph.inputs.items():
        if kind.element is not None and kind.shape is None:
            yield found(f"input {name} has no shape", tensor=name)
    for node in graph.nodes:
        if node.depth == 0 and all(graph.type_of(name).shape is not None for name in node.proto.input if name):
            lost = [name for name in node.proto.output if name and graph.type_of(name).shape is None]
            if lost:
                yield found(f"nothing tells the rank of what {node.op} makes", node, tensor=lost[0])


@rule(
    "dynamic-shape",
    "export without dynamic_axes or dynamic_shapes, one file per size; an axis that is meant to be symbolic is "
    "checked at a length with --length AXIS=N, symbols={AXIS: N} in Python",
    *COMPILERS,
)
def dynamic_shape(graph: GraphView) -> Iterator[Finding]:
    """No input or output with symbolic or unknown dimensions.

    TensorRT tunes for one shape of a profile; Core ML leaves the Neural Engine for every shape but the default.
    """
    for word, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for name, kind in tensors.items():
            if kind.open:
                yield found(f"{word} {name} is {kind.text()}: not all of its dimensions are fixed", tensor=name)
    inside = [(node, name) for node in graph.nodes for name in node.proto.output if name not in graph.outputs]
    between = [(node, name) for node, name in inside if graph.type_of(name).open]
    if between:
        node, name = between[0]
        message = f"{len(between)} tensors inside have dimensions that are not fixed, the first is {name}"
        yield found(message, node, tensor=name, severity=Severity.NOTE)


@rule(
    "data-dependent-shape",
    "compute the shape from Python ints and x.shape, never from a tensor's values (.item(), .sum(), len(...))",
    *COMPILERS,
)
def data_dependent_shape(graph: GraphView) -> Iterator[Finding]:
    """No shape that is computed from data, such as that of a Reshape whose second input comes from the image.

    TensorRT 10.3 accepts that for few operators and waits for the host at each; Core ML takes the operator off the
    Neural Engine. Arithmetic on static shapes is followed and does not count.
    """
    for node in graph.nodes:
        if node.domain or schema_of(node.op, graph.opset) is None:
            continue
        inputs = node.proto.input
        giving = [inputs[index] for index in SHAPE_INPUTS.get(node.op, ()) if index < len(inputs) and inputs[index]]
        culprit = next((name for name in giving if graph.origin_of(name) is Origin.DATA), None)
        if culprit is not None:
            message = f"{culprit}, which gives {node.op} its shape, is computed from data"
            yield found(message, node, tensor=culprit)
            continue
        # A missing rank is for `unknown-rank`, shapes from open shapes for `dynamic-shape`; these operators have rules.
        followed = any(graph.origin_of(name) is Origin.SHAPES for name in giving)
        if node.depth > 0 or followed or node.op in (*DATA_DEPENDENT, *CONTROL_FLOW):
            continue
        lost = any(graph.type_of(name).open for name in node.proto.output if name)
        if lost and all(graph.type_of(name).static for name in inputs if name):
            yield found(f"the shape of what {node.op} makes is not fixed, though its inputs' shapes are", node)


@rule("tensor-type", "cast in PyTorch before exporting: float32 or float16 for numbers, int32 for indices", *COMPILERS)
def tensor_type(graph: GraphView) -> Iterator[Finding]:
    """No strings, complex numbers, 16-bit and unsigned integers, bfloat16, 8- and 4-bit floats, sequences.

    TensorRT 10.3 computes in float, half, bfloat16, int32, int64 and bool, with int8, fp8 and int4 between Q and DQ.
    Core ML of iOS 16 has float, half, int32 and bool. ONNX Runtime 1.15 has kernels for bfloat16 on few operators.
    """
    for what, kind, place in _places(graph, lambda kind: kind.element not in _COMMON):
        yield found(f"{what} {'makes' if 'node' in place else 'is'} {element_name(kind.element)}", **place)


@rule(
    "float64",
    "use float32 in PyTorch: .float(), dtype=torch.float32, and no NumPy scalars in tensor arithmetic",
    *COMPILERS,
)
def float64(graph: GraphView) -> Iterator[Finding]:
    """No float64 tensors, which TensorRT narrows and Core ML lacks. A single number is harmless and only noted."""
    for what, kind, place in _places(graph, lambda kind: kind.element == TensorProto.DOUBLE):
        single = place["tensor"] in graph.constants and all(dim in (0, 1) for dim in kind.shape or ())
        severity = Severity.NOTE if single else Severity.ERROR
        yield found(f"{what} {'computes in' if 'node' in place else 'is'} float64", **place, severity=severity)


@rule("int64", "use int32 in PyTorch where the operator allows it; shapes and axes may stay int64", Runtime.COREML)
def int64(graph: GraphView) -> Iterator[Finding]:
    """A note on int64 tensors, and a warning of int64 inputs and outputs.

    ONNX demands int64 for shapes and most indices. TensorRT 10 has the type; Core ML has int32 only, and a converter
    narrows silently.
    """
    for word, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for name, kind in tensors.items():
            if kind.element == TensorProto.INT64:
                yield found(f"{word} {name} is int64", tensor=name, severity=Severity.WARNING)
    # What is known before running is shapes and axes, which no converter keeps as tensors.
    made = [(node, name) for node in graph.nodes for name in node.proto.output if name not in graph.values]
    wide = [(node, name) for node, name in made if graph.type_of(name).element == TensorProto.INT64]
    if wide:
        message = f"{len(wide)} tensors inside are int64, the first is {wide[0][1]}"
        yield found(message, wide[0][0], tensor=wide[0][1], severity=Severity.NOTE)


@rule(
    "integer-where",
    "torch.maximum or torch.minimum of the two, or arithmetic: mask * a + (1 - mask) * b",
    Runtime.OPENVINO,
)
def integer_choice(graph: GraphView) -> Iterator[Finding]:
    """No Where between integers that depend on data.

    On CPUs without AVX-512 OpenVINO (2026.4) takes the condition, an integer 0 or 1, for a float: 1 is then a denormal,
    and where those count as zero (a setting of OpenVINO, or what ONNX Runtime or PyTorch left behind in the thread) the
    choice is silently always the second. Between floats the choice is right.
    """
    for node in graph.nodes:
        name = node.proto.output[0] if node.proto.output else ""
        element = graph.type_of(name).element
        integer = element in (TensorProto.INT64, TensorProto.INT32)
        if integer and node.op == "Where" and not node.domain and name not in graph.values:
            yield found(f"Where between {element_name(element)}, which OpenVINO may get wrong", node)


@rule(
    "quantization",
    "quantise with ActivationSymmetric and WeightSymmetric, QInt8 for both, QuantizeBias=False",
    Runtime.TENSORRT,
)
def quantization(graph: GraphView) -> Iterator[Finding]:
    """No QuantizeLinear and DequantizeLinear but symmetric ones of int8 (or fp8, int4), which TensorRT takes.

    ONNX Runtime's quantiser makes uint8 activations, zero points and int32 biases by default.
    """
    for node in graph.nodes:
        if node.domain or node.op not in ("QuantizeLinear", "DequantizeLinear") or not node.proto.input:
            continue
        side = node.proto.output if node.op == "QuantizeLinear" else node.proto.input
        element = graph.type_of(side[0]).element if side else None
        point = graph.values.get(node.proto.input[2]) if len(node.proto.input) > 2 else None
        if element in (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT16, TensorProto.UINT16):
            yield found(f"{node.op} of {element_name(element)}; TensorRT takes int8", node)
        elif point is not None and point.any():
            yield found(f"{node.op} with a zero point that is not 0; TensorRT is symmetric", node)


def _places(graph: GraphView, wrong: Callable[[TensorType], bool]) -> Iterator[tuple[str, TensorType, dict[str, Any]]]:
    """What is *wrong*: an input, a constant, or a node; its type; and where it is, as arguments of `found`.

    Of a node's outputs only the first that is wrong.
    """
    for name, kind in graph.inputs.items():
        if wrong(kind):
            yield f"input {name}", kind, {"tensor": name}
    for name, constant in graph.constants.items():
        if wrong(kind := TensorType(constant.element, constant.shape)):
            yield f"constant {name}", kind, {"tensor": name, "module": constant.owner}
    for node in graph.nodes:
        kinds = [(name, graph.type_of(name)) for name in node.proto.output if node.op != "Constant"]
        bad = next(((name, kind) for name, kind in kinds if kind.element is not None and wrong(kind)), None)
        if bad is not None:
            yield node.op, bad[1], {"node": node, "tensor": bad[0]}


RULES: tuple[Rule, ...] = (
    *(rank, unknown_rank, dynamic_shape, data_dependent_shape),
    *(tensor_type, float64, int64, integer_choice, quantization),
)
"""Rules on shapes, then on types."""
