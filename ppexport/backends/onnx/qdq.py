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
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.tensors import check_not_quantised, sources_of
from ppexport.errors import ExportError, InputError
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.ranges import find_range
from ppexport.quantize.recipe import Recipe, group_of, quantisable


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


# fp32 graph -> the same graph with explicit Q/DQ around its convolutions and linear layers.
#
# Before:
#
#     x -> Gemm(w, bias) -> y                    x -> Conv(w, bias) -> y
#
# After, Q and DQ one scale for a tensor, weights stored as int8 with a scale for every output channel:
#
#     x -> Q -> DQ -> MatMul(DQ w) -> Add(bias) -> y
#     x -> Q -> DQ -> Conv(DQ w, bias) -> y
#
# Q/DQ pairs are written by ONNX Runtime's quantiser. Zero points are 0, biases stay float, and operators are those of
# opset 17: one file for ONNX Runtime, TensorRT 10 and 11, and OpenVINO. Results stay float. With the results of
# convolutions quantised as well, all groups of x2 cost 0.37 dB; ONNX Runtime would need that to compute a convolution
# in
# int8 (it computes these in fp32), TensorRT and OpenVINO do not.


def find_ranges(
    model: onnx.ModelProto, chosen: Collection[str], calibration: Calibration, recipe: Recipe
) -> dict[str, float]:
    """{tensor: the magnitude that 127 stands for} of all activations that the nodes *chosen* quantise."""
    wanted = [node.input[0] for node in model.graph.node if node.name in chosen]
    sources = sources_of(model, wanted)
    every = dict.fromkeys(source for parts in sources.values() for source in parts)
    found = {source: find_range(calibration, source, recipe.calibrator, recipe.percentile) for source in every}
    return {name: max(found[source] for source in parts) for name, parts in sources.items()}


def write_int8(
    model: onnx.ModelProto, calibration: Calibration, recipe: Recipe, groups: Collection[str] | None = None
) -> onnx.ModelProto:
    """A copy of the fp32 *model* whose layers of *groups*, the recipe's if left out, are int8.

    Raises InputError where the calibration is of another model or nothing would be quantised.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    check_not_quantised(model, "the graph")
    groups = recipe.groups if groups is None else groups
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    chosen = {node.name for node in quantisable(copy) if group_of(node.name) in groups}
    if not chosen:
        raise InputError("the recipe names no layer of this model, so that nothing would be int8: export it as fp32")
    split_linear(copy, chosen)
    chosen |= {product_name(name) for name in chosen}
    quantised = [node.name for node in copy.graph.node if node.name in chosen]
    ranges = find_ranges(copy, quantised, calibration, recipe)
    data = {name: (np.float32(-limit), np.float32(limit)) for name, limit in ranges.items()}
    quantiser = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=recipe.weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=quantised,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul", "Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Conv"],
        },
    )
    quantiser.quantize_model()
    # It puts all DequantizeLinear nodes last.
    quantiser.model.topological_sort()
    result: onnx.ModelProto = quantiser.model.model
    # Inferred shapes would take more room than the weights save.
    del result.graph.value_info[:]
    result.ir_version = model.ir_version
    check_written(result, len(quantised), recipe.weight_bits)
    return result


def check_written(model: onnx.ModelProto, layers: int, bits: int) -> None:
    """Raise ExportError unless *model* holds weights of *bits* for *layers* layers, zero points 0, and opset 17."""
    stored = {value.name: value for value in model.graph.initializer}
    weights = [
        numpy_helper.to_array(stored[node.input[0]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    points = [
        numpy_helper.to_array(stored[node.input[2]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    if len(weights) != layers or any(point.any() or point.dtype != np.int8 for point in points):
        raise ExportError(f"the quantiser wrote {len(weights)} of {layers} weights, or zero points that are not 0")
    if any(np.abs(weight.astype(np.int16)).max() > 1 << (bits - 1) for weight in weights):
        raise ExportError(f"the quantiser wrote weights of more than {bits} bits")
    if any(entry.domain not in ("", "ai.onnx") for entry in model.opset_import):
        raise ExportError("the quantiser wrote operators that are ONNX Runtime's own")


def int8_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """The names of the nodes that read a dequantised weight: they compute in int8, and stay fp32 in a mixed file."""
    stored = {value.name for value in model.graph.initializer if value.data_type == TensorProto.INT8}
    weights = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored}
    return frozenset(n.name for n in model.graph.node if weights & set(n.input))
