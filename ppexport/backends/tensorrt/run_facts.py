"""What a TensorRT engine depends on: the field `engine` of its artefact's manifest, and this machine beside it.

    runtime             "tensorrt" or "tensorrt_rtx", the Python module
    tensorrt            its version; an engine runs on this one alone, as far as its parts are known
    gpu                 the GPU's name; null for an engine of TensorRT-RTX that was built without one
    compute_capability  e.g. "8.7", null as above
    driver              newest CUDA version of the driver that built it, e.g. "12.6"; an older one is refused
    source              {"name": artefact folder, "onnx_sha256"}: the ONNX artefact it was built from
    tf32                whether products of fp32 may run in TF32; false for parity
    workspace_mb, optimization_level, seconds, activation_bytes
                        how it was built, and what that took
    profiles            capacities, in the order of the engine's optimisation profiles; one for a fixed capacity
    attention_fused     whether the layer list shows attention in one kernel; null without a list
    layers              number of layers, null without a list; the list is in `layers.json`
    signature           HMAC-SHA256 by the user's key, see `trust`

Standard library only: this file runs on devices.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ppexport.device.artifact import Manifest
from ppexport.errors import ArtifactError

RUNTIMES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Machine:
    """What must be as it was when the engine was built."""

    runtime: str
    tensorrt: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None


def machine_of(manifest: Manifest) -> Machine:
    """The machine that built the engine of *manifest*. Raises ArtifactError for a manifest that does not say."""
    found = {field.name: manifest.engine.get(field.name) for field in fields(Machine)}
    if found["runtime"] not in RUNTIMES or not isinstance(found["tensorrt"], str):
        raise ArtifactError("the manifest does not say which TensorRT built the engine: build it again")
    for name in ("gpu", "compute_capability", "driver"):
        if not isinstance(found[name], (str, type(None))):
            raise ArtifactError(f"the manifest's engine.{name} cannot be {found[name]!r}: build the engine again")
    return Machine(**found)  # type: ignore[arg-type]


def rebuild_command(name: str, engine: dict[str, Any]) -> str:
    """The command that makes the engine artefact *name* again, on the machine where it is to run."""
    source = engine.get("source")
    known = source.get("name") if isinstance(source, dict) else None
    return f"ppexport build {known or 'ONNX_ARTEFACT'} -o {name}"


def _numbers(version: str) -> tuple[int, ...]:
    """The parts of a version that are numbers."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _same_version(a: str, b: str) -> bool:
    """Whether two versions agree as far as both go: trtexec prints three parts, Python modules up to four."""
    pairs = list(zip(_numbers(a), _numbers(b)))
    return len(pairs) > 1 and all(x == y for x, y in pairs)


def differences(built: Machine, here: Machine) -> list[str]:
    """What keeps an engine that *built* made from running *here*, for people; empty where nothing does."""
    found = []
    if built.runtime != here.runtime or not _same_version(built.tensorrt, here.tensorrt):
        found.append(f"{built.runtime} {built.tensorrt}, here is {here.tensorrt}")
    # An engine of TensorRT-RTX that was built without a GPU is for all that it knows.
    if built.gpu is not None and built.gpu != here.gpu:
        found.append(f"GPU {built.gpu}, here is {here.gpu}")
    if built.compute_capability is not None and built.compute_capability != here.compute_capability:
        found.append(f"compute capability {built.compute_capability}, here is {here.compute_capability}")
    if built.driver and here.driver and _numbers(here.driver) < _numbers(built.driver):
        found.append(f"a driver for CUDA {built.driver}, here is one for {here.driver}")
    return found


def check_machine(name: str, manifest: Manifest, here: Machine) -> None:
    """Raise ArtifactError, with the command that rebuilds it, where the engine artefact *name* is for another machine.

    Called before the engine is loaded: TensorRT may crash on a foreign one.
    """
    foreign = differences(machine_of(manifest), here)
    if foreign:
        raise ArtifactError(
            f"{name} was built for another machine ({'; '.join(foreign)}): build it here with "
            f"`{rebuild_command(name, manifest.engine)}`"
        )
