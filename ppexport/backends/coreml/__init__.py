"""Core ML: ML programs for iPhone and Mac, and an evaluator that computes them on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.backend import (
    FP16_GATE,
    FP32_GATE,
    INT8_GATE,
    W8_GATE,
    Backend,
    BuildJob,
    Built,
    Probe,
    Request,
    UnitRun,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


class CoreMLBackend(Backend):
    """Core ML packages."""

    name = "coreml"
    summary = "an ML program for iOS 16 to 18 and the macOS of their years"
    extra = "coreml"
    modules = ("coremltools",)
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE, "w8": W8_GATE, "w8a8": INT8_GATE}  # noqa: RUF012
    calibrated = frozenset({"w8a8"})
    recipes = frozenset({"w8a8"})
    # Every step is a function.
    set_steps = 4

    def options(self) -> type[BaseModel]:
        """Deployment target and interface."""
        from ppexport.backends.coreml.apple import CoreMLOptions

        return CoreMLOptions

    def check(self, request: Request) -> None:
        """Refuse what the deployment target has no operations for, and a NumPy that the converter cannot use."""
        from ppexport.backends.coreml.apple import check_installed, check_request

        check_request(request)
        check_installed()

    def build(self, job: BuildJob) -> Built:
        """Write `model.mlpackage`."""
        from ppexport.backends.coreml.convert import build_for_coreml
        from ppexport.backends.onnx.quantised import module_ranges, origin, placement

        quantised, details = job.quantisation, {"build": job.options.model_dump()}
        ranges = {}
        if quantised is not None:
            job.step("finding the ranges")
            ranges = module_ranges(job.network, quantised.calibration, quantised.recipe)
            details["quantisation"] = {**origin(quantised), "int8": {**placement(quantised), "layers": len(ranges)}}
        return Built([build_for_coreml(job, ranges)], details=details)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In the evaluator: exact, slow, and no measure of a device's speed."""
        from ppexport.backends.coreml.evaluated import CoreMLRunner

        return CoreMLRunner(artifact)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """The evaluator, which sees every operation of the package."""
        from ppexport.backends.coreml.package_probe import probe

        return probe(runner, twin, folder)

    def unit_runs(self, runner: Runner, units: Sequence[str]) -> dict[str, UnitRun]:
        """On a Mac, every unit in a child process."""
        from ppexport.backends.coreml.package_probe import unit_runs

        return unit_runs(runner, units)


BACKEND = CoreMLBackend()
