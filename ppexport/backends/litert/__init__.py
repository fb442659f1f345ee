"""LiteRT (formerly TensorFlow Lite): files for Android and boards."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.backend import FP32_GATE, Backend, BuildJob, Built, Probe
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


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

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A copy of the shipped file that shows its inside; None for a network without routing, and without what can
        edit the file."""
        from ppexport.backends.litert.run_litert import LiteRTRunner

        routing = find_architecture(runner.artifact.manifest.arch).routing
        if routing is None or find_spec("flatbuffers") is None or not isinstance(runner, LiteRTRunner):
            return None
        from ppexport.backends.litert.litert_probe import LiteRTProbe

        return LiteRTProbe(runner.artifact, dict(runner.session.facts))


BACKEND = LiteRTBackend()
