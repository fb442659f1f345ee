"""Twin -> model.onnx: simplified, checked, linted and compared with the twin.

The portable flavour is opset 17 and IR version 8, for every runtime; the flavour `ort` has fused attention, which is
opset 23, for ONNX Runtime 1.23 and later. Every shape is static, but for the slots of a capacity set.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import version_converter
from torch import nn

from ppexport.backends.backend import BuildJob, Built, Step, model_facts
from ppexport.backends.onnx import ort_format
from ppexport.backends.onnx.branch_where import branch_where
from ppexport.backends.onnx.drop_whole_slices import drop_whole_slices
from ppexport.backends.onnx.fuse_attention import fuse_attention
from ppexport.backends.onnx.fuse_unit_rows import fuse_unit_rows
from ppexport.backends.onnx.lint.lint_child import lint_here
from ppexport.backends.onnx.lint.linting import Runtime, Severity
from ppexport.backends.onnx.lint.rules_operators import ir_version, operator_version, opset_version
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.simplify import simplify_file
from ppexport.backends.onnx.strip_attention import strip_attention
from ppexport.backends.self_check import example_inputs
from ppexport.backends.self_check import self_check as check_with_twin
from ppexport.errors import ExportError, first_line
from ppexport.networks.architecture import find_architecture
from ppexport.networks.card import Card
from ppexport.twin.twin import StaticTwin

OPSET = 17
IR_VERSION = 8
ORT_OPSET = 23
ORT_IR_VERSION = 10
"""ONNX Runtime 1.23, the first release with an Attention kernel, reads it."""
MODEL = "model.onnx"
VERSIONS = tuple(rule.name for rule in (ir_version, opset_version, operator_version))
"""Lint rules that the flavour `ort` breaks."""
INPUT, MASK, SLOTS = "lr", "mask", "slots"
OUTPUTS = ("sr", "impure_tokens")
SELF_CHECK_DB = 90.0


@dataclass(frozen=True)
class Shape:
    """What a graph takes beside the image."""

    capacities: tuple[int, ...]
    """Slots of category attention, ascending; more than one makes an input `slots` (1, C), int32."""
    mask: str
    """"graph", "input" or "none", as in the manifest."""

    @property
    def is_set(self) -> bool:
        """Whether the number of slots is chosen with every image."""
        return len(self.capacities) > 1


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep torch's exporter from warning that it is deprecated and that shapes become constants, which is meant."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)


def trace(module: nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...], target: Path) -> None:
    """Write *module* as ONNX to *target*; *inputs* are its arguments by name, the first one positional.

    Node names keep the module path, weights their parameter names. The length of an input `slots` is symbolic.
    """
    first, *others = inputs.items()
    try:
        # The tracing exporter is deprecated, but it alone writes opset 17, which boards read.
        with torch.no_grad(), quiet_exporter():
            torch.onnx.export(
                module,
                (first[1], dict(others)),
                str(target),
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={SLOTS: {1: SLOTS}} if SLOTS in inputs else None,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the twin does not export: {first_line(error)}") from error


def metadata(twin: StaticTwin, card: Card, shape: Shape) -> dict[str, str]:
    """What the ONNX file says of itself."""
    return {**model_facts(twin, card, shape.capacities), "ppexport.licence": card.licence}


def finish(model: onnx.ModelProto, path: Path, facts: dict[str, str], name: str) -> None:
    """Set the metadata of *model*, check it and write it to *path*."""
    model.graph.name = name
    model.producer_name = "ppexport"
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the graph: {first_line(error)}") from None
    onnx.save(model, path)


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


def graph_inputs(twin: StaticTwin, shape: Shape, capacity: int) -> dict[str, torch.Tensor]:
    """The example and what else a graph of *shape* takes, by name."""
    return example_inputs(twin, mask=shape.mask == "input", slots=capacity if shape.is_set else 0)


def self_check(path: Path, twin: StaticTwin, shape: Shape) -> None:
    """Raise ExportError unless ONNX Runtime computes the twin's picture from *path* to within 90 dB."""
    probe = OnnxProbe(path, find_architecture(twin.network.arch).routing)
    check_with_twin(
        lambda inputs, categories: probe.run(inputs, categories)[:2],
        twin,
        shape.capacities,
        least=SELF_CHECK_DB,
        kind="graph",
        precision="fp32",
        backend="onnx",
        mask=shape.mask == "input",
    )


def fuse(model: onnx.ModelProto, capacities: tuple[int, ...]) -> onnx.ModelProto:
    """A copy of *model* in opset 23, with the operators that ONNX Runtime has one kernel for and without idle work.

    A symbolic number of slots is one of *capacities*.
    """
    fused = version_converter.convert_version(model, ORT_OPSET)
    fused.ir_version = ORT_IR_VERSION
    fuse_attention(fused)
    strip_attention(fused, capacities)
    fuse_unit_rows(fused)
    drop_whole_slices(fused)
    branch_where(fused)
    return fused


def simplified(twin: StaticTwin, shape: Shape, scratch: Path, keep: bool, step: Step) -> onnx.ModelProto:
    """The graph of *twin*, traced and simplified; *keep* leaves both stages in *scratch*."""
    stages = scratch / "1-traced.onnx", scratch / "2-simplified.onnx"
    step("tracing")
    trace(twin, graph_inputs(twin, shape, twin.capacity), OUTPUTS, stages[0])
    step("simplifying")
    simplify_file(*stages)
    model = onnx.load(stages[1])
    model.ir_version = IR_VERSION
    if not keep:
        for path in stages:
            path.unlink()
    return model


def build_rewritten(
    twin: StaticTwin,
    card: Card,
    folder: Path,
    shape: Shape,
    keep: Path | None,
    step: Step,
    precision: str,
    rewrite: Callable[[onnx.ModelProto], onnx.ModelProto],
    check: Callable[[Path, Path, StaticTwin, Shape], None],
) -> onnx.ModelProto:
    """Write the fp32 graph of *twin* in another *precision*, as *rewrite* makes it, as `model.onnx` into *folder*.

    *check* raises ExportError where that file, its second argument, is too far from the fp32 one, its first; *keep*
    receives the stages. Returns the graph. Raises ExportError when a stage or a check fails.
    """
    scratch = keep or folder
    single, target = scratch / "3-fp32.onnx", folder / MODEL
    model = simplified(twin, shape, scratch, keep is not None, step)
    step(f"writing {precision}")
    result = rewrite(model)
    step("checking")
    about = metadata(twin, card, shape)
    finish(model, single, about, card.name)
    step("comparing with the twin")
    self_check(single, twin, shape)
    finish(result, target, about, card.name)
    step(f"comparing {precision} with fp32")
    check(single, target, twin, shape)
    check_lint(target, twin.flavour)
    if keep is None:
        single.unlink(missing_ok=True)
    return result


def build(twin: StaticTwin, card: Card, folder: Path, shape: Shape, keep: Path | None, step: Step) -> str:
    """Write `model.onnx` into *folder* and return its name; *keep* receives the intermediate graphs.

    Raises ExportError when a stage or a check fails.
    """
    target = folder / MODEL
    model = simplified(twin, shape, keep or folder, keep is not None, step)
    if twin.flavour == "ort":
        step("fusing operators")
        model = fuse(model, shape.capacities)
    step("checking")
    finish(model, target, metadata(twin, card, shape), card.name)
    check_lint(target, twin.flavour)
    step("comparing with the twin")
    self_check(target, twin, shape)
    return MODEL


def build_for_onnx(job: BuildJob) -> Built:
    """Write the files of an ONNX artifact, in the job's precision, flavour and format."""
    from ppexport.backends.onnx.quantised import build_quantised

    options, shape = job.options, Shape(job.capacities, job.mask)
    twin, details = job.twin(flavour=options.flavour), {}
    if job.quantisation is None:
        name = build(twin, job.card, job.folder, shape, options.keep, job.step)
    else:
        name, said = build_quantised(twin, job.card, job.folder, shape, options.keep, job.step, job.quantisation)
        details = {"quantisation": said}
    names = [name]
    if options.format == "ort":
        job.step("converting to ONNX Runtime's format")
        model, required = ort_format.convert(job.folder / name)
        names = [model.name, name, required.name]
    return Built(names, options.flavour, details)
