"""ONNX graphs: for ONNX Runtime, OpenVINO and, as what engines are built from, TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import (
    FP16_GATE,
    FP32_GATE,
    INT8_GATE,
    Backend,
    BuildJob,
    Built,
    Probe,
    Request,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


class OnnxBackend(Backend):
    """ONNX files."""

    name = "onnx"
    summary = "an ONNX graph, for ONNX Runtime and OpenVINO"
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
        from ppexport.backends.onnx.onnx_options import OnnxOptions

        return OnnxOptions

    def check(self, request: Request) -> None:
        """Refuse flavours and formats for which there is no such precision."""
        from ppexport.backends.onnx.onnx_options import check_request

        check_request(request)

    def prefers_host_mask(self, options: Any, is_set: bool) -> bool:
        """Who chooses a capacity knows the mask: the flavour made for speed does not compute it again."""
        return is_set and options.flavour == "ort"

    def build(self, job: BuildJob) -> Built:
        """Write `model.onnx`, and `model.ort` where it is asked for."""
        from ppexport.backends.onnx.export_onnx import build_for_onnx

        return build_for_onnx(job)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In ONNX Runtime, on the CPU."""
        from ppexport.backends.onnx.run_onnxruntime import OnnxRunner

        return OnnxRunner(artifact, threads)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A debug copy of the shipped file; None without the package `onnx`, which opens it."""
        from ppexport.backends.onnx.onnx_probe import probe

        return probe(runner, twin, folder)


BACKEND = OnnxBackend()
