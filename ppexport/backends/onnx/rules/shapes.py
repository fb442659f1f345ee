"""Ranks, and shapes that are not fixed."""

from __future__ import annotations

from collections.abc import Iterator

from ppexport.backends.onnx.reading.inference import schema_of
from ppexport.backends.onnx.reading.view import GraphView, Node, Origin
from ppexport.backends.onnx.rules.base import Finding, Rule, Runtime, Severity
from ppexport.backends.onnx.rules.operators import DataDependentOperator

MAX_RANK = 5
"""Core ML's limit, in every version so far."""
TENSORRT_MAX_RANK = 8
"""nvinfer1::Dims::MAX_DIMS."""

SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{
        f"Reduce{name}": (1,)
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
"""Inputs whose content, not only whose shape, decides the shape of what an operator makes."""


class Rank(Rule):
    """Forbids tensors of more than five dimensions.

    Core ML refuses them, in every version ("Core ML only supports tensors with rank <= 5"); TensorRT ends at eight.
    The usual source is a window partition written as one permutation of six dimensions. Way out: two permutations of
    at most five.
    """

    id = "rank"
    runtimes = (Runtime.COREML,)
    way_out = "split the permutation in two steps of at most five dimensions, or merge dimensions that stay together"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per input, constant, or node."""
        for name, kind in graph.inputs.items():
            if kind.shape is not None and len(kind.shape) > MAX_RANK:
                yield self._found(f"input {name}", len(kind.shape), name)
        for constant in graph.constants.values():
            if len(constant.shape) > MAX_RANK:
                what = f"constant {constant.name}"
                yield self._found(what, len(constant.shape), constant.name, module=constant.owner)
        for node in graph.nodes:
            for name in node.proto.output:
                shape = graph.type_of(name).shape
                if shape is not None and len(shape) > MAX_RANK and name not in graph.constants:
                    yield self._found(f"{node.op} makes {graph.type_of(name).text()},", len(shape), name, node)
                    break

    def _found(self, what: str, rank: int, tensor: str, node: Node | None = None, module: str | None = None) -> Finding:
        both = rank > TENSORRT_MAX_RANK
        limit = f"TensorRT takes {TENSORRT_MAX_RANK}, Core ML {MAX_RANK}" if both else f"Core ML takes {MAX_RANK}"
        runtimes = (Runtime.TENSORRT, Runtime.COREML) if both else None
        return self.found(f"{what} of rank {rank}; {limit}", node, tensor=tensor, module=module, runtimes=runtimes)


class UnknownRank(Rule):
    """Forbids tensors of which not even the rank can be told.

    TensorRT and Core ML fix the rank of every tensor when they build. Whatever hides it (an operator that nobody
    defined, a Reshape to a list of unknown length) also hides whether the model keeps to the other limits. Only the
    first such tensor of a chain is reported. Way out: see the operator.
    """

    id = "unknown-rank"
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "replace the operator, or give its shape input a constant length"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per input or node where the rank is lost."""
        for name, kind in graph.inputs.items():
            if kind.element is not None and kind.shape is None:
                yield self.found(f"input {name} has no shape", tensor=name)
        for node in graph.nodes:
            if node.depth == 0 and all(graph.type_of(name).shape is not None for name in node.proto.input if name):
                lost = [name for name in node.proto.output if name and graph.type_of(name).shape is None]
                if lost:
                    yield self.found(f"nothing tells the rank of what {node.op} makes", node, tensor=lost[0])


class DynamicShape(Rule):
    """Forbids inputs and outputs with symbolic or unknown dimensions.

    TensorRT needs an optimisation profile for them and tunes for one shape of it; Core ML leaves the Neural Engine for
    every shape but the default; no runtime can plan its memory. Way out: export one file per size. An axis that is
    meant to be symbolic, such as the slots of a capacity set, is given a length when linting and checked at that.
    """

    id = "dynamic-shape"
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = (
        "export without dynamic_axes or dynamic_shapes, one file per size; an axis that is meant to be symbolic is "
        "checked at a length with --length AXIS=N, symbols={AXIS: N} in Python"
    )

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per input and output, and a note on everything between them."""
        for word, tensors in (("input", graph.inputs), ("output", graph.outputs)):
            for name, kind in tensors.items():
                if kind.open:
                    message = f"{word} {name} is {kind.text()}: not all of its dimensions are fixed"
                    yield self.found(message, tensor=name)
        inside = [(node, name) for node in graph.nodes for name in node.proto.output if name not in graph.outputs]
        between = [(node, name) for node, name in inside if graph.type_of(name).open]
        if between:
            node, name = between[0]
            message = f"{len(between)} tensors inside have dimensions that are not fixed, the first is {name}"
            yield self.found(message, node, tensor=name, severity=Severity.NOTE)


class DataDependentShape(Rule):
    """Forbids shapes that are computed from data.

    Reshape, Expand, Slice, Range, ... whose shape-giving input comes from the image and not from constants or from
    shapes: TensorRT 10.3 accepts that for few operators and synchronises with the host for each, Core ML takes the
    operator off the Neural Engine. Arithmetic on static shapes is followed and does not count. Way out: Python numbers
    in forward(), as with x.shape and int().
    """

    id = "data-dependent-shape"
    runtimes = (Runtime.TENSORRT, Runtime.COREML)
    way_out = "compute the shape from Python ints and x.shape, never from a tensor's values (.item(), .sum(), len(...))"

    def check(self, graph: GraphView) -> Iterator[Finding]:
        """One finding per node where a shape is lost."""
        for node in graph.nodes:
            if node.domain or schema_of(node.op, graph.opset) is None:
                continue
            inputs = node.proto.input
            culprit = next(
                (
                    inputs[index]
                    for index in SHAPE_INPUTS.get(node.op, ())
                    if index < len(inputs) and inputs[index] and graph.origin_of(inputs[index]) is Origin.DATA
                ),
                None,
            )
            if culprit is not None:
                message = f"{culprit}, which gives {node.op} its shape, is computed from data"
                yield self.found(message, node, tensor=culprit)
            elif node.depth == 0 and self._loses(graph, node):
                yield self.found(f"the shape of what {node.op} makes is not fixed, though its inputs' shapes are", node)

    @staticmethod
    def _loses(graph: GraphView, node: Node) -> bool:
        if node.op in DataDependentOperator.operators or node.op in ("If", "Loop", "Scan"):
            return False  # these have rules of their own
        made = [graph.type_of(name) for name in node.proto.output if name]
        given = [name for name in node.proto.input if name]
        # Without a rank the tensor is a case of `unknown-rank`; after a shape of SHAPES it is one of `dynamic-shape`.
        lost = any(kind.open for kind in made)
        known = all(graph.type_of(name).static for name in given)
        followed = any(
            index < len(node.proto.input) and graph.origin_of(node.proto.input[index]) is Origin.SHAPES
            for index in SHAPE_INPUTS.get(node.op, ())
        )
        return lost and known and not followed
