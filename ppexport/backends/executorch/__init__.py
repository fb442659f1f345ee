"""ExecuTorch: PyTorch's runtime for phones, with XNNPACK for the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ppexport.backends.backend import FP32_GATE, Backend, BuildJob, Built, Probe
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


class ExecuTorchBackend(Backend):
    """ExecuTorch programs."""

    name = "executorch"
    summary = "a program for ExecuTorch, for Android and iOS apps"
    usual = "ExecuTorch's runtime on the CPU, with XNNPACK"
    extra = "executorch"
    modules = ("executorch",)
    precisions = {"fp32": FP32_GATE}  # noqa: RUF012
    # On one symbolic axis a step costs nothing.
    set_steps = 32
    builds_slowly = True

    def options(self) -> type[BaseModel]:
        """What the program is lowered for."""
        from pydantic import Field

        from ppexport.backends.options import NoOptions

        class ExecuTorchOptions(NoOptions):
            partitioner: Literal["xnnpack", "vulkan"] = Field(
                default="xnnpack",
                description="xnnpack is for the CPU; vulkan is for Android's GPUs, lowered only: nothing here runs or "
                "checks such a program",
            )

        return ExecuTorchOptions

    def build(self, job: BuildJob) -> Built:
        """Write `model.pte`."""
        from ppexport.backends.executorch.build_program import build_for_executorch

        return build_for_executorch(job)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In ExecuTorch's runtime for Python, which needs torch."""
        from ppexport.backends.executorch.run_executorch import ExecuTorchRunner

        return ExecuTorchRunner(artifact, threads)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A second program of the same twin with what its layers chose, and from what, as outputs; None if none can be
        made or the network has no routing.
        """
        from ppexport.backends.executorch.program_probe import ProgramProbe

        if twin is None or folder is None or find_architecture(runner.artifact.manifest.arch).routing is None:
            return None
        return ProgramProbe(runner, twin, folder)


BACKEND = ExecuTorchBackend()
