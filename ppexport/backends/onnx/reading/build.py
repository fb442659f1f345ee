"""From a checked model file to the `GraphView` that lint rules read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping

from onnx import FunctionProto, GraphProto, ModelProto, inliner

from ppexport.backends.onnx.modules import known_modules, module_of
from ppexport.backends.onnx.reading.constants import collect, small_values, strip
from ppexport.backends.onnx.reading.inference import infer
from ppexport.backends.onnx.reading.model_file import ModelFile, iter_graphs, subgraphs
from ppexport.backends.onnx.reading.view import GraphView, Node
from ppexport.errors import InputError


def build_view(source: ModelFile, symbols: Mapping[str, int]) -> GraphView:
    """Flatten, strip and infer the model of *source*, with the lengths *symbols* for symbolic axes.

    Raises InputError when a symbol is no axis of an input, or when local functions cannot be expanded.
    The model of *source* is used up.
    """
    model = _expanded(source)
    _bind(model, symbols)
    known = known_modules(
        tensor.name for graph in iter_graphs(model) if isinstance(graph, GraphProto) for tensor in graph.initializer
    )
    operators = Counter(str(node.op_type) for graph in iter_graphs(model) for node in graph.node)
    constants = collect(source, model, known)
    values = small_values(model)
    strip(model)
    nodes = list(_nodes(model.graph, known, 0))
    for function in model.functions:
        # The inliner leaves functions that use another operator set than the model; they have no types.
        nodes.extend(_nodes(function, known, 1))
    imports = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    view = GraphView(source, model, nodes, operators, constants, imports.get("", 0), symbols, values=values)
    consumers = defaultdict(list)
    for node in nodes:
        for index, name in enumerate(node.proto.input):
            if name:
                consumers[name].append((node, index))
    view.consumers = dict(consumers)
    infer(view)
    return view


def _expanded(source: ModelFile) -> ModelProto:
    if not source.proto.functions:
        return source.proto
    try:
        return inliner.inline_local_functions(source.proto)
    except Exception as error:  # C++ exceptions of several types
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source.path} has local functions that cannot be expanded: {reason}") from None


def _bind(model: ModelProto, symbols: Mapping[str, int]) -> None:
    """Give the symbolic axes named in *symbols* their lengths, wherever the model mentions them."""
    unused = set(symbols)
    for graph in iter_graphs(model):
        if not isinstance(graph, GraphProto):
            continue
        for info in (*graph.input, *graph.output, *graph.value_info):
            for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
                if dim.dim_param in symbols:
                    unused.discard(dim.dim_param)
                    dim.dim_value = symbols[dim.dim_param]
    if unused:
        raise InputError(f"the model has no symbolic axis named {', '.join(sorted(unused))}")


def _nodes(graph: GraphProto | FunctionProto, known: Collection[str], depth: int) -> Iterator[Node]:
    for node in graph.node:
        for body in subgraphs(node):
            # Before their node: a body reads what was made before, and its node passes on what it makes.
            yield from _nodes(body, known, depth + 1)
        yield Node(node, module_of(node, known), depth)
