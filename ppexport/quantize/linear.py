"""A linear layer as product and sum, so that its product can be quantised and its bias stays in float.

Before, w stored as (out, in):

    x -> Gemm(w, bias, transB = 1) -> y

After, w stored as (in, out):

    x -> MatMul(w) -> Add(bias) -> y

ONNX Runtime has no int8 kernel for a Gemm whose bias is float, and TensorRT reads no Gemm with a bias of int32.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ppexport.errors import ExportError


def product_name(name: str) -> str:
    """What the product of the linear layer *name* is called."""
    return f"{name}/product"


def split_linear(model: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Rewrite the Gemm nodes of *model* whose names are in *chosen*. Raises ExportError for one of another form."""
    stored = {value.name: value for value in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.name not in chosen:
            nodes.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
        if len(node.input) != 3 or not plain:
            raise ExportError(f"{node.name} is not the plain linear layer that int8 knows")
        source, weight, bias = node.input
        if attributes.get("transB", 0):
            if readers[weight] > 1:
                raise ExportError(f"the weights of {node.name} have a second reader")
            turned = np.ascontiguousarray(numpy_helper.to_array(stored[weight]).T)
            stored[weight].CopyFrom(numpy_helper.from_array(turned, weight))
        product = f"{node.output[0]}_product"
        nodes.append(helper.make_node("MatMul", [source, weight], [product], name=product_name(node.name)))
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], name=f"{node.name}/bias"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
