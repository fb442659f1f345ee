"""A backend that stores the toy's weights in an .npz file and computes them with NumPy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from ppexport.backends.backend import FP16_GATE, FP32_GATE, Backend, BuildJob, Built
from ppexport.backends.options import NoOptions
from ppexport.device.artifact import Artifact
from ppexport.device.runner import Prepared, Result, Runner
from ppexport.device.target import Runtime


class ToyOptions(NoOptions):
    """Its only option."""

    order: Literal["C", "F"] = Field(default="C", description="memory layout of the weights")


class ToyRunner(Runner):
    """The toy in NumPy."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        with np.load(artifact.model_file, allow_pickle=False) as stored:
            self.weight, self.bias = (stored[name].astype(np.float32) for name in ("weight", "bias"))

    def _run(self, prepared: Prepared) -> Result:
        h, w = self.size
        x = np.pad(prepared.lr[0], ((0, 0), (1, 1 + -h % 4), (1, 1 + -w % 4)))
        rows, columns = h + -h % 4, w + -w % 4
        patches = np.stack([x[:, a : a + rows, b : b + columns] for a in range(3) for b in range(3)], axis=1)
        weight = self.weight.reshape(len(self.weight), 3, 9)
        y = np.einsum("okp,kphw->ohw", weight, patches) + self.bias[:, None, None]
        s = self.scale
        sr = y.reshape(3, s, s, rows, columns).transpose(0, 3, 1, 4, 2).reshape(1, 3, rows * s, columns * s)
        return Result(np.ascontiguousarray(sr[:, :, : h * s, : w * s], np.float32), 0, 0)

    def _close(self) -> None:
        del self.weight, self.bias


class ToyBackend(Backend):
    """NumPy."""

    name = "toy"
    summary = "an .npz file, computed with NumPy"
    extra = "toy"
    modules = ("numpy",)
    precisions = {"fp32": FP32_GATE, "fp16": FP16_GATE}  # noqa: RUF012
    runtimes = (
        Runtime("toynumpy", "toy", ("numpy",), "CPU", lambda artifact, target: ToyRunner(artifact), lambda: ["CPU"]),
    )

    def options(self) -> Any:
        """Its only option."""
        return ToyOptions

    def build(self, job: BuildJob) -> Built:
        """Write `model.npz`."""
        job.step("storing the weights")
        kind = np.float16 if job.precision == "fp16" else np.float32
        arrays = {
            name: np.asarray(value.detach().numpy(), kind, job.options.order)
            for name, value in job.network.conv.named_parameters()
        }
        np.savez(job.folder / "model.npz", **arrays)
        return Built(["model.npz"], details={"build": job.options.model_dump()})

    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """In NumPy."""
        return ToyRunner(artifact)


BACKEND = ToyBackend()
