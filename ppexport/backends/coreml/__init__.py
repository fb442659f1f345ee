"""Core ML: ML programs for iPhone and Mac, and an evaluator that computes them on any machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

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
from ppexport.errors import InputError, UnavailableError, require
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin

FIRST_NUMPY_TOO_NEW = (2, 4)
"""From here on coremltools 9.0 fails inside: "only 0-dimensional arrays can be converted to Python scalars"."""


class CoreMLBackend(Backend):
    """Core ML packages."""

    name = "coreml"
    summary = "an ML program for iOS 16 to 18 and the macOS of their years"
    usual = "ppexport's evaluator, which is slow and no measure of a device"
    extra = "coreml"
    modules = ("coremltools",)
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE, "w8": W8_GATE, "w8a8": INT8_GATE}  # noqa: RUF012
    calibrated = frozenset({"w8a8"})
    recipes = frozenset({"w8a8"})
    # Every step is a function.
    set_steps = 4

    def options(self) -> type[BaseModel]:
        """Deployment target and interface."""
        from pydantic import Field

        from ppexport.backends.options import NoOptions

        class CoreMLOptions(NoOptions):
            """Options of `--backend coreml`."""

            target: Literal["iOS16", "iOS17", "iOS18"] = Field(
                default="iOS18", description="deployment target; each also stands for the macOS of its year"
            )
            interface: Literal["tensor", "image"] = Field(
                default="tensor", description="image takes and gives an app's pictures, of 8 bits"
            )

        return CoreMLOptions

    def check(self, request: Request) -> None:
        """Refuse what the deployment target has no operations for, and a NumPy that the converter cannot use."""
        target = request.options.target
        # MIL quantises activations from iOS 17 on, and packages of several functions exist from iOS 18 on.
        if request.precision == "w8a8" and target == "iOS16":
            raise InputError("w8a8 quantises activations, which needs iOS17 or iOS18")
        if len(request.capacities) > 1 and target != "iOS18":
            raise InputError("a capacity set is a package of several functions, which needs iOS18")
        require("coremltools", self.extra)
        if tuple(map(int, re.findall(r"\d+", np.__version__)[:2])) >= FIRST_NUMPY_TOO_NEW:
            raise UnavailableError(
                f"coremltools cannot convert with NumPy {np.__version__}, which refuses to make numbers of arrays: "
                f"pip install 'numpy<{'.'.join(map(str, FIRST_NUMPY_TOO_NEW))}'"
            )

    def build(self, job: BuildJob) -> Built:
        """Write `model.mlpackage`."""
        from ppexport.backends.coreml.convert import build_for_coreml
        from ppexport.backends.onnx.quantised import module_ranges, origin, placement

        quantised, details = job.quantisation, {"build": job.options.model_dump()}
        ranges = {}
        if quantised is not None:
            if quantised.recipe.weight_bits != 8:
                bits = quantised.recipe.weight_bits
                raise InputError(f"w8a8 of --backend coreml has weights of 8 bits, the recipe says {bits}")
            job.step("finding the ranges")
            ranges = module_ranges(job.network, quantised.calibration, quantised.recipe)
            details["quantisation"] = {**origin(quantised), "int8": {**placement(quantised), "layers": len(ranges)}}
        return Built([build_for_coreml(job, ranges)], details=details)

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In the evaluator: exact, slow, and no measure of a device's speed."""
        from ppexport.backends.coreml.evaluated import CoreMLRunner

        return CoreMLRunner(artifact)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """The evaluator, which sees every operation of the package; None for a network without routing."""
        from ppexport.backends.coreml.evaluated import PackageProbe

        routing = find_architecture(runner.artifact.manifest.arch).routing
        return None if routing is None else PackageProbe(runner.artifact.model_file, routing)

    def unit_runs(self, runner: Runner, units: Sequence[str]) -> dict[str, UnitRun]:
        """On a Mac, every unit in a child process."""
        from ppexport.backends.coreml.trial import unit_runs

        return unit_runs(runner, units)


BACKEND = CoreMLBackend()
