"""Twin -> model.onnx in fp16, int8 or both, by a calibration; for ONNX Runtime, TensorRT and OpenVINO alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from torch import nn

from ppexport.backends.onnx.export_onnx import MODEL, Shape, Step, build_rewritten, simplified
from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.qdq import find_ranges, int8_nodes, quantisable, write_int8
from ppexport.backends.onnx.rounding import Finding, audit
from ppexport.backends.tensorrt.export_tensorrt import against_fp32, half_check
from ppexport.backends.tensorrt.half import write_half
from ppexport.errors import ExportError
from ppexport.networks.atd.pp_network import PPATDLight
from ppexport.networks.card import Card
from ppexport.quantize.bundled import Quantisation
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.recipe import Recipe
from ppexport.twin.twin import StaticTwin, make_twin

LEAST_DB = 25.0
"""Least PSNR of an int8 file against the fp32 one on the example, with equal routing: below, it is broken."""


def quantised(
    model: onnx.ModelProto, request: Quantisation, groups: Collection[str] | None = None
) -> tuple[onnx.ModelProto, list[Finding]]:
    """*model* in the requested precision, and what the audit of fp16 kept in fp32.

    *groups* are int8 in place of the recipe's.
    """
    findings: list[Finding] = []
    result = model
    if request.precision != "fp16":
        result = write_int8(model, request.calibration, request.recipe, groups)
    if request.precision != "int8":
        int8 = int8_nodes(result)
        # Of the int8 graph, in which a linear layer is a product and a sum, and the sum may be half.
        findings = [found for found in audit(result, request.calibration) if found.node not in int8]
        result = write_half(result, keep=int8 | {found.node for found in findings})
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
    recipe = request.recipe
    return {
        "groups": list(recipe.groups),
        "calibrator": recipe.calibrator,
        "percentile": recipe.percentile,
        "weight_bits": recipe.weight_bits,
        "recipe": request.recipe_from,
    }


def build_quantised(
    twin: StaticTwin, card: Card, folder: Path, shape: Shape, keep: Path | None, step: Step, request: Quantisation
) -> tuple[str, dict[str, Any]]:
    """Write `model.onnx` into *folder*; its name, and what the manifest says of it. *keep* receives the stages.

    Raises InputError where the calibration lacks a tensor of this graph, ExportError when a stage or a check fails.
    """
    findings: list[Finding] = []

    def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
        result, kept = quantised(model, request)
        findings.extend(kept)
        return result

    check = half_check if request.precision == "fp16" else _int8_check
    model = build_rewritten(twin, card, folder, shape, keep, step, request.precision, rewrite, check)
    said = origin(request)
    if request.precision != "fp16":
        counts = Counter(node.op_type for node in model.graph.node)
        layers = {"layers": len(int8_nodes(model)), "quantize_nodes": counts["QuantizeLinear"]}
        said["int8"] = {**placement(request), **layers}
    if request.precision != "int8":
        said["kept_fp32"] = {f.node: f"{f.tensor} {f.reason}" for f in findings}
        said["onnxruntime_cpu"] = "fp16 weights: its CPU kernels compute in fp32"
    return MODEL, said


def _int8_check(single: Path, target: Path, twin: StaticTwin, shape: Shape) -> None:
    """Raise ExportError unless the file *target* makes about the picture of *single*, as an int8 file should."""
    decibel, same = against_fp32(single, target, twin, shape)
    if decibel < LEAST_DB or not same:
        raise ExportError(
            f"in int8 the graph is far from fp32 ({decibel:.1f} dB): calibrate on other pictures, or on more"
        )


def module_ranges(network: nn.Module, calibration: Calibration, recipe: Recipe) -> dict[str, float]:
    """{dotted module path: the magnitude that 127 stands for} of every layer that *recipe* makes int8.

    For programs that are not made from the calibrated ONNX graph, which is traced again here, at the size that it was
    calibrated at. Raises InputError where *calibration* lacks a tensor of it.
    """
    height, width = calibration.about.size
    twin = make_twin(network, (height, width))
    shape = Shape((twin.capacity,), "graph" if isinstance(network, PPATDLight) else "none")
    with TemporaryDirectory() as scratch:
        model = simplified(twin, shape, Path(scratch), False, lambda stage: None)
    chosen = [node for node, group in quantisable(model) if group in recipe.groups]
    limits = find_ranges(model, [node.name for node in chosen], calibration, recipe)
    found: dict[str, float] = {}
    for node in chosen:
        module = module_of_name(node.name)
        if module is None or module in found:
            raise ExportError(f"the layer {node.name} cannot be told from others by its module")
        found[module] = limits[node.input[0]]
    return found
