"""Rules on versions, and on operators that a portable static model must not have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from ppexport.backends.lint_report import Finding, Severity
from ppexport.backends.onnx.graph_view import RANDOM_OPERATORS, GraphView, Node, schema_of
from ppexport.backends.onnx.lint.linting import COMPILERS, Rule, Runtime, found, rule
from ppexport.errors import counted

PORTABLE_OPSET, PORTABLE_IR = 17, 8
ORT_OPSET = 19
"""ONNX Runtime 1.15 and 1.16 implement opset 19; opset 20 came with 1.17."""
ORT_IR = 9
"""ONNX Runtime 1.15 to 1.17 read IR version 9, except 1.15 in the browser, which reads 8."""
TOPK_LIMIT = 3840
"""Largest K of TensorRT's TopK, in every version so far; 64x64 pixels are 4096 tokens."""
EXPORT = "export with opset_version=17 (torch.onnx.export), or convert with onnx.version_converter"

SORTING = ("TopK", "Sort", "ArgSort")
DATA_DEPENDENT = ("NonZero", "Unique", "Compress", "NonMaxSuppression")
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
SEQUENCES = (
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
)
NOT_IN_TENSORRT = (
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    *("AffineGrid", "CenterCropPad", "Col2Im", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool"),
    *("BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "MelWeightMatrix", "STFT"),
    *("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    *("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
)
"""From onnx-tensorrt's docs/operators.md (10.15), plus what the change log adds after 10.3: window functions (10.4) and
STFT (10.5). The parser looks for a plugin of that name and stops."""


@rule(
    "ir-version",
    "set model.ir_version = 8 and save; the number alone changes nothing if the opset is 17",
    Runtime.ONNXRUNTIME,
)
def ir_version(graph: GraphView) -> Iterator[Finding]:
    """No IR version above 8: ONNX Runtime 1.15 refuses IR 10, its WebAssembly build and all of 1.14 refuse IR 9."""
    version = graph.model.ir_version
    if version > ORT_IR:
        yield found(f"IR version {version}: ONNX Runtime 1.15 reads up to {ORT_IR} and refuses the file")
    elif version > PORTABLE_IR:
        message = f"IR version {version}: ONNX Runtime 1.15 reads it, but not in the browser ({PORTABLE_IR})"
        yield found(message, severity=Severity.WARNING)


@rule("opset-version", EXPORT, Runtime.ONNXRUNTIME, Runtime.TENSORRT)
def opset_version(graph: GraphView) -> Iterator[Finding]:
    """No standard opset above 17: ONNX Runtime 1.15 implements 19, and TensorRT 10.3 only parts of 18.

    So 18 and 19 are a warning here, and an error at the nodes that use what is new, see `operator_version`.
    """
    if graph.opset > ORT_OPSET:
        yield found(f"opset {graph.opset}: ONNX Runtime 1.15 implements {ORT_OPSET} and refuses the file")
    elif graph.opset > PORTABLE_OPSET:
        message = f"opset {graph.opset}: ONNX Runtime 1.15 reads it, but the portable opset is {PORTABLE_OPSET}"
        yield found(message, severity=Severity.WARNING)


@rule("operator-version", EXPORT, Runtime.ONNXRUNTIME, Runtime.TENSORRT)
def operator_version(graph: GraphView) -> Iterator[Finding]:
    """No operator that is newer than opset 17 (Gelu: 20), and no newer version of one (Pad with axes: 18).

    TensorRT 10.3 and ONNX Runtime 1.15 lack some of them entirely and others in part.
    """
    for (_, op), nodes in _grouped(graph, standard=True):
        schema = schema_of(op, graph.opset)
        if schema is not None and schema.since_version > PORTABLE_OPSET:
            yield found(f"{op} of opset {schema.since_version}, {_where(nodes)}", nodes[0])


@rule(
    "unknown-operator",
    "export again for opset 17; if the operator is real, it is newer than the onnx package installed here",
)
def unknown_operator(graph: GraphView) -> Iterator[Finding]:
    """No standard operator that does not exist in the model's opset: misspelt, removed, or newer than the onnx here."""
    for (_, op), nodes in _grouped(graph, standard=True):
        if schema_of(op, graph.opset) is None:
            yield found(f"{op}, {_where(nodes)}, is no standard operator of opset {graph.opset}", nodes[0])


@rule(
    "foreign-domain",
    "keep the model from before the optimiser that made it, or write the operation in standard operators",
)
def foreign_domain(graph: GraphView) -> Iterator[Finding]:
    """No operator of any domain but the standard one.

    `com.microsoft` runs in ONNX Runtime alone, and its operators change between versions; others need a library beside
    the runtime.
    """
    for (domain, op), nodes in _grouped(graph, standard=False):
        built_in = domain.startswith("com.microsoft") or domain == "ai.onnx.ml"
        runtimes = COMPILERS if built_in else ()
        yield found(f"{op} of {domain}, {_where(nodes)}, is no standard operator", nodes[0], runtimes=runtimes)


def forbid(
    name: str,
    operators: Iterable[str],
    message: str | Callable[[GraphView, Node], str],
    way_out: str,
    *runtimes: Runtime,
) -> Rule:
    """A rule that objects to every standard node of *operators*; in a *message* that is a text, {op} is replaced."""

    @rule(name, way_out, *runtimes)
    def check(graph: GraphView) -> Iterator[Finding]:
        for node in graph.nodes:
            if node.domain == "" and node.op in operators:
                said = message.format(op=node.op) if isinstance(message, str) else message(graph, node)
                yield found(said, node)

    return check


def _sorting(graph: GraphView, node: Node) -> str:
    if node.op != "TopK":
        return f"{node.op} is no operator that edge runtimes have"
    k = _number(graph, node, 1)
    if k is None:  # an attribute until opset 10
        k = {attribute.name: attribute.i for attribute in node.proto.attribute}.get("k")
    if k is None:
        return f"TopK with a K that only the data tells; TensorRT takes a constant up to {TOPK_LIMIT}"
    if k > TOPK_LIMIT:
        return f"TopK with K = {k}; TensorRT takes up to {TOPK_LIMIT}"
    return f"TopK with K = {k} sorts, which leaves the Neural Engine and breaks ties differently on every runtime"


def _cumulative_sum(graph: GraphView, node: Node) -> str:
    shape = graph.type_of(node.proto.input[0]).shape if node.proto.input else None
    axis = _number(graph, node, 1)
    steps = shape[axis] if shape is not None and axis is not None and -len(shape) <= axis < len(shape) else None
    return f"CumSum is a loop of {steps if isinstance(steps, int) else 'many'} steps in TensorRT before 10.8"


def _number(graph: GraphView, node: Node, index: int) -> int | None:
    """The single number that is *node*'s input *index*, if it is known."""
    value = graph.values.get(node.proto.input[index]) if len(node.proto.input) > index else None
    return int(value.flat[0]) if value is not None and value.size == 1 else None


def _grouped(graph: GraphView, standard: bool) -> Iterable[tuple[tuple[str, str], list[Node]]]:
    """((domain, operator), nodes) of the standard domain, or of all others."""
    grouped = defaultdict(list)
    for node in graph.nodes:
        if (node.domain == "") == standard:
            grouped[node.domain, node.op].append(node)
    return grouped.items()


def _where(nodes: Sequence[Node]) -> str:
    """How often and where *nodes* are: "24 times, in layers.0.attn, layers.1.attn and 22 more modules"."""
    modules = sorted({"an unknown module" if n.module is None else n.module or "the network itself" for n in nodes})
    more = f" and {len(modules) - 3} more modules" if len(modules) > 3 else ""
    return f"{counted(len(nodes), 'time')}, in {', '.join(modules[:3])}{more}"


RULES: tuple[Rule, ...] = (
    ir_version,
    opset_version,
    operator_version,
    unknown_operator,
    foreign_domain,
    # TensorRT's parsers clamp a K above 3840 silently, which makes the model wrong. Accelerators leave a sort to the
    # CPU, and which of two equal values comes first differs between runtimes.
    forbid(
        "sorting",
        SORTING,
        _sorting,
        "counting sort: one-hot, running count, exclusive prefix, one scatter; ReduceMax or ArgMax for the best",
        *COMPILERS,
    ),
    # TensorRT 10.3 lacks Unique and Compress and waits for the host in NonZero and NonMaxSuppression; Core ML runs them
    # on the CPU.
    forbid(
        "data-dependent-operator",
        DATA_DEPENDENT,
        "the size of {op}'s result depends on the data, so no shape after it is static",
        "mask with Where instead of boolean indexing, or gather a fixed number of slots",
        *COMPILERS,
    ),
    # TensorRT 10.3 runs them with restrictions and does not fuse across them; they leave Core ML's Neural Engine.
    forbid(
        "control-flow",
        CONTROL_FLOW,
        "{op} is control flow inside the graph",
        "unroll loops of fixed length; replace branches by Where, or export one file per branch",
        *COMPILERS,
    ),
    # TensorRT 10.3 has no operator for them ("not supported" in its operator list), Core ML no such type.
    forbid(
        "sequence",
        SEQUENCES,
        "{op} works on sequences or optional values, not on tensors",
        "use Concat, Split or Slice on tensors; in PyTorch: no lists of tensors whose length the data tells",
        *COMPILERS,
    ),
    # TensorRT before 10.8 launches a kernel per element; from 10.8 on there are open reports of wrong results when a
    # model sums along several axes.
    forbid(
        "cumsum",
        ("CumSum",),
        _cumulative_sum,
        "MatMul with a 0/1 triangular matrix within blocks of at most 128, plus prefix sums of the blocks",
        Runtime.TENSORRT,
    ),
    # TensorRT has no Multinomial or Bernoulli; no two runtimes agree, so parity cannot be measured.
    forbid(
        "random",
        RANDOM_OPERATORS,
        "{op} gives other numbers on every runtime; TensorRT ignores its seed",
        "pass the random numbers as an input, or call model.eval() before exporting",
    ),
    forbid(
        "tensorrt-operator",
        NOT_IN_TENSORRT,
        "TensorRT 10.3 does not import {op}",
        "write it in other operators; for a quantised model: QuantizeLinear and DequantizeLinear around float ones",
        Runtime.TENSORRT,
    ),
)
"""Rules on versions, then on names of operators."""
