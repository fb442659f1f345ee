"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from ppexport.device.machine import cpu_name
from ppexport.exporting import installed_versions

PACKAGES = ("torch", "onnxruntime", "openvino", "numpy", "onnx")


@dataclass(frozen=True)
class Machine:
    """Processor, cores, system and versions."""

    cpu: str
    cores: int
    system: str
    versions: dict[str, str]
    date: str
    """UTC, ISO 8601."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def sentence(self, threads: int) -> str:
        """All of it for people."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} cores, {threads} threads; {self.system}; {versions}; {self.date[:10]}"


def this_machine() -> Machine:
    """Where this runs, and when."""
    versions = {"Python": platform.python_version(), **installed_versions(PACKAGES)}
    moment = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Machine(cpu_name("/"), os.cpu_count() or 1, platform.system(), versions, moment)
