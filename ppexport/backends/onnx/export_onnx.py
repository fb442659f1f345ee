"""Twin -> fp32 ONNX graph: traced, simplified, fused for the flavour `ort`, checked and compared with the twin.

The portable flavour is opset 17 and IR version 8, for every runtime; the flavour `ort` has fused attention, which is
opset 23, for ONNX Runtime 1.23 and later. Every shape is static, but for the slots of a capacity set.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx import version_converter
from torch import Tensor, nn

from ppexport.backends.backend import BuildJob, Step
from ppexport.backends.onnx.branch_where import branch_where
from ppexport.backends.onnx.drop_whole_slices import drop_whole_slices
from ppexport.backends.onnx.fuse_attention import fuse_attention
from ppexport.backends.onnx.fuse_unit_rows import fuse_unit_rows
from ppexport.backends.onnx.narrow_indices import narrow_indices
from ppexport.backends.onnx.narrow_sums import narrow_sums
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.simplify import simplify_file
from ppexport.backends.onnx.strip_attention import strip_attention
from ppexport.backends.self_check import self_check
from ppexport.errors import ExportError, first_line
from ppexport.twin.twin import StaticTwin

OPSET, IR_VERSION = 17, 8
ORT_OPSET, ORT_IR_VERSION = 23, 10
"""ONNX Runtime 1.23, the first release with an Attention kernel, reads them."""
SLOTS = "slots"
OUTPUTS = ("sr", "impure_tokens")
SELF_CHECK_DB = 90.0


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


def trace(module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], target: Path) -> None:
    """Write *module* as ONNX to *target*.

    Node names keep the module path, weights their parameter names. The length of an input `slots` is symbolic.

    Args:
        module: what to trace.
        inputs: its arguments by name, the first one positional.
        outputs: names for its results.
        target: the file.

    Raises:
        ExportError: torch's exporter refuses the module.
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


def simplified(
    twin: StaticTwin, inputs: Mapping[str, Tensor], scratch: Path, keep: bool, step: Step
) -> onnx.ModelProto:
    """The graph of *twin* for *inputs* by name, traced and simplified; *keep* leaves both stages in *scratch*."""
    stages = scratch / "1-traced.onnx", scratch / "2-simplified.onnx"
    step("tracing")
    trace(twin, inputs, OUTPUTS, stages[0])
    step("simplifying")
    simplify_file(*stages)
    model = onnx.load(stages[1])
    model.ir_version = IR_VERSION
    narrow_sums(model)
    if not keep:
        for path in stages:
            path.unlink()
    return model


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
    narrow_indices(fused)
    branch_where(fused)
    return fused


def finish(model: onnx.ModelProto, path: Path, name: str, facts: Mapping[str, str]) -> None:
    """Name *model*, add *facts* to its metadata, check it and write it to *path*. Raises ExportError."""
    model.graph.name, model.producer_name = name, "ppexport"
    # A graph in another precision is made from one that was finished.
    present = {entry.key for entry in model.metadata_props}
    for key, value in facts.items():
        if key not in present:
            model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the graph: {first_line(error)}") from None
    onnx.save(model, path)


def check_graph(path: Path, twin: StaticTwin, job: BuildJob) -> None:
    """Raise ExportError unless ONNX Runtime computes the twin's picture from the fp32 file *path* to within 90 dB."""
    probe = OnnxProbe(path, job.architecture.routing)
    self_check(
        lambda inputs, categories: probe.run(inputs, categories)[:2],
        twin,
        job,
        backend="onnx",
        kind="graph",
        least=SELF_CHECK_DB,
    )
