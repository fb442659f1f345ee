"""An fp32 graph in fp16, int8 or both, by a calibration; for ONNX Runtime, TensorRT and OpenVINO alike.

Calibration also says which nodes that could be fp16 must not: what exceeds its range or loses its precision there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import onnx
from torch import nn

from ppexport.backends.onnx.export_onnx import simplified
from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.pattern import copied
from ppexport.backends.onnx.qdq import find_ranges, int8_nodes, quantisable, sources_of, write_int8
from ppexport.backends.self_check import example_inputs
from ppexport.backends.tensorrt.half import LARGEST, computes_half, split_sum, write_half
from ppexport.errors import ExportError
from ppexport.networks.architecture import Architecture
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.recipe import Quantisation, Recipe
from ppexport.twin.twin import make_twin

MARGIN = 8.0
"""What other pictures may exceed the calibrated ones by."""
LEAST_HALF_DB = 60.0
"""Least ratio of a tensor's power to that of its rounding error. fp16 keeps 73 to 76 dB of normal numbers."""


class Finding(NamedTuple):
    """A node that stays fp32, and why."""

    node: str
    reason: str


def _judge(calibration: Calibration, name: str) -> str | None:
    """Why tensor *name* cannot be fp16, None where it can."""
    largest = calibration.largest(name)
    if largest * MARGIN > LARGEST:
        return f"{name} reaches {largest:.4g}, fp16 ends at {LARGEST:g}"
    power, error = calibration.figure(name, "power"), calibration.figure(name, "half_error")
    decibel = 10 * math.log10(power / error) if error and power else math.inf
    if decibel < LEAST_HALF_DB:
        return f"{name} keeps {decibel:.1f} dB in fp16: too many of its numbers are below 6e-5"
    return None


def audit(model: onnx.ModelProto, calibration: Calibration, architecture: Architecture) -> list[Finding]:
    """The nodes of *model* that fp16 is meant for and that *calibration* forbids, named as `write_half` names them.

    A tensor that was not recorded, such as a stored weight, is judged by nobody: `write_half` refuses weights that
    exceed fp16.
    """
    recorded = set(calibration.names)
    split = copied(model)
    split_sum(split, architecture)
    candidates = [node for node in split.graph.node if computes_half(node, architecture)]
    sources = sources_of(split, {name for node in candidates for name in (*node.input, *node.output) if name})
    findings = []
    for node in candidates:
        parts = dict.fromkeys(s for name in (*node.input, *node.output) for s in sources.get(name, ()) if s in recorded)
        reasons = (_judge(calibration, source) for source in parts)
        findings += [Finding(node.name, reason) for reason in reasons if reason][:1]
    return findings


def quantised(model: onnx.ModelProto, request: Quantisation) -> tuple[onnx.ModelProto, list[Finding]]:
    """The fp32 graph *model* in the requested precision, and what the audit of fp16 kept in fp32.

    Raises:
        InputError: the calibration lacks a tensor of this graph, or nothing would be quantised.
        ExportError: the graph has a form that a pass does not know.
    """
    findings: list[Finding] = []
    result = model
    if request.precision != "fp16":
        result = write_int8(model, request.calibration, request.recipe, results=request.results)
    if request.precision != "int8":
        int8 = int8_nodes(result)
        # Of the int8 graph, in which a linear layer is a product and a sum, and the sum may be half.
        audited = audit(result, request.calibration, request.architecture)
        findings = [found for found in audited if found.node not in int8]
        result = write_half(result, request.architecture, keep=int8 | {finding.node for finding in findings})
    return result, findings


def origin(request: Quantisation) -> dict[str, Any]:
    """What the manifest says of the calibration."""
    about = request.calibration.about
    return {
        "calibration_sha256": request.calibration.sha256,
        "crops": about.crops,
        "images": about.images,
        "images_sha256": about.images_sha256,
        "warnings": about.warnings,
    }


def placement(request: Quantisation) -> dict[str, Any]:
    """What the manifest says of the recipe."""
    chosen = request.recipe.model_dump(mode="json", exclude={"weights_sha256", "measured"})
    return {**chosen, "recipe": request.recipe_from}


def described(model: onnx.ModelProto, request: Quantisation, findings: Sequence[Finding]) -> dict[str, Any]:
    """What the manifest says of the quantised *model* and of what the audit found."""
    said = origin(request)
    if request.precision != "fp16":
        quantize_nodes = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
        layers = {"layers": len(int8_nodes(model)), "quantize_nodes": quantize_nodes}
        said["int8"] = {**placement(request), **layers}
    if request.precision != "int8":
        said["kept_fp32"] = dict(findings)
        said["onnxruntime_cpu"] = "fp16 weights: its CPU kernels compute in fp32"
    return said


def module_ranges(network: nn.Module, calibration: Calibration, recipe: Recipe) -> dict[str, float]:
    """{dotted module path: the magnitude that 127 stands for} of every layer that *recipe* makes int8.

    For programs that are not made from the calibrated ONNX graph, which is traced again here, at the size that it was
    calibrated at. Raises InputError where *calibration* lacks a tensor of it.
    """
    height, width = calibration.about.size
    twin = make_twin(network, (height, width))
    with TemporaryDirectory() as scratch:
        model = simplified(twin, example_inputs(twin), Path(scratch), False, lambda stage: None)
    chosen = [node for node, group in quantisable(model) if group in recipe.groups]
    limits = find_ranges(model, [node.name for node in chosen], calibration, recipe)
    found: dict[str, float] = {}
    for node in chosen:
        module = module_of_name(node.name)
        if module is None or module in found:
            raise ExportError(f"the layer {node.name} cannot be distinguished from others by its module")
        found[module] = limits[node.input[0]]
    return found
