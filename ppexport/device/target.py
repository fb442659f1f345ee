"""The runtimes, and an artifact in one of them: what can be opened and timed."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Mapping

from ppexport.device.artifact import Artifact, Manifest, read_artifact
from ppexport.device.runner import Runner, check_threads
from ppexport.errors import InputError, UnavailableError, counted
from ppexport.plugins import loaded_entries

NAME = re.compile(r"([a-z0-9_]+)(?::([A-Za-z0-9_.]{1,40}))?")


@dataclass(frozen=True)
class Runtime:
    """What runs the artifacts of a backend, as `--runtime` names it; one `RUNTIME` in a `backends/*/run*.py` each."""

    name: str
    backend: str
    """Whose artifacts it runs."""
    packages: tuple[str, ...]
    """Packages whose versions a measurement records; the first is that of the module which a device must have."""
    device: str
    """Where it computes unless another place is named: an execution provider, a device, compute units."""
    open: Callable[[Artifact, Target], Runner]
    """Opens an artifact on the target's device. Raises PpexportError."""
    devices: Callable[[], list[str]]
    """The devices that it has on this machine, the default one first; none where it is not installed."""
    find_device: Callable[[str], str] | None = None
    """Returns its spelling of a device. Raises InputError for a device that no machine can have. None where there is no
    other device than `device`."""
    flavours: tuple[str, ...] = ()
    """The flavours that it runs; () is all."""
    program: str = ""
    """The module that knows its benchmark program, which measures on devices without Python: NEEDS, (module, extra),
    INSIDE, for people, the shell lines MEASURE, `sent(artifact, images) -> {file: bytes}` and `read(result, output) ->
    Measured`; "" where there is none."""
    times: str = ""
    """The module with `layer_times(target, artifact, images) -> list[Operation]`, and METHOD for people; "" for a
    runtime that does not report the time of its operations."""
    place: str = ""
    """The only value of `profile --on` with which it is timed; "" where this machine and devices run it."""
    threads_on: tuple[str, ...] = ()
    """The devices whose speed depends on the number of threads, which `ppexport tune` varies there."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{what several threads can be set to there: the values that `ppexport tune` tries, the default first}."""

    @property
    def module(self) -> str:
        """What a device imports to run it."""
        return self.packages[0].replace("-", "_")

    def named_device(self, text: str) -> str:
        """Its spelling of the device that a user calls *text*. Raises InputError for one that it cannot have."""
        if self.find_device is not None:
            return self.find_device(text)
        if text.lower() != self.device.lower():
            raise InputError(f"{self.name} computes on {self.device} alone: {self.name}:{text} cannot be chosen")
        return self.device

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
    """None is one for each physical core."""
    trust: bool = False
    options: tuple[tuple[str, str], ...] = ()
    """(name, value) of the runtime's `options`; those that are left out have their default."""

    def __post_init__(self) -> None:
        """Raises InputError for a value that the runtime does not declare, and for an invalid number of threads.

        Only the machine that measures knows its cores.
        """
        check_threads(self.threads, here=False)
        # JSON has lists, which cannot be compared by their hash.
        object.__setattr__(self, "options", tuple((name, value) for name, value in self.options))
        for name, value in self.options:
            if value not in runtimes()[self.runtime].options.get(name, ()):
                raise InputError(f"{self.runtime} has no option {name}={value} that ppexport sets")

    @property
    def name(self) -> str:
        """For people: "onnxruntime" or, on another device than the default one, "onnxruntime:CUDA"."""
        usual = self.device == runtimes()[self.runtime].device
        return self.runtime if usual else f"{self.runtime}:{self.device}"

    @property
    def setting(self) -> str:
        """What it is opened with, for people, such as "1 thread"; "" where all is left to the runtime."""
        threads = [] if self.threads is None else [counted(self.threads, "thread")]
        return ", ".join([*threads, *(f"{name.rpartition('.')[2]}={value}" for name, value in self.options)])


def choose(path: Path, wanted: str | None, threads: int | None, trust: bool) -> list[Target]:
    """The targets that the option `--runtime` names.

    Args:
        path: The artifact.
        wanted: None for the backend's first runtime, "all" for every one that is installed, or a list of names,
            separated by commas, such as "onnxruntime:CUDA".
        threads: For every target; None is one for each physical core.
        trust: Whether an engine of another machine may be loaded.

    Raises:
        ArtifactError: The artifact is damaged.
        InputError: A runtime is not known or does not run this artifact.
        UnavailableError: None is installed.
    """
    manifest, known = read_artifact(path).manifest, runtimes()
    own = {name: runtime for name, runtime in known.items() if runtime.backend == manifest.backend}
    if wanted is None:
        names = list(own)[:1]
    elif wanted == "all":
        # The default device first: the others are compared with it.
        names = [
            name if device == runtime.device else f"{name}:{device}"
            for name, runtime in own.items()
            if runtime.takes(manifest)
            for device in runtime.devices()
        ]
    else:
        names = wanted.split(",")
    if not names:
        why = f"{', '.join(own)} is not installed here" if own else "no runtime is registered for it"
        raise UnavailableError(f"{path} is for backend {manifest.backend}: {why}")
    targets = []
    for name in names:
        match = NAME.fullmatch(name.strip())
        if match is None or match[1] not in known:
            raise InputError(f"a runtime is one of {', '.join(known)}, or such as onnxruntime:CUDA, not {name!r}")
        runtime = known[match[1]]
        if match[1] not in own:
            raise InputError(
                f"{path} is for backend {manifest.backend}, which {match[1]} does not run: {', '.join(own)}"
            )
        if not runtime.takes(manifest):
            raise InputError(
                f"{path} is of flavour {manifest.flavour}, which {match[1]} does not run: export it with --flavour "
                f"{' or '.join(runtime.flavours)}"
            )
        device = runtime.device if match[2] is None else runtime.named_device(match[2])
        targets.append(Target(str(path.resolve()), match[1], device, threads, trust))
    if len(set(targets)) < len(targets):
        raise InputError("--runtime names the same runtime twice")
    return targets


def open_target(target: Target) -> Runner:
    """The runner of *target*. Raises PpexportError as `open_artifact`, UnavailableError for a missing runtime."""
    return runtimes()[target.runtime].open(read_artifact(Path(target.artifact)), target)


def facts(target: Target, artifact: Artifact) -> dict[str, Any]:
    """What a result says of *target*: the artifact, its hashes and size, and the runtime but for its version."""
    m = artifact.manifest
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
        "bytes": sum(f.stat().st_size for f in artifact.path.rglob("*") if f.is_file()),
        "made_with": m.versions,
        "runtime": target.runtime,
        "runtime_device": target.device,
        "threads": target.threads,
        **({"options": dict(target.options)} if target.options else {}),
    }
