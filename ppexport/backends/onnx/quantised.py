"""Twin -> model.onnx in fp16, int8 or both, by a calibration; for ONNX Runtime, TensorRT and OpenVINO alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx

from ppexport.backends.backend import Step
from ppexport.backends.onnx.export_onnx import MODEL, Shape, build_rewritten
from ppexport.backends.onnx.half_audit import Finding, audit
from ppexport.backends.onnx.qdq import int8_nodes, write_int8
from ppexport.backends.tensorrt.export_tensorrt import against_fp32, half_check
from ppexport.backends.tensorrt.half import write_half
from ppexport.errors import ExportError
from ppexport.networks.card import Card
from ppexport.quantize.bundled import Quantisation
from ppexport.twin.twin import StaticTwin

LEAST_DB = 25.0
"""Least PSNR of an int8 file against the fp32 one on the example, with equal routing: below, it is broken."""


def quantised(
    model: onnx.ModelProto, wish: Quantisation, groups: Collection[str] | None = None
) -> tuple[onnx.ModelProto, list[Finding]]:
    """*model* in the requested precision, and what the audit of fp16 kept in fp32.

    *groups* are int8 in place of the recipe's.
    """
    findings: list[Finding] = []
    result = model
    if wish.precision != "fp16":
        result = write_int8(model, wish.calibration, wish.recipe, groups)
    if wish.precision != "int8":
        int8 = int8_nodes(result)
        # Of the int8 graph, in which a linear layer is a product and a sum, and the sum may be half.
        findings = [found for found in audit(result, wish.calibration, wish.architecture) if found.node not in int8]
        result = write_half(result, wish.architecture, keep=int8 | {found.node for found in findings})
    return result, findings


def int8_check(single: Path, target: Path, twin: StaticTwin, shape: Shape) -> None:
    """Raise ExportError unless the file *target* makes about the picture of *single*, as an int8 file should."""
    decibel, same = against_fp32(single, target, twin, shape)
    if decibel < LEAST_DB or not same:
        raise ExportError(
            f"in int8 the graph is far from fp32 ({decibel:.1f} dB): calibrate on other pictures, or on more"
        )


def origin(wish: Quantisation) -> dict[str, Any]:
    """What the manifest says of the calibration."""
    about = wish.calibration.about
    return {
        "calibration_sha256": wish.calibration.sha256,
        "crops": about.crops,
        "images": about.images,
        "images_sha256": about.images_sha256,
        "warnings": about.warnings,
    }


def placement(wish: Quantisation) -> dict[str, Any]:
    """What the manifest says of the recipe."""
    recipe = wish.recipe
    return {
        "groups": list(recipe.groups),
        "calibrator": recipe.calibrator,
        "percentile": recipe.percentile,
        "weight_bits": recipe.weight_bits,
        "recipe": wish.recipe_from,
    }


def facts(wish: Quantisation, model: onnx.ModelProto, findings: list[Finding]) -> dict[str, Any]:
    """What the manifest says of *model*, quantised as *wish* has it."""
    said = origin(wish)
    if wish.precision != "fp16":
        counts = Counter(node.op_type for node in model.graph.node)
        said["int8"] = {
            **placement(wish),
            "layers": len(int8_nodes(model)),
            "quantize_nodes": counts["QuantizeLinear"],
        }
    if wish.precision != "int8":
        said["kept_fp32"] = {f.node: f"{f.tensor} {f.reason}" for f in findings}
        said["onnxruntime_cpu"] = "fp16 weights: its CPU kernels compute in fp32"
    return said


def build_quantised(
    twin: StaticTwin, card: Card, folder: Path, shape: Shape, keep: Path | None, step: Step, wish: Quantisation
) -> tuple[str, dict[str, Any]]:
    """Write `model.onnx` into *folder*; its name, and what the manifest says of it. *keep* receives the stages.

    Raises InputError where the calibration lacks a tensor of this graph, ExportError when a stage or a check fails.
    """
    findings: list[Finding] = []

    def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
        result, kept = quantised(model, wish)
        findings.extend(kept)
        return result

    check = half_check if wish.precision == "fp16" else int8_check
    result = build_rewritten(twin, card, folder, shape, keep, step, wish.precision, rewrite, check)
    return MODEL, facts(wish, result, findings)
