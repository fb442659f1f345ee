"""Constants that make the file larger than its weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import TensorProto

from ppexport.backends.onnx.reading.constants import Constant
from ppexport.backends.onnx.reading.view import GraphView, Node, Origin
from ppexport.backends.onnx.rules.base import Finding, Rule, Severity, size_text

LARGE_BYTES = 128 * 1024
"""A constant that is no weight may have this much: a 0/1 triangle of 128 x 128 in float32 twice over."""
INDEX_BYTES = 512 * 1024
"""One table of relative positions of a 16x16 window, 65536 int64, is tolerated with a warning."""

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvInteger": (1,),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "QLinearConv": (3, 8),
    "RNN": (1, 2, 3),
}
"""Inputs at which a constant is a weight."""
_MATRIX_INPUTS: dict[str, tuple[int, ...]] = {
    "Einsum": (0, 1, 2, 3),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
}
"""Inputs at which a matrix is a weight, but a stack of matrices is not."""
_INDEX_INPUTS = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterElements": 1, "ScatterND": 1}


@dataclass
class _Uses:
    """Where a constant ends up: as a weight, as indices of these nodes, as something else in those."""

    weight: bool = False
    indices: list[Node] = field(default_factory=list)
    others: list[Node] = field(default_factory=list)


class LargeConstant(Rule):
    """Forbids constants above 128 KiB that are no weights.

    A file should be about the size of its weights (3 MB). A position bias that a tool gathered in advance is 1 MiB per
    layer in float32, a shifted-window mask with one entry per window more: on a phone that is download, memory, and
    bandwidth in every run. No runtime refuses it, which is why nobody notices. What counts as a weight: kernels and
    biases, matrices of Gemm and MatMul, tables of Gather, parameters of normalisations and recurrent layers, directly
    or through operations on constants alone (Transpose, Cast, DequantizeLinear, ...), and what torch.export recorded
    as a parameter. A float constant that bears a parameter's name is only warned of, and so is a list of indices up to
    512 KiB. Way out: compute it in the graph, and keep every tool from folding it.
    """

    id = "large-constant"
    way_out = (
        "compute it inside the graph from its small table, and keep tools from folding it: "
        "do_constant_folding=False in torch.onnx.export, skip_constant_folding=True in onnxsim"
    )

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per constant, the largest first."""
        large = large_constants(graph)
        total = size_text(sum(constant.bytes for constant in large))
        for constant in large:
            uses = _uses(graph, constant)
            fed = ", ".join(sorted({node.op for node in (*uses.indices, *uses.others)})) or "nothing but an output"
            shape = "x".join(map(str, constant.shape))
            number = f"one of {len(large)}, {total} in all" if len(large) > 1 else "the only one"
            what = f"constant {constant.name} ({shape}, {size_text(constant.bytes)})"
            yield self.found(
                f"{what} feeds {fed} and is no weight; {number}",
                next(iter((*uses.others, *uses.indices)), None),
                severity=self._severity(constant, uses),
                tensor=constant.name,
                module=constant.owner,
            )

    @staticmethod
    def _severity(constant: Constant, uses: _Uses) -> Severity:
        if uses.indices and not uses.others and constant.bytes <= INDEX_BYTES:
            return Severity.WARNING
        floating = constant.element in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        return Severity.WARNING if constant.named and floating else Severity.ERROR


class DuplicateConstant(Rule):
    """Warns of constants that the file stores twice.

    Exporters copy a table or mask into every layer that uses it; runtimes keep every copy. Way out: one buffer that
    all layers read, and onnxslim or ONNX Runtime's basic optimisations to merge what is left.
    """

    id = "duplicate-constant"
    way_out = "register it once, in the module around the layers that use it, and pass it to them"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per content that occurs more than once."""
        copies: dict[tuple[str, int, tuple[int, ...]], list[Constant]] = defaultdict(list)
        for constant in graph.constants.values():
            if constant.digest is not None:
                copies[constant.digest, constant.element, constant.shape].append(constant)
        for same in copies.values():
            if len(same) > 1:
                names = ", ".join(constant.name for constant in same[:3]) + (", ..." if len(same) > 3 else "")
                wasted = size_text(same[0].bytes * (len(same) - 1))
                users = graph.consumers.get(same[1].name, [])
                yield self.found(
                    f"{len(same)} equal constants ({names}) waste {wasted}",
                    users[0][0] if users else None,
                    severity=Severity.WARNING,
                    tensor=same[1].name,
                    module=same[1].owner,
                )


class UnusedConstant(Rule):
    """Warns of large constants that nothing reads.

    They make the file larger and are dropped by every runtime after it has been read. Way out: remove them.
    """

    id = "unused-constant"
    way_out = "remove the initializer, or export again from a model without the unused parameter"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per constant above 128 KiB."""
        for constant in graph.constants.values():
            if constant.bytes > LARGE_BYTES and not _is_used(graph, constant.name):
                message = f"nothing reads constant {constant.name}, {size_text(constant.bytes)}"
                yield self.found(message, severity=Severity.WARNING, tensor=constant.name, module=constant.owner)


def large_constants(graph: GraphView) -> list[Constant]:
    """Constants above the limit that are used but not as weights, the largest first."""
    found = [
        constant
        for constant in graph.constants.values()
        if constant.bytes > LARGE_BYTES
        and not constant.learned
        and _is_used(graph, constant.name)
        and not _uses(graph, constant).weight
    ]
    return sorted(found, key=lambda constant: (-constant.bytes, constant.name))


def _is_used(graph: GraphView, name: str) -> bool:
    return name in graph.consumers or any(info.name == name for info in graph.model.graph.output)


def _uses(graph: GraphView, constant: Constant) -> _Uses:
    """What becomes of *constant*, directly or through nodes that see nothing but constants."""
    uses = _Uses()
    waiting, seen = [constant.name], {constant.name}
    while waiting:
        name = waiting.pop()
        for node, index in graph.consumers.get(name, []):
            matrix = index in _MATRIX_INPUTS.get(node.op, ()) and _is_matrix(graph, name)
            # What a foreign operator does with its constants is not for this rule to say.
            if matrix or node.domain or index in _WEIGHT_INPUTS.get(node.op, ()):
                uses.weight = True
            elif _INDEX_INPUTS.get(node.op) == index:
                uses.indices.append(node)
            elif all(_passes_on(graph, output) for output in node.proto.output if output):
                fresh = [output for output in node.proto.output if output and output not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
            else:
                uses.others.append(node)
    return uses


def _passes_on(graph: GraphView, output: str) -> bool:
    """Whether *output* is made of constants alone and read by some node, not only by the caller."""
    return graph.origin_of(output) is Origin.CONSTANT and output in graph.consumers


def _is_matrix(graph: GraphView, name: str) -> bool:
    shape = list(graph.type_of(name).shape or ())
    while shape and shape[0] == 1:
        shape.pop(0)
    return len(shape) <= 2
