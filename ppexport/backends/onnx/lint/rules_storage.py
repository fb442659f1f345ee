"""Rules on stored data: constants larger than they need be, files beside the model, graphs that are not valid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx
from onnx import ModelProto, TensorProto

from ppexport.backends.lint_report import Finding, Severity
from ppexport.backends.onnx.graph_view import GraphView, Node, Origin, schema_of
from ppexport.backends.onnx.lint.linting import COMPILERS, Rule, found, rule
from ppexport.backends.onnx.model_file import iter_tensors
from ppexport.backends.onnx.stored_constants import Constant

LARGE_BYTES = 128 * 1024
"""A constant that is no weight may have this much: a 0/1 triangle of 128 x 128 in float32 twice over."""
INDEX_BYTES = 512 * 1024
"""One table of relative positions of a 16x16 window, 65536 int64, is tolerated with a warning."""

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    **{"Conv": (1, 2), "ConvInteger": (1,), "ConvTranspose": (1, 2), "DeformConv": (1, 3), "QLinearConv": (3, 8)},
    **{"GRU": (1, 2, 3), "LSTM": (1, 2, 3, 7), "RNN": (1, 2, 3)},
    **{"Gather": (0,), "GatherElements": (0,), "GatherND": (0,), "PRelu": (1,), "BatchNormalization": (1, 2, 3, 4)},
    **{f"{name}Normalization": (1, 2) for name in ("Group", "Instance", "Layer")},
}
"""Inputs at which a constant is a weight."""
_MATRIX_INPUTS: dict[str, tuple[int, ...]] = {
    **{"Einsum": (0, 1, 2, 3), "Gemm": (0, 1, 2), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
}
"""Inputs at which a matrix is a weight, but a stack of matrices is not."""
_INDEX_INPUTS = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterElements": 1, "ScatterND": 1}


@rule(
    "large-constant",
    "compute it inside the graph from its small table, and keep tools from folding it: "
    "do_constant_folding=False in torch.onnx.export, skip_constant_folding=True in onnxsim",
)
def large_constant(graph: GraphView) -> Iterator[Finding]:
    """No constant above 128 KiB that is no weight, the largest first.

    A position bias that a tool gathered in advance is 1 MiB per layer: on a phone that is download, memory, and
    bandwidth in every run, and no runtime complains. Weights are what the tables above name, directly or through
    operations on constants alone (Transpose, Cast, DequantizeLinear, ...), and what torch.export recorded as a
    parameter. A float constant that bears a parameter's name, and a list of indices up to 512 KiB, are only warned of.
    """
    large = large_constants(graph)
    total = _size_text(sum(constant.bytes for constant, _, _ in large))
    number = f"one of {len(large)}, {total} in all" if len(large) > 1 else "the only one"
    for constant, indices, others in large:
        fed = ", ".join(sorted({node.op for node in (*indices, *others)})) or "nothing but an output"
        what = f"constant {constant.name} ({'x'.join(map(str, constant.shape))}, {_size_text(constant.bytes)})"
        short_list = indices and not others and constant.bytes <= INDEX_BYTES
        floating = constant.element in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        yield found(
            f"{what} feeds {fed} and is no weight; {number}",
            next(iter((*others, *indices)), None),
            severity=Severity.WARNING if short_list or (constant.named and floating) else Severity.ERROR,
            tensor=constant.name,
            module=constant.owner,
        )


@rule("duplicate-constant", "register it once, in the module around the layers that use it, and pass it to them")
def duplicate_constant(graph: GraphView) -> Iterator[Finding]:
    """A warning of constants that the file stores twice: exporters copy a table into every layer that uses it."""
    copies: dict[tuple[str, int, tuple[int, ...]], list[Constant]] = defaultdict(list)
    for constant in graph.constants.values():
        if constant.digest is not None:
            copies[constant.digest, constant.element, constant.shape].append(constant)
    for same in copies.values():
        if len(same) > 1:
            names = ", ".join(constant.name for constant in same[:3]) + (", ..." if len(same) > 3 else "")
            users = graph.consumers.get(same[1].name, [])
            yield found(
                f"{len(same)} equal constants ({names}) waste {_size_text(same[0].bytes * (len(same) - 1))}",
                users[0][0] if users else None,
                severity=Severity.WARNING,
                tensor=same[1].name,
                module=same[1].owner,
            )


@rule("unused-constant", "remove the initializer, or export again from a model without the unused parameter")
def unused_constant(graph: GraphView) -> Iterator[Finding]:
    """A warning of constants above 128 KiB that nothing reads: every runtime drops them after it has read the file."""
    for constant in graph.constants.values():
        if constant.bytes > LARGE_BYTES and not _is_used(graph, constant.name):
            message = f"nothing reads constant {constant.name}, {_size_text(constant.bytes)}"
            yield found(message, severity=Severity.WARNING, tensor=constant.name, module=constant.owner)


@rule(
    "external-data",
    "save again with onnx.save(..., save_as_external_data=True, location='plain_name.bin'), or in one file",
)
def external_data(graph: GraphView) -> Iterator[Finding]:
    """No external data outside the model's folder: a runtime would read whatever file it names.

    Such a file is never opened here.
    """
    for tensor, (location, reason) in graph.source.unsafe.items():
        yield found(f"{tensor} is kept in {location!r}, which {reason}; it was not opened", tensor=tensor)


@rule("sparse-constant", "store the tensor dense", *COMPILERS)
def sparse_constant(graph: GraphView) -> Iterator[Finding]:
    """No sparse initializers and Constant nodes with a sparse value, which TensorRT's parser lacks."""
    for constant in graph.constants.values():
        if constant.sparse:
            yield found(f"{constant.name} is stored sparse", tensor=constant.name, module=constant.owner)


@rule("invalid-graph", "the file was written or changed by a tool that made a mistake; export again")
def invalid_graph(graph: GraphView) -> Iterator[Finding]:
    """No graph that onnx's own checker refuses, which stops at the first mistake."""
    standard = all(node.domain or schema_of(node.op, graph.opset) for node in graph.nodes)
    external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in iter_tensors(graph.model))
    if not standard or external or graph.model.ir_version > onnx.IR_VERSION:
        return  # other rules report these; the checker would only repeat them, or look for the files
    checked = ModelProto()
    checked.CopyFrom(graph.model)
    for info in checked.graph.output:
        # The checker needs a shape of every output, which no runtime does; an unknown one is for `unknown-rank`.
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(checked)
    except MemoryError:
        raise
    except Exception as error:  # ValidationError, and C++ exceptions of other types
        yield found(" ".join(str(error).split())[:300])


@rule("shape-conflict", "export again; onnx.shape_inference.infer_shapes(model, strict_mode=True) says more")
def shape_conflict(graph: GraphView) -> Iterator[Finding]:
    """A warning when declared shapes or types contradict what operators make: runtimes differ in what they believe."""
    if graph.conflict is not None:
        yield found(f"shape inference: {graph.conflict}", severity=Severity.WARNING)


def large_constants(graph: GraphView) -> list[tuple[Constant, list[Node], list[Node]]]:
    """Constants above the limit that are used but not as weights, the largest first: `large-constant` objects to them.

    With each, the nodes that it reaches as indices and the others, directly or through nodes that see only constants.
    """
    large = [constant for constant in graph.constants.values() if constant.bytes > LARGE_BYTES and not constant.learned]
    large = sorted(large, key=lambda constant: (-constant.bytes, constant.name))
    uses = [(constant, _uses(graph, constant)) for constant in large if _is_used(graph, constant.name)]
    return [(constant, *use) for constant, use in uses if use is not None]


def _is_used(graph: GraphView, name: str) -> bool:
    return name in graph.consumers or any(info.name == name for info in graph.model.graph.output)


def _uses(graph: GraphView, constant: Constant) -> tuple[list[Node], list[Node]] | None:
    """The nodes that *constant* reaches as indices, and the others; None where it is a weight of one of them."""
    indices, others = [], []
    waiting, seen = [constant.name], {constant.name}
    while waiting:
        name = waiting.pop()
        for node, index in graph.consumers.get(name, []):
            matrix = index in _MATRIX_INPUTS.get(node.op, ()) and _is_matrix(graph, name)
            # What a foreign operator does with its constants is not for this rule to say.
            if matrix or node.domain or index in _WEIGHT_INPUTS.get(node.op, ()):
                return None
            made = [output for output in node.proto.output if output]
            if _INDEX_INPUTS.get(node.op) == index:
                indices.append(node)
            # Made of constants alone, and read by some node, not only by the caller.
            elif all(graph.origin_of(output) is Origin.CONSTANT and output in graph.consumers for output in made):
                waiting.extend(output for output in made if output not in seen)
                seen.update(made)
            else:
                others.append(node)
    return indices, others


def _is_matrix(graph: GraphView, name: str) -> bool:
    shape = list(graph.type_of(name).shape or ())
    while shape and shape[0] == 1:
        shape.pop(0)
    return len(shape) <= 2


def _size_text(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


RULES: tuple[Rule, ...] = (
    *(large_constant, duplicate_constant, unused_constant),
    *(external_data, sparse_constant, invalid_graph, shape_conflict),
)
