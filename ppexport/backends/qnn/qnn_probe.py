"""Looks into a QNN artifact: debug copies of its graph, cut open as those of any ONNX file, on the NPU or its emulator.

A picture takes a minute and more in the emulator. So whatever was computed is kept until the run is complete, and an
interrupted run continues from what was kept.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from ppexport.backends.backend import Inside
from ppexport.backends.onnx.model_file import artifact_model
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.open_front import KeptResults
from ppexport.backends.qnn.run_qnn import QnnRunner, Session
from ppexport.errors import InputError
from ppexport.files import sha256_text
from ppexport.networks.architecture import find_architecture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ppexport.device.runner import Arrays, Runner


class QnnProbe(OnnxProbe):
    """The layers of a QNN artifact. The picture that it is judged by is that of the compiled file."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        """*folder* keeps what was computed. Raises as `OnnxProbe`."""
        if not isinstance(runner, QnnRunner):
            raise InputError("only a QNN artifact that is open can be looked into on an NPU")
        artifact = runner.artifact
        routing = find_architecture(artifact.manifest.arch).routing
        super().__init__(artifact.graph_file, routing, artifact_model(artifact))
        self.runner, self.gives_picture = runner, True
        made_from = json.dumps({"files": artifact.manifest.files, "chip": runner.chip}, sort_keys=True)
        self.kept = KeptResults(folder, sha256_text(made_from)[:16])
        read = (name for pair in self._read for name in pair if name is not None)
        self.every = list(dict.fromkeys(("sr", "impure_tokens", *self.choices, *self.mask, *self.tokens, *read)))

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`; without *categories* the picture and the count are those of the compiled file."""
        inside = super().run(inputs, categories)
        if categories is not None:
            return inside

        def run_compiled() -> Arrays:
            result = self.runner.run_unchecked(self.runner.prepare(inputs["lr"]))
            return {"sr": result.sr, "impure_tokens": np.asarray(result.impure_tokens)}

        compiled = self.kept.arrays(_key("compiled", inputs), run_compiled)
        return inside._replace(sr=compiled["sr"], impure_tokens=int(compiled["impure_tokens"]))

    def _run(
        self, shown: list[str], inputs: Arrays, categories: NDArray[np.int64] | None, first: Sequence[str] = ()
    ) -> list[Any]:
        """As `OnnxProbe._run`, by one run for everything that may be asked for."""
        given = inputs if categories is None else {**inputs, "categories": categories}

        def compute() -> Arrays:
            found = super(QnnProbe, self)._run(self.every[2:], inputs, categories, self.every[:2])
            return {str(number): array for number, array in enumerate(found)}

        kept = self.kept.arrays(_key("open", given), compute)
        return [kept[str(self.every.index(name))] for name in (*first, *shown)]

    def _fixed_slots(self, inputs: Arrays) -> int:
        return inputs["slots"].shape[1] if "slots" in inputs else 0

    def _open(self, model: ModelProto, slots: int) -> Any:
        return Session(model.SerializeToString(), self.where, self.runner.chip, slots)


def _key(what: str, inputs: Arrays) -> str:
    """A name for what comes of *inputs*."""
    found = hashlib.sha256()
    for name in sorted(inputs):
        found.update(f"{name} {inputs[name].dtype} {inputs[name].shape}\n".encode() + inputs[name].tobytes())
    return f"{what}-{found.hexdigest()[:16]}"
