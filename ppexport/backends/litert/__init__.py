"""LiteRT (formerly TensorFlow Lite): files for Android and boards."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.backend import FP16_GATE, FP32_GATE, INT8_GATE, Backend, BuildJob, Built, Probe, UnitRun
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
    modules = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer", "flatbuffers")
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE, "int8": INT8_GATE}  # noqa: RUF012
    # Every step is a signature, whose program takes room in the file.
    set_steps = 4
    builds_slowly = True

    def build(self, job: BuildJob) -> Built:
        """Write `model.tflite`."""
        from ppexport.backends.litert.convert_litert import MODEL, build_for_litert

        return Built([MODEL], "lite", {"quantisation": build_for_litert(job)})

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In LiteRT, on the CPU."""
        from ppexport.backends.litert.run_litert import LiteRTRunner

        return LiteRTRunner(artifact, threads)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A copy of the shipped file that shows its inside; None for a network without routing, and without what can
        edit the file, as on a device."""
        artifact, needed = runner.artifact, ("flatbuffers", "torch")
        if find_architecture(artifact.manifest.arch).routing is None or not all(map(find_spec, needed)):
            return None
        from ppexport.backends.litert.litert_probe import LiteRTProbe

        return LiteRTProbe(artifact.read(artifact.model_file), str(artifact.model_file))

    def unit_runs(self, runner: Runner, units: Sequence[str]) -> dict[str, UnitRun]:
        """On this machine's GPU, in a child process."""
        from ppexport.backends.litert.gpu_trial import unit_runs

        return unit_runs(runner, units)


BACKEND = LiteRTBackend()
