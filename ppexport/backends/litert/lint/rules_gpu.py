"""Rules on what LiteRT's GPU accelerator refuses and computes wrong, each measured: docs/litert-gpu.md.

A rule yields (severity, message, operator). Older GPU delegates, in apps that bring a TensorFlow Lite of their own,
refuse more: what their list of supported operators says is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ppexport.backends.lint_report import Severity
from ppexport.backends.litert.gpu_constants import ELEMENTWISE, MAX_RANK, is_misranked, is_misread, is_swapped
from ppexport.backends.litert.lint.file_view import Graph, Operator, Tensor

LOGICAL = ("LOGICAL_AND", "LOGICAL_OR")
TAKEN = ELEMENTWISE | frozenset((
    "ABS", "ARG_MAX", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CEIL", "CONCATENATION", "CONV_2D", "COS", "CUMSUM",
    "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE", "ELU", "EMBEDDING_LOOKUP", "EXP", "FLOOR", "FULLY_CONNECTED",
    "GATHER", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGICAL_NOT", "LOGISTIC", "MAX_POOL_2D", "MEAN",
    "MIRROR_PAD", "NEG", "ONE_HOT", "PACK", "PAD", "PRELU", "REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN",
    "REDUCE_PROD", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
    "REVERSE_V2", "ROUND", "RSQRT", "SELECT", "SELECT_V2", "SIGN", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH",
    "SPLIT", "SPLIT_V", "SQRT", "SQUARE", "STRIDED_SLICE", "SUM", "TANH", "TILE", "TOPK_V2", "TRANSPOSE",
    "TRANSPOSE_CONV", "UNPACK",
))  # fmt: skip
"""Operators that the accelerator has computed."""
REFUSED = frozenset((
    "ARG_MIN", "BROADCAST_TO", "DYNAMIC_UPDATE_SLICE", "EXPAND_DIMS", "FILL", "GATHER_ND", "L2_NORMALIZATION",
    "LOG_SOFTMAX", "RELU_0_TO_1", "SCATTER_ND", "SHAPE", "SQUEEZE", "ZEROS_LIKE",
))  # fmt: skip
"""Operators that it refuses; of all others nothing was measured."""
FLOATS_ONLY = ("CUMSUM", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE", "TOPK_V2", "UNPACK")
OLDER = frozenset((
    "ABS", "ADD", "BATCH_MATMUL", "CAST", "CEIL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE",
    "DEQUANTIZE", "DIV", "EMBEDDING_LOOKUP", "EQUAL", "FLOOR", "FULLY_CONNECTED", "GATHER", "GELU", "GREATER",
    "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NEG",
    "ONE_HOT", "PAD", "QUANTIZE", "REDUCE_ALL", "REDUCE_MAX", "RELU", "RELU6", "RESHAPE", "RSQRT", "SELECT",
    "SELECT_V2", "SLICE", "SOFTMAX", "SQRT", "SQUARED_DIFFERENCE", "SUB", "SUM", "TILE", "TOPK_V2", "TRANSPOSE",
))  # fmt: skip
"""Operators that older delegates list, of those that models like these hold."""
SLICED = (3, 4)
"""Ranks of what older delegates slice."""


class Said(NamedTuple):
    """What a rule objects to."""

    severity: Severity
    message: str
    operator: Operator


class Rule(NamedTuple):
    """A rule; the docstring of its function says what it objects to."""

    name: str
    way_out: str
    check: Callable[[Graph], Iterator[Said]]


def refused(graph: Graph) -> Iterator[Said]:
    """No operator that the accelerator refuses whatever it takes, and a warning of those of which nothing is known."""
    for op in graph.operators:
        if op.kind in REFUSED or op.kind.startswith("STABLEHLO_"):
            yield Said(Severity.ERROR, f"{op.kind} is refused, so that the whole model ends on the CPU", op)
        elif op.kind not in TAKEN:
            yield Said(Severity.WARNING, f"nothing was measured of {op.kind}: try it on the device", op)


def refused_arguments(graph: Graph) -> Iterator[Said]:
    """No operator with inputs that the accelerator refuses for it."""
    for op in graph.operators:
        why = _why_refused(op)
        if why is not None:
            yield Said(Severity.ERROR, f"{op.kind} is refused {why}", op)


def _why_refused(op: Operator) -> str | None:
    """Why the accelerator refuses the inputs of *op*, if it does."""
    ranks = [len(tensor.shape) for tensor in (*op.computed, *op.outputs)]
    data = op.computed
    if max(ranks, default=0) > MAX_RANK:
        return f"with rank {max(ranks)}, it takes {MAX_RANK}"
    # Weights of 16 bits are widened when the model is opened.
    if not data and op.kind != "DEQUANTIZE":
        return "because all of its inputs are constants"
    if op.kind in FLOATS_ONLY and any(tensor.whole for tensor in op.outputs[:1]):
        return f"for whole numbers ({op.outputs[0].kind})"
    if op.kind in ("BATCH_MATMUL", "FULLY_CONNECTED") and op.inputs[0].constant:
        return "with a constant as the left operand"
    if op.kind == "PAD" and len(data[0].shape) < 3:
        return f"for a tensor of rank {len(data[0].shape)}, it takes 3 and 4"
    if op.kind == "GATHER" and len(op.inputs) > 1 and len(op.inputs[1].shape) > 1:
        return "with indices of more than one axis"
    if op.kind in LOGICAL and len(set(map(id, op.inputs))) < len(op.inputs):
        return "with the same tensor twice"
    if op.kind in ELEMENTWISE and len(data) == 2 and any(not x.shape for x in data) and any(x.shape for x in data):
        return "with a computed scalar beside a tensor"
    if op.kind in ("SELECT", "SELECT_V2"):
        wanted = op.outputs[0].shape
        small = [x.shape for x in op.inputs[1:] if x.shape != wanted and (x.size > 1 or len(x.shape) > 1)]
        if small:
            return f"with a branch {list(small[0])} that is smaller than what it gives, {list(wanted)}"
    return None


def misread_constants(graph: Graph) -> Iterator[Said]:
    """No constant that the accelerator takes for another one: the result is silently wrong."""
    for op in graph.operators:
        if op.kind not in ELEMENTWISE or len(op.inputs) != 2 or len(op.computed) != 1:
            continue
        (other,) = op.computed
        constant = op.inputs[0] if op.inputs[0].constant else op.inputs[1]
        if constant.kind not in ("FLOAT32", "INT32", "BOOL"):
            continue
        floating = constant.kind == "FLOAT32"
        if is_misread(constant.shape, other.shape, floating):
            part = "reads only the first slice of" if floating else "misplaces"
            yield Said(
                Severity.ERROR,
                f"{op.kind} {part} the constant {list(constant.shape)} beside {list(other.shape)}: silently wrong",
                op,
            )
        elif constant is op.inputs[0] and is_swapped(
            op.kind, constant.shape, other.shape, op.outputs[0].shape, floating
        ):
            yield Said(
                Severity.ERROR,
                f"{op.kind} takes its left operand, whole numbers, for the right one: silently wrong",
                op,
            )


def computed_wrong(graph: Graph) -> Iterator[Said]:
    """No operator whose result is silently wrong for these inputs, whatever the constants."""
    for op in graph.operators:
        shape = op.inputs[0].shape if op.inputs else ()
        if op.kind == "PAD" and len(shape) >= 3:
            sides = op.inputs[1].values if len(op.inputs) > 1 else None
            if op.inputs[0].whole:
                yield Said(Severity.ERROR, "PAD of whole numbers gives other numbers: silently wrong", op)
            elif len(shape) == 3 and (sides is None or sides.reshape(-1, 2)[0].any()):
                yield Said(Severity.ERROR, "PAD of rank 3 pads another axis than the first: silently wrong", op)
        if op.kind == "FULLY_CONNECTED" and len(op.inputs) > 1:
            small = op.inputs[1].kind == "INT8" and op.inputs[0].kind == "FLOAT32"
            if is_misranked(small, shape, op.outputs[0].shape):
                message = "with weights of 8 bits, whose input has another rank than its result, is silently wrong"
                yield Said(Severity.ERROR, f"FULLY_CONNECTED {message}", op)
        if op.kind == "ONE_HOT" and len(shape) > 2:
            yield Said(Severity.ERROR, f"ONE_HOT of indices of rank {len(shape)} is silently wrong", op)


def computed_embeddings(graph: Graph) -> Iterator[Said]:
    """No EMBEDDING_LOOKUP in a table that is computed: the accelerator ends the process."""
    for op in graph.operators:
        if op.kind == "EMBEDDING_LOOKUP" and len(op.inputs) > 1 and not op.inputs[1].constant:
            yield Said(Severity.ERROR, "EMBEDDING_LOOKUP in a table that is computed ends the process", op)


def older_delegates(graph: Graph) -> Iterator[Said]:
    """A warning of what the GPU delegates of older runtimes leave to the CPU, though LiteRT 2.3 takes it."""
    for op in graph.operators:
        if op.kind in TAKEN and (why := _why_older(op)) is not None:
            yield Said(Severity.WARNING, f"older GPU delegates leave {op.kind} {why} to the CPU", op)


def _why_older(op: Operator) -> str | None:
    shapes = [tensor.shape for tensor in op.inputs]
    out = op.outputs[0].shape if op.outputs else ()
    if op.kind not in OLDER:
        return "(not in their list)"
    if op.kind in ("ADD", "MUL") and len(shapes) == 2 and not _broadcasts(*shapes):
        return f"of ranks {len(shapes[0])} and {len(shapes[1])}"
    if op.kind == "SLICE" and len(shapes[0]) not in SLICED:
        return f"of rank {len(shapes[0])}"
    if op.kind == "ONE_HOT" and any(side != 1 for side in shapes[0][:-1]):
        return "of more than one row"
    if op.kind == "CAST" and not _casts(op.inputs[0], op.outputs[0]):
        return f"from {op.inputs[0].kind} to {op.outputs[0].kind}"
    if op.kind == "SELECT_V2" and op.inputs[0].shape != out:
        return "with a condition smaller than its result"
    return None


def _casts(x: Tensor, y: Tensor) -> bool:
    kinds, floats = {x.kind, y.kind}, {"FLOAT32", "FLOAT16"}
    return kinds <= {"FLOAT32", "INT32"} or ("BOOL" in kinds and bool(kinds & floats))


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether older delegates add tensors of these shapes."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    if len(short) < 2 or len(long) == len(short):
        return True
    if len(long) != 4:
        return False
    if len(short) == 3:
        return long[0] == 1
    return (long[0] == 1 and short == (1, 1)) or (long[0] == short[0] and long[3] == short[1])


RULES = (
    Rule(
        "gpu-refused",
        "write it in operators that the GPU takes; ppexport exports do, see docs/litert-gpu.md",
        refused,
    ),
    Rule(
        "gpu-refused-arguments",
        "reshape to rank 3 or 4, put constants on the right, cast whole numbers to fp32",
        refused_arguments,
    ),
    Rule(
        "gpu-misread-constant",
        "give the constant and the other operand a leading axis of 1, or export again with this ppexport",
        misread_constants,
    ),
    Rule("gpu-wrong", "pad and count in fp32, with tensors of rank 4; reshape what a layer takes", computed_wrong),
    Rule("gpu-computed-embedding", "GATHER, which takes tables that are computed", computed_embeddings),
    Rule("gpu-older", "bring LiteRT 2 with the app, or accept that these run on the CPU", older_delegates),
)
"""In the order in which findings of equal severity are reported."""
