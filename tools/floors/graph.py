"""A formulation as a model: several copies of it in one graph, one after the other.

Of one copy alone a good part of the time would be the call, and waking the second thread, which sleeps between calls;
inside a network it does not. Every copy reads inputs of its own name, or the runtime would see that all compute the
same and compute it once.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto, helper, numpy_helper, parser

from floors.part import Arrays, Formulation, Part
from ppexport.backends.onnx.export_onnx import ORT_IR_VERSION, ORT_OPSET

CONTRIB = "com.microsoft"


def copy_name(copy: int, name: str) -> str:
    """What *name* is called in a copy."""
    return f"copy{copy}_{name}"


def declare(arrays: Arrays) -> str:
    """Types, shapes and names of *arrays* in ONNX's text form."""
    declared = []
    for name, array in arrays.items():
        kind = onnx.TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(array.dtype)).lower()
        declared.append(f"{kind}[{','.join(map(str, array.shape))}] {name}")
    return ", ".join(declared)


def outputs_of(part: Part, formulation: Formulation) -> dict[str, str]:
    """Names and types of what *formulation* computes."""
    return dict(part.outputs if formulation.leaves is None else formulation.leaves)


def parse(part: Part, formulation: Formulation) -> GraphProto:
    """*formulation* once. Raises onnx.parser.ParseError where its text is wrong."""
    outputs = ", ".join(f"{kind} {name}" for name, kind in outputs_of(part, formulation).items())
    inputs = declare(formulation.take(part.inputs))
    graph = parser.parse_graph(f"floor ({inputs}) => ({outputs}) {{\n{formulation.body}\n}}")
    for output in graph.output:
        # The text form knows no unknown rank and reads one that is left out as a scalar.
        output.type.tensor_type.ClearField("shape")
    return graph


def make_model(part: Part, formulation: Formulation, copies: int = 1) -> ModelProto:
    """*copies* of *formulation* with common weights."""
    once = parse(part, formulation)
    made = GraphProto(name="floor")
    for i in range(copies):
        graph = GraphProto()
        graph.CopyFrom(once)
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [x if x in formulation.weights or not x else copy_name(i, x) for x in names]
        for value in (*graph.input, *graph.output):
            value.name = copy_name(i, value.name)
        made.node.extend(graph.node)
        made.input.extend(graph.input)
        made.output.extend(graph.output)
    made.initializer.extend(numpy_helper.from_array(array, name) for name, array in formulation.weights.items())
    opsets = [helper.make_opsetid("", ORT_OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=ORT_IR_VERSION)
    if formulation.rewrite is not None:
        formulation.rewrite(model)
    return model
