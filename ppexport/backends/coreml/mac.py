"""Runs a Core ML package with Core ML itself, which only a Mac has (see `device`)."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.coreml.device import UNITS, Opened, Planned, check_platform, open_function
from ppexport.backends.describing import capacity_function
from ppexport.errors import InputError


class CoreMLMacRunner(Runner):
    """A Core ML artefact on this Mac, on the compute units *units*."""

    def __init__(self, artifact: Artifact, units: str = "ALL") -> None:
        """Raises UnavailableError anywhere but on a Mac, InputError for unknown units."""
        super().__init__(artifact)
        if units not in UNITS.values():
            raise InputError(f"compute units are {', '.join(UNITS.values())}, not {units}")
        check_platform()
        self._units = units
        self._functions: dict[int, Opened] = {}
        self._function(artifact.manifest.capacities[-1])

    def _function(self, capacity: int) -> Opened:
        """The function for *capacity* slots, opened when it is first needed."""
        if capacity not in self._functions:
            name = capacity_function(capacity) if len(self.artifact.manifest.capacities) > 1 else None
            self._functions[capacity] = open_function(str(self.artifact.model_file), self._units, name)
        return self._functions[capacity]

    def plan(self) -> list[Planned]:
        """Core ML's plan of the largest capacity."""
        return self._function(self.artifact.manifest.capacities[-1]).plan()

    def _run(self, prepared: Prepared) -> Result:
        inputs = feeds(self.artifact.manifest, prepared)
        # A function stands for the slots.
        inputs.pop("slots", None)
        found = self._function(prepared.capacity).predict(inputs)
        return Result(found["sr"], int(found["impure_tokens"].reshape(-1)[0]), prepared.capacity)
