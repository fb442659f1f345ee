"""Core AI: Apple's successor to Core ML, whose own runtime also executes on Linux."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.backend import FP16_GATE, FP32_GATE, Backend, BuildJob, Built, Probe
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


class CoreAIBackend(Backend):
    """Core AI assets."""

    name = "coreai"
    summary = "an asset for iOS 27 and macOS 27 (Apple's beta)"
    usual = "Apple's runtime, which is slow on Linux and no measure of a device"
    extra = "coreai"
    modules = ("coreai_torch",)
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE}  # noqa: RUF012
    # Every step is a function.
    set_steps = 4

    def build(self, job: BuildJob) -> Built:
        """Write `model.aimodel`."""
        from ppexport.backends.coreai.convert_asset import build_for_coreai

        return Built([build_for_coreai(job)])

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In Apple's runtime: on Linux exact and slow, and no measure of a device's speed."""
        from ppexport.backends.coreai.asset import CoreAIRunner

        return CoreAIRunner(artifact)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A second asset of the same twin with what its layers chose, and from what, as outputs; None if none can be
        made or the network has no routing.
        """
        from ppexport.backends.coreai.asset_probe import AssetProbe

        if twin is None or folder is None or find_architecture(runner.artifact.manifest.arch).routing is None:
            return None
        return AssetProbe(runner, twin, folder)


BACKEND = CoreAIBackend()
