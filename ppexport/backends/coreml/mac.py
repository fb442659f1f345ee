"""Runs a Core ML package with Core ML itself, which only a Mac has.

Untested on hardware: written from the documentation of `coremltools.models.MLModel`, tested with a stand-in.
"""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image as Pillow

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.describing import capacity_function
from ppexport.errors import ArtifactError, InputError, UnavailableError, first_line, require
from ppexport.picture import to_input, to_uint8

UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


class CoreMLMacRunner(Runner):
    """A Core ML artefact on this Mac, on the compute units *units*."""

    def __init__(self, artifact: Artifact, units: str = "ALL") -> None:
        """Raises UnavailableError anywhere but on a Mac, InputError for unknown units."""
        super().__init__(artifact)
        if units not in UNITS:
            raise InputError(f"compute units are {', '.join(UNITS)}, not {units}")
        if platform.system() != "Darwin":
            raise UnavailableError(
                "Core ML runs on a Mac only; `ppexport parity` checks a package anywhere, but its evaluator's time "
                "says nothing about a device"
            )
        require("coremltools", "coreml")
        self._tools = import_module("coremltools")
        self.units = getattr(self._tools.ComputeUnit, units)
        self._images = artifact.manifest.engine.get("interface") == "image"
        self._models: dict[int, Any] = {}
        self._model(artifact.manifest.capacities[-1])

    def _model(self, capacity: int) -> Any:
        """The function for *capacity* slots, loaded when it is first needed."""
        if capacity not in self._models:
            named = {"function_name": capacity_function(capacity)} if len(self.artifact.manifest.capacities) > 1 else {}
            try:
                model = self._tools.models.MLModel(
                    str(self.artifact.model_file), compute_units=self.units, **named
                )  # fmt: skip
            except Exception as error:  # Core ML's errors arrive as RuntimeError
                raise ArtifactError(f"Core ML cannot load {self.artifact.model_file}: {first_line(error)}") from None
            self._models[capacity] = model
        return self._models[capacity]

    def compiled_path(self) -> str:
        """Folder of the compiled model of the largest capacity, which Core ML's plan is read from."""
        return str(self._model(self.artifact.manifest.capacities[-1]).get_compiled_model_path())

    def _run(self, prepared: Prepared) -> Result:
        inputs: dict[str, Any] = feeds(self.artifact.manifest, prepared)
        # A function stands for the slots.
        inputs.pop("slots", None)
        if self._images:
            inputs["lr"] = Pillow.fromarray(to_uint8(prepared.lr))
        out = self._model(prepared.capacity).predict(inputs)
        sr = to_input(np.asarray(out["sr"].convert("RGB"))) if self._images else np.asarray(out["sr"], np.float32)
        return Result(sr, int(np.asarray(out["impure_tokens"]).reshape(-1)[0]), prepared.capacity)
