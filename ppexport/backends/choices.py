"""What `ppexport tune` chose: a runtime, a number of threads and options, for one artifact on one machine.

Every choice is a file in `ppexport/tune` of the user's cache folder, named by hashes of the artifact and of the
machine, so that machines may share a home folder. It is read as a file from anywhere: what is in it must be something
that this ppexport offers and that `tune` would have tried. One that is damaged, or of other versions than those that
are installed, for which parity has not been proved, is left alone with a sentence, and the artifact runs as if it had
never been tuned.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ppexport
from ppexport.device.artifact import Artifact
from ppexport.device.cores import usable_processors
from ppexport.device.machine import cpu_name, versions
from ppexport.device.runner import check_threads
from ppexport.device.target import Target, choose, runtimes
from ppexport.errors import InputError, PpexportError, counted
from ppexport.files import cache_folder, read_limited_json, sha256_text, write_text

FORMAT = "ppexport-choice"
VERSION = 1
FOLDER = "tune"
MAX_BYTES = 1 << 16
AUTO = "auto"
"""The runtime that is named where the choice counts."""
AGAIN = "run `ppexport tune` again"


def this_machine() -> dict[str, Any]:
    """What tells this machine from others, and from itself with fewer processors for this process."""
    return {
        "host_name": platform.node(),
        "cpu": cpu_name("/"),
        "architecture": platform.machine(),
        "processors": usable_processors(),
    }


def installed(runtime: str) -> dict[str, str]:
    """The versions of ppexport and of what *runtime* consists of."""
    return {"ppexport": ppexport.__version__, **versions(runtimes()[runtime].packages)}


def artifact_hash(artifact: Artifact) -> str:
    """The hash of all that *artifact* is: of its manifest, which has the hashes of its files."""
    return sha256_text(artifact.manifest.to_json())


def choice_file(artifact: Artifact) -> Path:
    """Where the choice for *artifact* on this machine is kept. Raises InputError for a user without a home folder."""
    machine = sha256_text(json.dumps(this_machine(), sort_keys=True))
    return cache_folder(FOLDER) / f"{artifact_hash(artifact)[:32]}-{machine[:16]}.json"


@dataclass(frozen=True)
class Choice:
    """What was chosen for an artifact."""

    target: Target
    created: str
    """UTC, ISO 8601."""
    measured: Mapping[str, Any]
    """Figures of the measurement, for people; never used."""


def remember(artifact: Artifact, target: Target, measured: Mapping[str, Any]) -> Path:
    """Keep *target* as the choice for *artifact* on this machine, atomically. Raises InputError where it cannot be."""
    path = choice_file(artifact)
    data = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "name": artifact.manifest.name,
        "artifact_sha256": artifact_hash(artifact),
        "machine": this_machine(),
        "versions": installed(target.runtime),
        "runtime": target.runtime,
        "device": target.device,
        "threads": target.threads,
        "options": dict(target.options),
        "measured": dict(measured),
    }
    make_folder(path.parent)
    write_text(path, json.dumps(data, indent=2) + "\n")
    return path


def make_folder(folder: Path) -> None:
    """Make the folder of choices. Raises InputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from None


def recall(artifact: Artifact) -> Choice | None:
    """The choice for *artifact* on this machine, None where there is none.

    Raises InputError for one that cannot be used, with the way out.
    """
    path = choice_file(artifact)
    # Unlike Path.is_file it never raises, for a folder that may not be looked into.
    if not os.path.isfile(path):
        return None
    try:
        data = read_limited_json(path, MAX_BYTES, "a choice of `ppexport tune`")
    except InputError as error:
        raise InputError(f"{error}: {AGAIN}") from None
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path} is no choice that this ppexport reads: {AGAIN}")
    # A file that was copied or renamed.
    if data.get("artifact_sha256") != artifact_hash(artifact) or data.get("machine") != this_machine():
        raise InputError(f"{path} was chosen for another artifact or machine: {AGAIN}")
    try:
        target, created, measured = _target(data, artifact), data["created"], data["measured"]
    except (KeyError, TypeError, AttributeError, ValueError):
        target = created = measured = None
    if target is None or not _is_moment(created) or not isinstance(measured, dict):
        raise InputError(f"{path} does not hold what a choice holds: {AGAIN}")
    if target.device not in runtimes()[target.runtime].devices():
        raise InputError(f"{path} names {target.name}, which this machine does not have now: {AGAIN}")
    now, then = installed(target.runtime), data.get("versions")
    if then != now:
        has = ", ".join(f"{name} {version}" for name, version in now.items())
        raise InputError(f"{path} was chosen with other versions than {has}, which are installed now: {AGAIN}")
    return Choice(target, created, measured)


def _is_moment(created: Any) -> bool:
    """Whether *created* is a date and a time, which people are shown."""
    try:
        return bool(datetime.fromisoformat(created))
    except (TypeError, ValueError):
        return False


def _target(data: dict[str, Any], artifact: Artifact) -> Target | None:
    """What *data* chose; None where it is not what `tune` could have chosen for *artifact*."""
    runtime = runtimes().get(data["runtime"])
    if runtime is None or not runtime.takes(artifact.manifest):
        return None
    try:
        threads = check_threads(data["threads"])
        device = runtime.named_device(data["device"])
        options = tuple(data["options"].items())
        target = Target(str(artifact.path.resolve()), runtime.name, device, threads, options=options)
    except PpexportError:
        return None
    usual = any(value == runtime.options[name][0] for name, value in options)
    varied = device in runtime.threads_on and not (options and (threads == 1 or usual))
    return target if varied or (threads is None and not options) else None


def forget(artifact: Artifact) -> bool:
    """Remove the choice for *artifact* on this machine, also a damaged one; returns whether there was one.

    Raises InputError where it cannot be removed.
    """
    path = choice_file(artifact)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}") from None
    return True


@dataclass(frozen=True)
class Settled:
    """What an artifact is to be opened with, after all that was asked for and remembered."""

    target: Target | None
    """None is the backend's usual runtime."""
    threads: int | None
    why: str
    """ "asked", "tuned" or "default"."""
    note: str = ""
    """Why a choice that is kept is not used; "" where there is none, or it is."""

    def sentence(self, usual: str) -> str:
        """What is used, for people; *usual* is what they call the backend's usual runtime."""
        threads = "" if self.threads is None else counted(self.threads, "thread")
        what = (usual, threads) if self.target is None else (self.target.name, self.target.setting)
        return f"runs in {', '.join(filter(None, what))}{', as `ppexport tune` chose' * (self.why == 'tuned')}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the runtime is null where the backend's usual one is meant."""
        target = self.target
        return {
            "runtime": None if target is None else target.name,
            "threads": self.threads,
            "options": {} if target is None else dict(target.options),
            "why": self.why,
        }


def settle(artifact: Artifact, runtime: str | None, threads: int | None, trust: bool) -> Settled:
    """What to open *artifact* with; the arguments are those of `open_artifact`.

    Raises:
        InputError: *runtime* is not known, does not run this artifact, or names several; threads are no such number.
    """
    threads = check_threads(threads)
    if runtime is not None and runtime != AUTO:
        if runtime == "all" or "," in runtime:
            raise InputError(f"an artifact is opened in one runtime, not in {runtime}: name one")
        (target,) = choose(artifact.path, runtime, threads, trust)
        return Settled(target, threads, "asked")
    if runtime is None or threads is not None:
        return Settled(None, threads, "default" if threads is None else "asked")
    try:
        choice = recall(artifact)
    except InputError as error:
        return Settled(None, None, "default", str(error))
    if choice is None:
        return Settled(None, None, "default")
    return Settled(replace(choice.target, trust=trust), choice.target.threads, "tuned")
