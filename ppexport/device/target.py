"""Which runtime an artifact is timed in, and how it is opened there."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ppexport.device.artifact import Artifact, Manifest, read_artifact
from ppexport.device.runner import Runner, check_threads
from ppexport.errors import InputError, UnavailableError
from ppexport.plugins import loaded_entries

NAME = re.compile(r"([a-z0-9_]+)(?::([A-Za-z0-9_.]{1,40}))?")


@dataclass(frozen=True)
class Runtime:
    """What runs the artifacts of a backend, as `--runtime` names it; one `RUNTIME` in a `backends/*/run*.py` each."""

    name: str
    backend: str
    """Whose artifacts it runs."""
    packages: tuple[str, ...]
    """Packages whose versions a measurement tells."""
    device: str
    """Where it computes unless another place is named: an execution provider, a device, compute units."""
    open: Callable[[Artifact, Target], Runner]
    """Opens an artifact on the target's device. Raises PpexportError."""
    devices: Callable[[], list[str]]
    """The devices that it has on this machine, the usual one first; none where it is not installed."""
    find_device: Callable[[str], str] = str
    """Its spelling of a device, of which some machine may have one. Raises InputError for what none can have."""
    flavours: tuple[str, ...] = ()
    """The flavours that it runs; () is all."""
    times: str = ""
    """The module with `layer_times(target, artifact, images) -> list[Operation]`, and METHOD for people; "" for a
    runtime that does not tell the time of its operations."""

    def takes(self, manifest: Manifest) -> bool:
        """Whether it runs the artifact of *manifest*."""
        return self.backend == manifest.backend and (not self.flavours or manifest.flavour in self.flavours)


@lru_cache(maxsize=None)
def runtimes() -> dict[str, Runtime]:
    """{name: runtime} of those in `backends/*/run*.py`, and of installed backends of other packages."""
    package, found = "ppexport.backends", []
    for folder in pkgutil.iter_modules(import_module(package).__path__, package + "."):
        if folder.ispkg:
            for module in pkgutil.iter_modules(import_module(folder.name).__path__):
                if module.name.startswith("run"):
                    found.append(getattr(import_module(f"{folder.name}.{module.name}"), "RUNTIME", None))
    for backend in loaded_entries("ppexport.backends"):
        found.extend(backend.runtimes)
    return {runtime.name: runtime for runtime in found if runtime is not None}


@dataclass(frozen=True)
class Target:
    """An artifact in a runtime."""

    artifact: str
    """Path of the artifact folder."""
    runtime: str
    device: str
    threads: int | None = None
    """None lets the runtime choose."""
    trust: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for threads that are none; the machine that measures knows its cores."""
        check_threads(self.threads, here=False)

    @property
    def name(self) -> str:
        """For people: "onnxruntime" or, where it is not the usual device, "onnxruntime:CUDA"."""
        usual = self.device == runtimes()[self.runtime].device
        return self.runtime if usual else f"{self.runtime}:{self.device}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def choose(path: Path, wanted: str | None, threads: int | None, trust: bool) -> list[Target]:
    """The targets that `--runtime` *wanted* means for the artifact *path*: None its own, "all", or a list.

    Raises ArtifactError for a damaged artifact, InputError for a runtime that is not known or runs no such artifact.
    """
    manifest, known = read_artifact(path).manifest, runtimes()
    own = [runtime for runtime in known.values() if runtime.backend == manifest.backend]
    if wanted is None:
        names = [runtime.name for runtime in own[:1]]
    elif wanted == "all":
        # The usual device first: it is what the others are read against.
        names = [
            runtime.name if device == runtime.device else f"{runtime.name}:{device}"
            for runtime in own
            if runtime.takes(manifest)
            for device in runtime.devices()
        ]
    else:
        names = wanted.split(",")
    if not names:
        known_names = ", ".join(runtime.name for runtime in own) or "no runtime known here"
        raise UnavailableError(f"{path} is for backend {manifest.backend}: {known_names} is not installed here")
    targets = []
    for name in names:
        match = NAME.fullmatch(name.strip())
        if match is None or match[1] not in known:
            raise InputError(f"a runtime is one of {', '.join(known)}, or such as onnxruntime:CUDA, not {name!r}")
        runtime = known[match[1]]
        if runtime not in own:
            names_of_own = ", ".join(runtime.name for runtime in own)
            raise InputError(f"{path} is for backend {manifest.backend}, which {match[1]} does not run: {names_of_own}")
        if not runtime.takes(manifest):
            raise InputError(
                f"{path} is of flavour {manifest.flavour}, which {match[1]} does not run: export it with --flavour "
                f"{' or '.join(runtime.flavours)}"
            )
        device = runtime.device if match[2] is None else runtime.find_device(match[2])
        targets.append(Target(str(path.resolve()), match[1], device, threads, trust))
    if len(set(targets)) < len(targets):
        raise InputError("--runtime names the same runtime twice")
    return targets


def open_target(target: Target) -> Runner:
    """The runner of *target*. Raises PpexportError as `open_artifact`, UnavailableError for a missing runtime."""
    check_threads(target.threads)
    return runtimes()[target.runtime].open(read_artifact(Path(target.artifact)), target)


def facts(target: Target, artifact: Artifact) -> dict[str, Any]:
    """What a result says of *target*: the artifact, its hash and size, the runtime. Its version is the machine's."""
    m = artifact.manifest
    folder = [f for f in artifact.path.rglob("*") if f.is_file()]
    # A folder's name may hold bytes that are no text, and a result is text.
    called = os.fsencode(artifact.path.name).decode(errors="backslashreplace")
    return {
        "name": f"{called} in {target.name}",
        "artifact": called,
        "model": m.name,
        "arch": m.arch,
        "scale": m.scale,
        "size": m.size,
        "backend": m.backend,
        "precision": m.precision,
        "flavour": m.flavour,
        "mask": m.mask,
        "capacities": m.capacities,
        "tokens": m.tokens,
        "files": m.files,
        "weights_sha256": m.weights["sha256"],
        "card_sha256": m.card_sha256,
        "bytes": sum(f.stat().st_size for f in folder),
        "made_with": m.versions,
        "runtime": target.runtime,
        "runtime_device": target.device,
        "threads": target.threads,
    }
