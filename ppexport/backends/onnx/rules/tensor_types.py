"""Element types that the runtimes do not have."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from ppexport.backends.onnx.reading.view import GraphView, element_name
from ppexport.backends.onnx.rules.base import Finding, Rule, Runtime, Severity

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE))
_INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL))
_COMMON = _FLOATS | _INTEGERS
"""Types that no rule here objects to, or that have a rule of their own."""


class TensorTypes(Rule):
    """Forbids strings, complex numbers, 16-bit and unsigned integers, bfloat16, 8- and 4-bit floats, sequences.

    TensorRT 10.3 computes in float, half, bfloat16, int32, int64 and bool, with int8, fp8 and int4 between Q and DQ.
    Core ML of iOS 16 has float, half, int32 and bool. ONNX Runtime 1.15 has kernels for bfloat16 on few operators.
    Way out: Cast in PyTorch, before exporting.
    """

    id = "tensor-type"
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "cast in PyTorch before exporting: float32 or float16 for numbers, int32 for indices"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per input, constant, or node."""
        for name, kind in graph.inputs.items():
            if kind.element not in _COMMON:
                what = "no tensor" if kind.element is None else element_name(kind.element)
                yield self.found(f"input {name} is {what}", tensor=name)
        for constant in graph.constants.values():
            if constant.element not in _COMMON:
                message = f"constant {constant.name} is {element_name(constant.element)}"
                yield self.found(message, tensor=constant.name, module=constant.owner)
        for node in graph.nodes:
            for name in node.proto.output:
                element = graph.type_of(name).element
                if element is not None and element not in _COMMON and node.op != "Constant":
                    yield self.found(f"{node.op} makes {element_name(element)}", node, tensor=name)
                    break


class Float64(Rule):
    """Forbids float64 tensors.

    TensorRT casts them to float32 and clamps what does not fit; Core ML has no such type. A single number is harmless
    (torch writes Python floats so) and only noted. Way out: float32 in PyTorch.
    """

    id = "float64"
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "use float32 in PyTorch: .float(), dtype=torch.float32, and no NumPy scalars in tensor arithmetic"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per input, constant, or node."""
        for name, kind in graph.inputs.items():
            if kind.element == TensorProto.DOUBLE:
                yield self.found(f"input {name} is float64", tensor=name)
        for constant in graph.constants.values():
            if constant.element == TensorProto.DOUBLE:
                single = constant.bytes <= 8
                yield self.found(
                    f"constant {constant.name} is float64",
                    severity=Severity.NOTE if single else Severity.ERROR,
                    tensor=constant.name,
                    module=constant.owner,
                )
        for node in graph.nodes:
            made = [name for name in node.proto.output if graph.type_of(name).element == TensorProto.DOUBLE]
            if made and node.op != "Constant":
                yield self.found(f"{node.op} computes in float64", node, tensor=made[0])


class Int64(Rule):
    """Notes int64 tensors, and warns of int64 inputs and outputs.

    ONNX demands int64 for shapes and most indices. TensorRT 10 has the type; Core ML has int32 only, and a converter
    narrows silently. Way out: int32 in PyTorch wherever the operator allows it, above all at inputs and outputs.
    """

    id = "int64"
    runtimes = (Runtime.COREML,)
    way_out = "use int32 in PyTorch where the operator allows it; shapes and axes may stay int64"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per input and output, and one for everything that nodes make."""
        for word, tensors in (("input", graph.inputs), ("output", graph.outputs)):
            for name, kind in tensors.items():
                if kind.element == TensorProto.INT64:
                    yield self.found(f"{word} {name} is int64", tensor=name, severity=Severity.WARNING)
        # What is known before running is shapes and axes, which no converter keeps as tensors.
        made = [(node, name) for node in graph.nodes for name in node.proto.output if name not in graph.values]
        wide = [(node, name) for node, name in made if graph.type_of(name).element == TensorProto.INT64]
        if wide:
            message = f"{len(wide)} tensors inside are int64, the first is {wide[0][1]}"
            yield self.found(message, wide[0][0], tensor=wide[0][1], severity=Severity.NOTE)


class IntegerChoice(Rule):
    """Forbids Where between integers that depend on data.

    On CPUs without AVX-512 OpenVINO (2026.4) takes the condition, an integer 0 or 1, for a float: 1 is then a denormal,
    and where those count as zero the choice is always the second, without a word. That they count as zero is a setting
    of OpenVINO, and a state of the thread that others leave behind: ONNX Runtime with its setting, PyTorch with
    set_flush_denormal. Between floats the choice is right. Way out: the larger or smaller of
    the two, or arithmetic.
    """

    id = "integer-where"
    runtimes = (Runtime.OPENVINO,)
    way_out = "torch.maximum or torch.minimum of the two, or arithmetic: mask * a + (1 - mask) * b"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per node."""
        for node in graph.nodes:
            name = node.proto.output[0] if node.proto.output else ""
            if node.domain or node.op != "Where" or name in graph.values:
                continue
            element = graph.type_of(name).element
            if element in (TensorProto.INT64, TensorProto.INT32):
                yield self.found(f"Where between {element_name(element)}, which OpenVINO may get wrong", node)


class Quantization(Rule):
    """Forbids QuantizeLinear and DequantizeLinear that TensorRT does not take.

    Its quantisation is symmetric: the zero point must be 0 and the type int8 (or fp8, int4), for weights as for
    activations; a bias quantised to int32 stops the parser. ONNX Runtime's quantiser makes uint8 activations, zero
    points and int32 biases unless told otherwise. Way out: its options for TensorRT.
    """

    id = "quantization"
    runtimes = (Runtime.TENSORRT,)
    way_out = "quantise with ActivationSymmetric and WeightSymmetric, QInt8 for both, QuantizeBias=False"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per node."""
        for node in graph.nodes:
            if node.domain or node.op not in ("QuantizeLinear", "DequantizeLinear") or not node.proto.input:
                continue
            side = node.proto.output if node.op == "QuantizeLinear" else node.proto.input
            element = graph.type_of(side[0]).element if side else None
            point = graph.values.get(node.proto.input[2]) if len(node.proto.input) > 2 else None
            if element in (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT16, TensorProto.UINT16):
                yield self.found(f"{node.op} of {element_name(element)}; TensorRT takes int8", node)
            elif point is not None and point.any():
                yield self.found(f"{node.op} with a zero point that is not 0; TensorRT is symmetric", node)
