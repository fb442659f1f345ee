"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from ppexport.exporting import installed_versions

PACKAGES = ("torch", "onnxruntime", "openvino", "numpy", "onnx")


def cpu_model() -> str:
    """The processor's name, and its number where a hypervisor hides the name."""
    cpuinfo = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in found and "model" in found:
        name += f" (family {found['cpu family']}, model {found['model']})"
    return name


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
    return Machine(cpu_model(), os.cpu_count() or 1, platform.system(), versions, moment)
