"""ONNX graphs: for ONNX Runtime, OpenVINO and, as what engines are built from, TensorRT."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ppexport.backends.backend import FP16_GATE, FP32_GATE, INT8_GATE, Backend, BuildJob, Built, Probe, Request
from ppexport.errors import InputError
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin

ORT_FORMAT_PRECISIONS = ("fp32", "int8")
"""ONNX Runtime would write an fp16 graph as it computes it on a CPU: in fp32, with casts."""


def check_flavour(request: Request) -> None:
    """Raise InputError for a flavour that the network or the precision of *request* is not written in."""
    flavour, precision = request.options.flavour, request.precision
    if flavour not in request.architecture.flavours:
        raise InputError(f"{request.architecture.name} has no flavour {flavour}: leave the flavour out")
    if precision != "fp32" and flavour == "ort":
        raise InputError(f"{precision} is written into flavour portable: leave --flavour out")


class OnnxBackend(Backend):
    """ONNX files."""

    name = "onnx"
    summary = "an ONNX graph, for ONNX Runtime and OpenVINO"
    usual = "ONNX Runtime on the CPU"
    extra = "export"
    modules = ("onnx", "onnxsim", "onnxruntime")
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE, "int8": INT8_GATE, "mixed": INT8_GATE}  # noqa: RUF012
    calibrated = frozenset({"fp16", "int8", "mixed"})
    recipes = frozenset({"int8", "mixed"})
    rounded = frozenset({"fp16", "mixed"})
    # Of ATD-light's multiply-adds a step of 32 is 0.7 %, and on one symbolic axis it costs nothing.
    set_steps = 32

    def options(self) -> type[BaseModel]:
        """Flavour, file format, and where to keep the graphs."""
        from pydantic import Field

        from ppexport.backends.options import OnnxGraphOptions

        class OnnxOptions(OnnxGraphOptions):
            flavour: Literal["portable", "ort"] = Field(
                default="portable",
                description="portable is for every runtime; ort is faster on a CPU, for ONNX Runtime 1.23 or newer",
            )
            format: Literal["onnx", "ort"] = Field(
                default="onnx", description="ort also writes model.ort, which ONNX Runtime Mobile reads"
            )

        return OnnxOptions

    def check(self, request: Request) -> None:
        """Refuse flavours and formats that this network or precision is not written in."""
        check_flavour(request)
        if request.options.format == "ort" and request.precision not in ORT_FORMAT_PRECISIONS:
            raise InputError(
                f"--format ort is for --precision {' or '.join(ORT_FORMAT_PRECISIONS)}: in its own format ONNX Runtime "
                "writes fp16 back to fp32"
            )

    def prefers_host_mask(self, options: Any, is_set: bool) -> bool:
        """Who chooses a capacity knows the mask: the flavour made for speed does not compute it again."""
        return is_set and options.flavour == "ort"

    def build(self, job: BuildJob) -> Built:
        """Write `model.onnx`, and `model.ort` where it is asked for."""
        from ppexport.backends.onnx.build_onnx import build_for_onnx

        return build_for_onnx(job)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In ONNX Runtime, on the CPU."""
        from ppexport.backends.onnx.run_onnxruntime import OnnxRunner

        return OnnxRunner(artifact, threads)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A debug copy of the shipped file; None without the package `onnx`, which opens it."""
        artifact = runner.artifact
        routing = find_architecture(artifact.manifest.arch).routing
        rounds = artifact.manifest.precision in self.rounded
        if find_spec("onnx") is None or (routing is None and not rounds):
            return None
        from ppexport.backends.onnx.model_file import artifact_model
        from ppexport.backends.onnx.onnx_probe import OnnxProbe

        return OnnxProbe(artifact.graph_file, routing, artifact_model(artifact), rounds=rounds)


BACKEND = OnnxBackend()
