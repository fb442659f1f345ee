"""fp32 graph -> the same graph with explicit Q/DQ around its convolutions and linear layers.

Before:

    x -> Gemm(w, bias) -> y                    x -> Conv(w, bias) -> y

After, Q and DQ one scale for a tensor, weights stored as int8 with a scale for every output channel:

    x -> Q -> DQ -> MatMul(DQ w) -> Add(bias) -> y
    x -> Q -> DQ -> Conv(DQ w, bias) -> y

Q/DQ pairs are written by ONNX Runtime's quantiser. Zero points are 0, biases stay float, and operators are those of
opset 17: one file for ONNX Runtime, TensorRT 10 and 11, and OpenVINO. Results stay float. With the results of
convolutions quantised as well, all groups of x2 cost 0.37 dB; ONNX Runtime would need that to compute a convolution in
int8 (it computes these in fp32), TensorRT and OpenVINO do not. Processors that compute nothing else in int8 than from
int8 to int8 get results in int8, whose bias follows in float:

    x -> Q -> DQ -> Conv(DQ w) -> Q -> DQ -> Add(bias) -> y
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.pattern import Graph, attribute, copied, set_nodes
from ppexport.backends.tensorrt.half import MOVES
from ppexport.errors import ExportError, InputError
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.recipe import Recipe, find_range, group_of

OPERATORS = ("Gemm", "MatMul", "Conv")


def quantisable(model: onnx.ModelProto) -> list[tuple[NodeProto, str]]:
    """The convolutions and linear layers with stored weights that are in a group, and the group.

    Those of the routing are included.
    """
    stored = {value.name for value in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in OPERATORS and node.input[1] in stored]
    return [(node, group) for node in layers if (group := group_of(module_of_name(node.name))) is not None]


def sources_of(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{name: the tensors whose numbers it holds}: back through what only moves numbers, to what was recorded.

    Several where parts were joined, as the four kinds of window are behind shifted window attention.
    """
    maker = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for name in names:
        open_ends, ends = [name], set()
        while open_ends:
            at = open_ends.pop()
            node = maker.get(at)
            if node is None or node.op_type not in MOVES:
                ends.add(at)
            else:
                numbers = MOVES[node.op_type] or range(len(node.input))
                open_ends += [node.input[i] for i in numbers]
        found[name] = tuple(sorted(ends))
    return found


def find_ranges(
    model: onnx.ModelProto, chosen: Collection[str], calibration: Calibration, recipe: Recipe
) -> dict[str, float]:
    """{tensor: the magnitude that 127 stands for} of all activations that the nodes *chosen* quantise."""
    sources = sources_of(model, [node.input[0] for node in model.graph.node if node.name in chosen])
    every = dict.fromkeys(source for parts in sources.values() for source in parts)
    # Nothing records a table that tokens read an entry of.
    stored = {value.name: value for value in model.graph.initializer if value.name in every}
    found = {name: float(np.abs(numpy_helper.to_array(value)).max(initial=0)) for name, value in stored.items()}
    for source in every.keys() - stored.keys():
        found[source] = find_range(calibration, source, recipe.calibrator, recipe.percentile)
    return {name: max(found[source] for source in parts) for name, parts in sources.items()}


def write_int8(
    model: onnx.ModelProto, calibration: Calibration, recipe: Recipe, *, results: bool = False
) -> onnx.ModelProto:
    """A copy of the fp32 *model* whose layers of the recipe's groups are int8.

    Args:
        model: the graph.
        calibration: of this model.
        recipe: the groups, and how ranges are found.
        results: what a layer gives, before its bias is added, is int8 as well.

    Raises:
        InputError: the calibration is of another model, or nothing would be quantised.
        ExportError: a layer has a form that the pass does not know.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = copied(model)
    chosen = {node.name for node, group in quantisable(copy) if group in recipe.groups}
    if not chosen:
        raise InputError("the recipe names no layer of this model, so that nothing would be int8: export it as fp32")
    chosen |= _split_linear(copy, chosen)
    if results:
        chosen |= _split_convolutions(copy, chosen)
    quantised = [node.name for node in copy.graph.node if node.name in chosen]
    ranges = find_ranges(copy, quantised, calibration, recipe)
    if results:
        ranges |= _result_ranges(copy, quantised, calibration, recipe)
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
            "OpTypesToExcludeOutputQuantization": [] if results else ["MatMul", "Conv"],
        },
    )
    quantiser.quantize_model()
    # It puts all DequantizeLinear nodes last.
    quantiser.model.topological_sort()
    result: onnx.ModelProto = quantiser.model.model
    # Inferred shapes would take more room than the weights save.
    del result.graph.value_info[:]
    result.ir_version = model.ir_version
    _check_written(result, len(quantised), recipe.weight_bits)
    return result


def _split_linear(model: onnx.ModelProto, chosen: Collection[str]) -> set[str]:
    """Rewrite the linear layers *chosen*, so that the product can be quantised and the bias stays float.

        before   x -> Gemm(w, bias, transB = 1) -> y        w stored as (out, in)
        after    x -> MatMul(w) -> Add(bias) -> y           w stored as (in, out)

    ONNX Runtime has no int8 kernel for a Gemm whose bias is float, and TensorRT reads no Gemm with a bias of int32.
    Returns the names of the products. Raises ExportError for a Gemm of another form.
    """
    graph, nodes, products = Graph(model), list[NodeProto](), set()
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.name not in chosen:
            nodes.append(node)
            continue
        plain = not attribute(node, "transA") and all(attribute(node, a) in (None, 1.0) for a in ("alpha", "beta"))
        if len(node.input) != 3 or not plain:
            raise ExportError(f"{node.name} is not the plain linear layer that int8 knows")
        source, weight, bias = node.input
        if attribute(node, "transB"):
            if len(graph.readers[weight]) > 1:
                raise ExportError(f"the weights of {node.name} have a second reader")
            turned = np.ascontiguousarray(numpy_helper.to_array(graph.values[weight]).T)
            graph.values[weight].CopyFrom(numpy_helper.from_array(turned, weight))
        product = f"{node.output[0]}_product"
        nodes.append(helper.make_node("MatMul", [source, weight], [product], name=f"{node.name}/product"))
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], name=f"{node.name}/bias"))
        products.add(f"{node.name}/product")
    set_nodes(model, nodes)
    return products


def _split_convolutions(model: onnx.ModelProto, chosen: Collection[str]) -> set[str]:
    """Rewrite the convolutions *chosen*, so that the bias is added to their int8 results in float.

        before   x -> Conv(w, bias) -> y
        after    x -> Conv(w) -> Add(bias) -> y

    Returns the names of those without bias.
    """
    graph, nodes, products = Graph(model), list[NodeProto](), set()
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Conv" or node.name not in chosen or len(node.input) < 3:
            continue
        source, weight, bias = node.input
        values = numpy_helper.to_array(graph.values[bias])
        column = values.reshape(-1, *[1] * (len(graph.values[weight].dims) - 2))
        model.graph.initializer.append(numpy_helper.from_array(column, f"{bias}_column"))
        if len(graph.readers[bias]) == 1:
            model.graph.initializer.remove(graph.values[bias])
        output, name = node.output[0], node.name
        node.input[:], node.output[:], node.name = [source, weight], [f"{output}_product"], f"{name}/product"
        nodes.append(helper.make_node("Add", [f"{output}_product", f"{bias}_column"], [output], name=f"{name}/bias"))
        products.add(node.name)
    set_nodes(model, nodes)
    return products


def _result_ranges(
    model: onnx.ModelProto, chosen: Collection[str], calibration: Calibration, recipe: Recipe
) -> dict[str, float]:
    """{tensor: the magnitude that 127 stands for} of what the nodes *chosen* give, before a bias is added."""
    graph, found = Graph(model), {}
    for node in model.graph.node:
        if node.name not in chosen:
            continue
        output, bias = node.output[0], 0.0
        added = graph.read_by(node, "Add") if output.endswith("_product") else None
        if added is not None:
            output = added.output[0]
            bias = float(np.abs(numpy_helper.to_array(graph.values[added.input[1]])).max())
        # Recorded was the sum.
        found[node.output[0]] = find_range(calibration, output, recipe.calibrator, recipe.percentile) + bias
    return found


def _check_written(model: onnx.ModelProto, layers: int, bits: int) -> None:
    """Raise ExportError unless *model* holds weights of *bits* for *layers* layers, zero points 0, and opset 17."""
    stored = {value.name: value for value in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    points = [numpy_helper.to_array(stored[node.input[2]]) for node in nodes]
    weights = [numpy_helper.to_array(stored[node.input[0]]) for node in nodes if node.input[0] in stored]
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
