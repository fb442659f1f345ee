"""The browser: a folder that any static server can host, with a page that runs the model and measures it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ppexport.backends.backend import FP16_GATE, FP32_GATE, INT8_GATE, Backend, BuildJob, Built, Probe, Request
from ppexport.backends.onnx import check_flavour
from ppexport.backends.web.runtime_files import read_runtime
from ppexport.errors import UnavailableError
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


class WebBackend(Backend):
    """Pages with an ONNX file and onnxruntime-web."""

    name = "web"
    summary = "a page that runs an ONNX graph in any browser, for every static web server"
    usual = "ONNX Runtime in a browser without a window, on the CPU"
    extra = "export"
    modules = ("onnx", "onnxsim", "onnxruntime")
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE, "int8": INT8_GATE}  # noqa: RUF012
    calibrated = frozenset({"fp16", "int8"})
    recipes = frozenset({"int8"})
    rounded = frozenset({"fp16"})
    set_steps = 32
    opens_slowly = True

    def options(self) -> type[BaseModel]:
        """Flavour, the runtime's files, and where to keep the graphs."""
        from pydantic import Field

        from ppexport.backends.options import OnnxGraphOptions

        class WebOptions(OnnxGraphOptions):
            flavour: Literal["portable", "ort"] = Field(
                default="portable", description="portable is for CPU and GPU; ort is arranged for CPUs"
            )
            ort: Path | None = Field(
                default=None,
                description="folder of npm's package onnxruntime-web, where it is in no folder node_modules",
            )
            webgpu: bool = Field(default=True, description="with what computes on a GPU, 27 MB of the page")

        return WebOptions

    def lacking(self) -> str:
        """That the runtime's files are nowhere."""
        try:
            read_runtime(None, webgpu=True)
        except UnavailableError as error:
            return str(error)
        return ""

    def check(self, request: Request) -> None:
        """Refuse flavours that this network or precision is not written in, and runtimes but the pinned one."""
        check_flavour(request)
        read_runtime(request.options.ort, request.options.webgpu)

    def prefers_host_mask(self, options: Any, is_set: bool) -> bool:
        """Who chooses a capacity knows the mask: the page does, in either flavour."""
        return is_set

    def build(self, job: BuildJob) -> Built:
        """Write `model.onnx`, the page and what it runs with."""
        from ppexport.backends.web.build_web import build_for_web

        return build_for_web(job)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In a browser of this machine, without a window, on its CPU."""
        from ppexport.backends.web.run_browser import BrowserRunner

        return BrowserRunner(artifact, threads=threads)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A debug copy of `model.onnx` in ONNX Runtime on this machine; the picture stays the browser's."""
        artifact = runner.artifact
        routing = find_architecture(artifact.manifest.arch).routing
        if find_spec("onnx") is None or routing is None:
            return None
        from ppexport.backends.onnx.model_file import artifact_model
        from ppexport.backends.onnx.onnx_probe import OnnxProbe

        found = OnnxProbe(artifact.graph_file, routing, artifact_model(artifact))
        found.elsewhere = True
        return found


BACKEND = WebBackend()
