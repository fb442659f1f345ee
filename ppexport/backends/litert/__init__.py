"""LiteRT (formerly TensorFlow Lite): files for Android and boards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppexport.backends.backend import FP32_GATE, Backend, BuildJob, Built

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner


class LiteRTBackend(Backend):
    """LiteRT files."""

    name = "litert"
    summary = "a LiteRT file, for Android and boards"
    usual = "LiteRT on the CPU"
    extra = "litert"
    modules = ("litert_torch", "ai_edge_litert")
    precisions = {"fp32": FP32_GATE}  # noqa: RUF012
    # Every step is a signature, whose program takes room in the file.
    set_steps = 4

    def build(self, job: BuildJob) -> Built:
        """Write `model.tflite`."""
        from ppexport.backends.litert.convert_litert import build_for_litert

        return Built([build_for_litert(job)], "lite")

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In LiteRT, on the CPU."""
        from ppexport.backends.litert.run_litert import LiteRTRunner

        return LiteRTRunner(artifact, threads)


BACKEND = LiteRTBackend()
