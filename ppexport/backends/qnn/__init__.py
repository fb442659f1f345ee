"""Snapdragon's NPU through ONNX Runtime and Qualcomm's execution provider (QNN), whose emulator runs on Linux."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.backend import FP16_GATE, HALF_TIE, INT8_GATE, Backend, BuildJob, Built, Probe, Request
from ppexport.backends.qnn.run_qnn import CHIPS, EMULATOR, NO_HALF, NPU, missing, place
from ppexport.errors import InputError, UnavailableError
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Runner
    from ppexport.twin.twin import StaticTwin


def chips_of(text: str) -> list[str]:
    """The chips that *text* lists, such as "SM8550,SM8650". Raises InputError."""
    chips = [name.strip().upper() for name in text.split(",")]
    for name in chips:
        if name in NO_HALF:
            raise InputError(f"the NPU of {name} has no fp16, in which a network is computed: {', '.join(CHIPS)} have")
        if name not in CHIPS:
            raise InputError(f"soc is one or more of {', '.join(CHIPS)}, separated by commas, not {name!r}")
    if len(set(chips)) < len(chips):
        raise InputError(f"soc names a chip twice: {text}")
    return chips


class QnnBackend(Backend):
    """ONNX files and what Qualcomm's compiler makes of them."""

    name = "qnn"
    summary = "an ONNX graph and what it is compiled to for the NPUs of named Snapdragon chips"
    usual = "Qualcomm's emulator of the NPU, which is slow and no measure of a device"
    extra = "qnn"
    modules = ("onnx", "onnxsim", "onnxruntime", "onnxruntime_qnn")
    # The NPU has no fp32: similarities are compared in fp16 as well. Of two layers of x2, with the same tokens and
    # dictionary, the surest choice that fp32 makes otherwise leads by 2.7e-4.
    precisions = {"fp16": replace(FP16_GATE, choice_tie=HALF_TIE), "int8": INT8_GATE}  # noqa: RUF012
    levels_only = True
    calibrated = frozenset({"int8"})
    recipes = frozenset({"int8"})
    # Every step is a file with all weights.
    set_steps = 4
    builds_slowly = True
    imitates = "" if place() == NPU else EMULATOR

    def options(self) -> type[BaseModel]:
        """Chips, and where to keep the graphs."""
        from pydantic import Field

        from ppexport.backends.options import OnnxGraphOptions

        class QnnOptions(OnnxGraphOptions):
            soc: str = Field(
                default="SM8650",
                description=f"chips to compile for, separated by commas: {', '.join(CHIPS)}; each takes its time",
            )

        return QnnOptions

    def lacking(self) -> str:
        """Qualcomm's compiler, where it does not run."""
        return missing()

    def check(self, request: Request) -> None:
        """Refuse unknown chips, and machines without Qualcomm's compiler."""
        chips_of(request.options.soc)
        if why := self.lacking():
            raise UnavailableError(why)

    def build(self, job: BuildJob) -> Built:
        """Write `model.onnx`, and a compiled file for every chip and capacity."""
        from ppexport.backends.qnn.build_qnn import build_for_qnn

        return build_for_qnn(job, chips_of(job.options.soc))

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """What was compiled for the first chip, on the NPU or in its emulator."""
        from ppexport.backends.qnn.run_qnn import QnnRunner
        from ppexport.device.runner import refuse_threads

        refuse_threads(threads, self.name)
        return QnnRunner(artifact)

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """A debug copy of `model.onnx` on the NPU or in its emulator."""
        if folder is None or find_architecture(runner.artifact.manifest.arch).routing is None:
            return None
        from ppexport.backends.qnn.qnn_probe import QnnProbe

        return QnnProbe(runner, folder)


BACKEND = QnnBackend()
