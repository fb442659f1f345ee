"""Versions of the file format and of operators, and operators outside the standard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ppexport.backends.onnx.reading.inference import schema_of
from ppexport.backends.onnx.reading.view import GraphView, Node
from ppexport.backends.onnx.rules.base import Finding, Rule, Runtime, Severity, places
from ppexport.errors import counted

PORTABLE_OPSET = 17
PORTABLE_IR = 8
ORT_OPSET = 19
"""ONNX Runtime 1.15 and 1.16 implement opset 19; opset 20 came with 1.17."""
ORT_IR = 9
"""ONNX Runtime 1.15 to 1.17 read IR version 9, except 1.15 in the browser, which reads 8."""
_EXPORT = "export with opset_version=17 (torch.onnx.export), or convert with onnx.version_converter"


class IrVersion(Rule):
    """Forbids an IR version above 8.

    ONNX Runtime 1.15 refuses IR 10 ("max supported IR version: 9"); its WebAssembly build, and every build of 1.14,
    refuses IR 9. Nothing that a super-resolution network needs came after IR 8. Way out: set the number back.
    """

    id = "ir-version"
    runtimes = (Runtime.ONNXRUNTIME,)
    way_out = "set model.ir_version = 8 and save; the number alone changes nothing if the opset is 17"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding at most."""
        version = graph.model.ir_version
        if version > ORT_IR:
            yield self.found(f"IR version {version}: ONNX Runtime 1.15 reads up to {ORT_IR} and refuses the file")
        elif version > PORTABLE_IR:
            message = f"IR version {version}: ONNX Runtime 1.15 reads it, but not in the browser ({PORTABLE_IR})"
            yield self.found(message, severity=Severity.WARNING)


class OpsetVersion(Rule):
    """Forbids importing standard operators of an opset above 17.

    ONNX Runtime 1.15 implements opset 19 and refuses opset 20 and later. TensorRT 10.3 reads opset 18, but not all of
    it (tensor axes of Pad came with 10.4), so 18 and 19 are a warning here and an error at the nodes that use them,
    see `operator-version`. Way out: export for opset 17.
    """

    id = "opset-version"
    runtimes = (Runtime.ONNXRUNTIME, Runtime.TENSORRT)
    way_out = _EXPORT

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding at most."""
        if graph.opset > ORT_OPSET:
            yield self.found(f"opset {graph.opset}: ONNX Runtime 1.15 implements {ORT_OPSET} and refuses the file")
        elif graph.opset > PORTABLE_OPSET:
            message = f"opset {graph.opset}: ONNX Runtime 1.15 reads it, but the portable opset is {PORTABLE_OPSET}"
            yield self.found(message, severity=Severity.WARNING)


class OperatorVersion(Rule):
    """Forbids operators, and versions of operators, that are newer than opset 17.

    Examples: Gelu (opset 20), Attention, RotaryEmbedding and RMSNormalization (23), ReduceMax with axes as an input
    (18), Pad with axes (18). TensorRT 10.3 and ONNX Runtime 1.15 lack some of them entirely and others in part, and
    runtimes on boards are no newer. Way out: export for opset 17, where they are written out in older operators.
    """

    id = "operator-version"
    runtimes = (Runtime.ONNXRUNTIME, Runtime.TENSORRT)
    way_out = _EXPORT

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per operator, at the first node that uses it."""
        newer: dict[tuple[str, int], list[Node]] = defaultdict(list)
        for node in graph.nodes:
            schema = schema_of(node.op, graph.opset) if node.domain == "" else None
            if schema is not None and schema.since_version > PORTABLE_OPSET:
                newer[node.op, schema.since_version].append(node)
        for (op, version), nodes in newer.items():
            yield self.found(f"{op} of opset {version}, {counted(len(nodes), 'time')}, {places(nodes)}", nodes[0])


class UnknownOperator(Rule):
    """Forbids standard operators that do not exist in the model's opset.

    A misspelt operator, one that was removed, or one that is newer than the onnx package at hand: no runtime of ours
    runs it. Way out: export again, or write it in operators of opset 17.
    """

    id = "unknown-operator"
    way_out = "export again for opset 17; if the operator is real, it is newer than the onnx package installed here"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per operator, at the first node that uses it."""
        unknown: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            if node.domain == "" and schema_of(node.op, graph.opset) is None:
                unknown[node.op].append(node)
        for op, nodes in unknown.items():
            message = (
                f"{op}, {counted(len(nodes), 'time')}, {places(nodes)}, is no standard operator of opset {graph.opset}"
            )
            yield self.found(message, nodes[0])


class ForeignDomain(Rule):
    """Forbids operators of any domain but the standard one.

    `com.microsoft` runs in ONNX Runtime alone, and its operators come and go between versions; `ai.onnx.contrib` and
    others need a library that is loaded beside the runtime; TensorRT 10.3 takes them for plugins that it does not have.
    Way out: export without the optimiser that put them there (ONNX Runtime's optimised model is no portable model).
    """

    id = "foreign-domain"
    way_out = "keep the model from before the optimiser that made it, or write the operation in standard operators"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per operator, at the first node that uses it."""
        foreign: dict[tuple[str, str], list[Node]] = defaultdict(list)
        for node in graph.nodes:
            if node.domain:
                foreign[node.domain, node.op].append(node)
        for (domain, op), nodes in foreign.items():
            built_in = domain.startswith("com.microsoft") or domain == "ai.onnx.ml"
            yield self.found(
                f"{op} of {domain}, {counted(len(nodes), 'time')}, {places(nodes)}, is no standard operator",
                nodes[0],
                runtimes=(Runtime.TENSORRT, Runtime.COREML) if built_in else None,
            )
