"""Operators that a static model must not have, whatever their version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ppexport.backends.onnx.reading.inference import RANDOM_OPERATORS
from ppexport.backends.onnx.reading.view import GraphView, Node
from ppexport.backends.onnx.rules.base import Finding, Rule, Runtime

TOPK_LIMIT = 3840
"""Largest K of TensorRT's TopK, in every version so far; 64x64 pixels are 4096 tokens."""

_BITWISE = frozenset(("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"))
_INTEGER = frozenset(("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"))
_GEOMETRY = frozenset(("AffineGrid", "CenterCropPad", "Col2Im", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool"))
_SIGNAL = frozenset(("BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "MelWeightMatrix", "STFT"))
_LOSSES = frozenset(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"))
_TEXT = frozenset(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"))
_OPTIONAL = frozenset(("Optional", "OptionalGetElement", "OptionalHasElement"))
_SEQUENCES = frozenset(
    f"Sequence{suffix}" for suffix in ("At", "Construct", "Empty", "Erase", "Insert", "Length")
) | frozenset(("SplitToSequence", "ConcatFromSequence"))


class _Forbidden(Rule):
    """Base of rules that object to operators by name."""

    operators: ClassVar[frozenset[str]]

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per node."""
        for node in graph.nodes:
            if node.domain == "" and node.op in self.operators:
                yield self.found(self.message(graph, node), node)

    def message(self, graph: GraphView, node: Node) -> str:
        """What to say about *node*."""
        raise NotImplementedError


class Sorting(_Forbidden):
    """Forbids TopK, and anything that sorts.

    TensorRT takes K up to 3840 only, and its parsers have clamped a larger K silently, which makes the model wrong.
    In Core ML and on most accelerators a sort falls back to the CPU, and which of two equal values comes first differs
    between runtimes, so a routing by sort is not the same routing everywhere. Way out: a counting sort (one-hot,
    running count, one scatter) for routing; a maximum for the best of few.
    """

    id = "sorting"
    operators = frozenset(("TopK", "Sort", "ArgSort"))
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "counting sort: one-hot, running count, exclusive prefix, one scatter; ReduceMax or ArgMax for the best"

    def message(self, graph: GraphView, node: Node) -> str:
        """Names K and the limit."""
        if node.op != "TopK":
            return f"{node.op} is no operator that edge runtimes have"
        attributes = {attribute.name: attribute.i for attribute in node.proto.attribute}
        value = graph.values.get(node.proto.input[1]) if len(node.proto.input) > 1 else None
        k = int(value.flat[0]) if value is not None and value.size == 1 else attributes.get("k")
        if k is None:
            return f"TopK with a K that only the data tells; TensorRT takes a constant up to {TOPK_LIMIT}"
        if k > TOPK_LIMIT:
            return f"TopK with K = {k}; TensorRT takes up to {TOPK_LIMIT}"
        return f"TopK with K = {k} sorts, which leaves the Neural Engine and breaks ties differently on every runtime"


class DataDependentOperator(_Forbidden):
    """Forbids operators whose result has a size that only the data tells: NonZero, Unique, Compress, ...

    TensorRT 10.3 has neither Unique nor Compress and runs NonZero and NonMaxSuppression with a synchronisation;
    TensorRT-RTX has no NonZero at all; Core ML runs them on the CPU. Everything after them has no static shape.
    Way out: compute both branches for all positions and select (Where), or a fixed number of slots.
    """

    id = "data-dependent-operator"
    operators = frozenset(("NonZero", "Unique", "Compress", "NonMaxSuppression"))
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "mask with Where instead of boolean indexing, or gather a fixed number of slots"

    def message(self, graph: GraphView, node: Node) -> str:
        """Says what follows."""
        return f"the size of {node.op}'s result depends on the data, so no shape after it is static"


class ControlFlow(_Forbidden):
    """Forbids If, Loop and Scan.

    TensorRT 10.3 runs them with restrictions (no dynamic scan length, equal ranks in both branches), without fusing
    across them; Core ML takes them off the Neural Engine; capacities are this project's way to save time. Way out:
    unroll, or compute both branches and select.
    """

    id = "control-flow"
    operators = frozenset(("If", "Loop", "Scan", "SequenceMap"))
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "unroll loops of fixed length; replace branches by Where, or export one file per branch"

    def message(self, graph: GraphView, node: Node) -> str:
        """Names the operator."""
        return f"{node.op} is control flow inside the graph"


class Sequences(_Forbidden):
    """Forbids sequences and optional values.

    TensorRT 10.3 has no operator for them ("not supported" in its operator list), Core ML no such type.
    Way out: Concat, Split and Slice on tensors.
    """

    id = "sequence"
    operators = _SEQUENCES | _OPTIONAL
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "use Concat, Split or Slice on tensors; in PyTorch: no lists of tensors whose length the data tells"

    def message(self, graph: GraphView, node: Node) -> str:
        """Names the operator."""
        return f"{node.op} works on sequences or optional values, not on tensors"


class CumulativeSum(_Forbidden):
    """Forbids CumSum.

    TensorRT before 10.8 runs it as a loop with one step per element: thousands of kernel launches for one layer. From
    10.8 on it is one layer, with open reports of wrong results when a model sums along several axes. Way out: a 0/1
    triangular MatMul within blocks of 128, and sums of the blocks in int32.
    """

    id = "cumsum"
    operators = frozenset(("CumSum",))
    runtimes = (Runtime.TENSORRT,)
    way_out = "MatMul with a 0/1 triangular matrix within blocks of at most 128, plus prefix sums of the blocks"

    def message(self, graph: GraphView, node: Node) -> str:
        """Says how many steps."""
        shape = graph.type_of(node.proto.input[0]).shape if node.proto.input else None
        value = graph.values.get(node.proto.input[1]) if len(node.proto.input) > 1 else None
        axis = int(value.flat[0]) if value is not None and value.size == 1 else None
        steps = shape[axis] if shape is not None and axis is not None and -len(shape) <= axis < len(shape) else None
        count = steps if isinstance(steps, int) else "many"
        return f"CumSum is a loop of {count} steps in TensorRT before 10.8"


class Randomness(_Forbidden):
    """Forbids random operators.

    TensorRT ignores their seed and has no Multinomial or Bernoulli, so no two runtimes agree and parity cannot be
    measured. Way out: make the random numbers an input, or constants.
    """

    id = "random"
    operators = RANDOM_OPERATORS
    way_out = "pass the random numbers as an input, or call model.eval() before exporting"

    def message(self, graph: GraphView, node: Node) -> str:
        """Names the operator."""
        return f"{node.op} gives other numbers on every runtime; TensorRT ignores its seed"


class TensorRTOperator(_Forbidden):
    """Forbids standard operators that TensorRT's ONNX parser does not import.

    The list is that of onnx-tensorrt's docs/operators.md (10.15), plus what the change log adds after 10.3: window
    functions (10.4) and STFT (10.5). The parser looks for a plugin of that name and stops. Way out: other operators.
    """

    id = "tensorrt-operator"
    operators = _BITWISE | _INTEGER | _GEOMETRY | _SIGNAL | _LOSSES | _TEXT
    runtimes = (Runtime.TENSORRT,)
    way_out = (
        "write it in other operators; for a quantised model: QuantizeLinear and DequantizeLinear around float ones"
    )

    def message(self, graph: GraphView, node: Node) -> str:
        """Names the operator."""
        return f"TensorRT 10.3 does not import {node.op}"
