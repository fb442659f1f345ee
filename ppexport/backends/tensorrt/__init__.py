"""TensorRT: ONNX graphs of strong types, and the engines that `ppexport build` makes from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppexport.backends.backend import FP16_GATE, FP32_GATE, INT8_GATE, Backend, BuildJob, Built

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner


class TensorRTBackend(Backend):
    """What engines are built from, and engines."""

    name = "tensorrt"
    summary = "an ONNX graph for `ppexport build`, which makes a TensorRT engine from it"
    usual = "TensorRT on this machine's GPU"
    extra = "export"
    modules = ("onnx", "onnxsim", "onnxruntime")
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE, "int8": INT8_GATE, "mixed": INT8_GATE}  # noqa: RUF012
    calibrated = frozenset({"int8", "mixed"})
    # fp16 has fixed rules; with a calibration its audit comes on top.
    may_calibrate = frozenset({"fp16"})
    recipes = frozenset({"int8", "mixed"})
    # Every step is a profile, which is built, stored and loaded like an engine of its own.
    set_steps = 4
    kind = "onnx"

    def options(self) -> type[BaseModel]:
        """Padded heads, and where to keep the graphs."""
        from pydantic import Field

        from ppexport.backends.options import OnnxGraphOptions

        class TensorRTOptions(OnnxGraphOptions):
            """Options of `--backend tensorrt`."""

            pad_heads: bool = Field(default=True, description="attention heads padded to a multiple of 8 channels")

        return TensorRTOptions

    def build(self, job: BuildJob) -> Built:
        """Write `model.onnx` with the precision in its types."""
        from ppexport.backends.tensorrt.export_tensorrt import build_for_tensorrt

        return build_for_tensorrt(job)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """An engine, on this machine's GPU."""
        from ppexport.backends.tensorrt.run_engine import open_engine

        return open_engine(artifact, trust)


BACKEND = TensorRTBackend()
