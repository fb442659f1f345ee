"""Twin -> model.onnx in every precision, and model.ort, for ONNX Runtime, OpenVINO and TensorRT alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from ppexport.backends.backend import BuildJob, Built, model_facts
from ppexport.backends.lint_report import Severity
from ppexport.backends.onnx.export_onnx import check_graph, finish, fuse, simplified
from ppexport.backends.onnx.lint.lint_child import lint_here
from ppexport.backends.onnx.lint.linting import Runtime
from ppexport.backends.onnx.lint.rules_operators import ir_version, operator_version, opset_version
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.quantised import described, quantised
from ppexport.backends.self_check import check_finite, example_inputs
from ppexport.backends.tensorrt.half import write_half
from ppexport.device.picture import psnr
from ppexport.errors import ExportError, first_line
from ppexport.twin.twin import StaticTwin

MODEL = "model.onnx"
VERSIONS = tuple(rule.name for rule in (ir_version, opset_version, operator_version))
"""Lint rules that the flavour `ort` breaks on purpose."""
HALF_DB, INT8_DB = 55.0, 25.0
"""Least PSNR of an fp16 or int8 file against the fp32 one on the example, with equal routing: below, it is broken."""
REQUIRED = "required_operators_and_types.config"
ORT_SETTINGS = {
    "session.save_model_format": "ORT",
    # int8 stays signed, which is what ARM computes.
    "session.qdqisint8allowed": "1",
    # Bytes: larger ones are computed when the model is opened. The position bias of every layer would be 1 MB.
    "optimization.constant_folding_max_output_size_in_bytes": str(1 << 14),
}


def build_graph(
    job: BuildJob, twin: StaticTwin, passes: Iterable[Callable[[onnx.ModelProto], None]] = ()
) -> dict[str, Any]:
    """Write `model.onnx` of *twin* in the job's precision into its folder, and check it.

    The folder `keep` of the options, if there is one, receives the graphs of all stages. The *passes* of a backend
    change the fp32 graph in place, before it is checked.

    Returns:
        Further fields of the manifest: what a calibration did.

    Raises:
        InputError: the calibration lacks a tensor of this graph.
        ExportError: a stage or a check failed.
    """
    keep, target, details = job.options.keep, job.folder / MODEL, {}
    scratch = keep or job.folder
    with torch.no_grad():
        inputs = example_inputs(twin, mask=job.mask == "input", slots=twin.capacity if job.is_set else 0)
    facts = {**model_facts(twin, job.card, job.capacities), "ppexport.licence": job.card.licence}
    single = target if job.precision == "fp32" else scratch / "3-fp32.onnx"
    model = simplified(twin, inputs, scratch, keep is not None, job.step)
    if twin.flavour == "ort":
        job.step("fusing operators")
        model = fuse(model, job.capacities)
    for change in passes:
        change(model)
    job.step("checking")
    finish(model, single, job.card.name, facts)
    job.step("comparing with the twin")
    check_graph(single, twin, replace(job, precision="fp32"))
    if job.precision != "fp32":
        job.step(f"writing {job.precision}")
        if job.quantisation is None:
            model = write_half(model, job.architecture)
        else:
            model, findings = quantised(model, job.quantisation)
            details["quantisation"] = described(model, job.quantisation, findings)
        finish(model, target, job.card.name, facts)
        job.step(f"comparing {job.precision} with fp32")
        compare_with_fp32(single, target, inputs, job)
        if keep is None:
            single.unlink()
    check_lint(target, twin.flavour)
    return details


def compare_with_fp32(single: Path, target: Path, inputs: Mapping[str, Tensor], job: BuildJob) -> None:
    """Raise ExportError unless *target*, every node rounded to its declared type, gives about the picture of *single*.

    The categories of the fp32 file *single* are injected, since lower precision flips near ties.
    """
    given, routing = {name: value.numpy() for name, value in inputs.items()}, job.architecture.routing
    reference = OnnxProbe(single, routing).run(given)
    categories = None if routing is None else reference.categories
    result = OnnxProbe(target, routing, rounds=True).run(given, categories)
    check_finite(reference.sr, "graph", "fp32", "onnx")
    check_finite(result.sr, "graph", job.precision, "onnx")
    half = job.precision == "fp16"
    decibel = psnr(reference.sr, result.sr, 1.0)
    if decibel < (HALF_DB if half else INT8_DB) or result.impure_tokens != reference.impure_tokens:
        advice = "export this model as fp32" if half else "calibrate on other pictures, or on more"
        raise ExportError(f"in {job.precision} the graph differs from fp32 ({decibel:.1f} dB): {advice}")


def check_lint(path: Path, flavour: str) -> None:
    """Raise ExportError with the first finding when the linter finds an error in *path*.

    The flavour `ort` is for one new runtime and uses a new opset on purpose.
    """
    errors = [f for f in lint_here(path).findings if f.severity is Severity.ERROR]
    if flavour == "ort":
        errors = [f for f in errors if Runtime.ONNXRUNTIME in f.runtimes and f.rule not in VERSIONS]
    if errors:
        first = errors[0]
        raise ExportError(f"the graph fails its lint; first, in {first.module or 'the whole graph'}: {first.message}")


def build_for_onnx(job: BuildJob) -> Built:
    """Write the files of an ONNX artifact, in the job's precision, flavour and format. Raises as `build_graph`."""
    details = build_graph(job, job.twin(flavour=job.options.flavour))
    names = [MODEL]
    if job.options.format == "ort":
        job.step("converting to ONNX Runtime's format")
        converted, required = convert_to_ort(job.folder / MODEL)
        names = [converted.name, MODEL, required.name]
    return Built(names, job.options.flavour, details)


def convert_to_ort(model: Path) -> tuple[Path, Path]:
    """Write `.ort`, which ONNX Runtime Mobile reads, and what a reduced build needs, beside the ONNX file *model*.

    ONNX Runtime optimises the graph as it would when it opens it, for ARM as for x86, and writes the result. Its own
    converter would do the same and fold the position biases.

    Returns:
        The model, and the list of operators and types that ONNX Runtime's `build --include_ops_by_config` takes.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    import onnxruntime
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    target, required = model.with_suffix(".ort"), model.with_suffix(f".{REQUIRED}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    for key, value in ORT_SETTINGS.items():
        options.add_session_config_entry(key, value)
    try:
        # The layout NCHWc runs on x86 alone.
        onnxruntime.InferenceSession(
            model.read_bytes(), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
        create_config_from_models([target], required, True)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot write its own format: {first_line(error)}"
        ) from None
    # It names the files by their whole paths.
    lines = [line for line in required.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join([f"# Operators and types of {target.name}, for onnxruntime's --include_ops_by_config", *lines])
    required.write_text(text + "\n", encoding="utf-8")
    return target, required
