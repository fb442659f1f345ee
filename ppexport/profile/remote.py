"""Measures on a device, in a job that outlives the connection: sent, run, collected, removed.

What was measured is here at the end of every call, also of one whose run was killed: the journal is brought back first,
and returns to a device that has lost it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ppexport.backends.onnx.run_external import check_graphs
from ppexport.device.agent import ARCHIVE, OUTCOME, REQUEST
from ppexport.device.artifact import MANIFEST, Artifact, read_artifact
from ppexport.device.jetson import BEFORE, CLOCKS
from ppexport.device.job import IMAGES, JOURNAL, wanted_of
from ppexport.device.journal import Past
from ppexport.device.launch import journal_of
from ppexport.device.measure import Plan
from ppexport.device.target import Target, runtimes
from ppexport.errors import EXIT_BAD_INPUT, InputError, PpexportError, UnavailableError
from ppexport.files import sha256_text
from ppexport.profile.latency_run import Crop, check_place, crops_for, save_crops
from ppexport.profile.received import MAX_JOURNAL, memory_from, receive
from ppexport.profile.result import PROFILE, Profile, write_profile
from ppexport.remote.adb import AdbTransport
from ppexport.remote.archive import NAMES, PYTHON, AgentWork, Found
from ppexport.remote.detached import OUTPUT, DetachedWork, Pace, State, Telling
from ppexport.remote.output import JobOutput
from ppexport.remote.transport import FILE_NAME, Transport

NOT_THERE = ("coreml",)
"""Runtimes of machines that no transport leads to."""
RESERVED = {IMAGES, JOURNAL, REQUEST, ARCHIVE, OUTCOME, BEFORE, CLOCKS, OUTPUT, MANIFEST, "pid", "starting", "started"}
WORK = "ppexport.device.launch:run_request"
PYTHON_NAME = re.compile(r"(?:/[A-Za-z0-9_./+-]{1,200}|[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})")
POWER_MODE = re.compile(r"[0-9]{1,3}|(?!\d+$)[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")
MAX_CORES = 64
POLL = Pace(poll=5.0)
"""Every look at a small board takes time of it, so there are few."""
NUMPY = (1, 17)
"""What a measurement needs at least; JetPack 5 has it."""


def parse_cores(text: str | None) -> tuple[int, ...]:
    """The cores that "4-7" or "0,2,6-7" names, ascending; none for None. Raises InputError."""
    cores: set[int] = set()
    for part in () if text is None else text.split(","):
        match = re.fullmatch(r"([0-9]{1,2})(?:-([0-9]{1,2}))?", part.strip())
        if match is None:
            raise InputError(f"cores are such as 4-7 or 0,2,6-7, not {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= MAX_CORES:
            raise InputError(f"cores count up from 0 to {MAX_CORES - 1}, which {part!r} does not")
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))


@dataclass(frozen=True)
class Settings:
    """What a device is to be set to. Raises InputError for a name that cannot be one."""

    python: str | None = None
    """None is the transport's."""
    power_mode: str | None = None
    """Jetson only: a number, or a name of /etc/nvpmodel.conf; None leaves the mode that is set."""
    lock_clocks: bool = False
    """Jetson only: `jetson_clocks` for the time of the measurement."""
    cores: tuple[int, ...] = ()
    """Cores to run on; none are all."""

    def __post_init__(self) -> None:
        if self.python is not None and not PYTHON_NAME.fullmatch(self.python):
            raise InputError(f"a device's Python is a name, or a path that begins with /, not {self.python!r}")
        if self.power_mode is not None and not POWER_MODE.fullmatch(self.power_mode):
            raise InputError(f"a power mode is a number, or a name such as MAXN_SUPER, not {self.power_mode!r}")

    @property
    def mode(self) -> int | str | None:
        """The power mode, as an int where it is a number."""
        return int(self.power_mode) if self.power_mode is not None and self.power_mode.isdecimal() else self.power_mode


@dataclass(frozen=True)
class Request:
    """One measurement on one device."""

    artifact: Artifact
    pictures: tuple[Crop, ...]
    wanted: dict[str, Any]
    """See `ppexport.device.job.wanted_of`."""
    targets: tuple[Target, ...]
    """As the device sees them: its job's folder is the artifact's."""
    settings: Settings
    folder: Path
    """Of the result."""

    @property
    def journal(self) -> Path:
        """What was measured, as far as it is here."""
        return self.folder / JOURNAL

    def past(self) -> Past | None:
        """What the folder holds of it already. Raises InputError where the folder holds another measurement."""
        return journal_of(self.journal, "request", self.digest, len(self.targets))

    def result(self) -> Profile | None:
        """The result, where the folder holds all of it already. Raises InputError as `past`."""
        past, path = self.past(), self.folder / PROFILE
        return Profile(path) if past is not None and past.complete and path.is_file() else None

    @property
    def data(self) -> dict[str, Any]:
        """What the device is sent."""
        return {
            "wanted": self.wanted,
            "targets": [asdict(target) for target in self.targets],
            "power_mode": self.settings.mode,
            "lock_clocks": self.settings.lock_clocks,
            "cores": list(self.settings.cores),
        }

    @property
    def digest(self) -> str:
        """What names it: everything but when it was first asked for."""
        wanted = {name: value for name, value in self.wanted.items() if name != "created"}
        return sha256_text(json.dumps({**self.data, "wanted": wanted}, sort_keys=True))


def prepare_remote(
    targets: Sequence[Target], plan: Plan, folder: Path, images: Path | None, address: str, settings: Settings
) -> Request:
    """The request to measure one artifact on the device *address*, for a run in *folder*, which is made later.

    *targets* are the artifact in each runtime, *images* is as in `crops_for`. Raises PpexportError for what cannot be
    measured or sent.
    """
    check_place(targets, address)
    crops = crops_for(targets, images, folder)
    wanted = wanted_of(targets, crops, plan, address)
    artifact = read_artifact(Path(targets[0].artifact))
    for target in targets:
        if target.runtime in NOT_THERE:
            raise UnavailableError(f"{target.runtime} is timed on a Mac only: run this command there")
        if target.runtime == "tensorrt":
            from ppexport.backends.tensorrt.run_facts import check_trust

            check_trust(artifact.path.name, artifact.manifest, target.trust)
    for name in artifact.manifest.files:
        if not FILE_NAME.fullmatch(name) or name in RESERVED or not (artifact.path / name).is_file():
            raise InputError(
                f"{artifact.path}: {name!r} cannot be sent to a device, where plain files have plain names"
            )
    if artifact.manifest.backend == "onnx":
        # Before a device sees it: the runtime on the device may open the files that a graph names.
        check_graphs(artifact)
    # The user's trust was settled here; the device has no key.
    on_device = tuple(replace(target, artifact=".", trust=True) for target in targets)
    return Request(artifact, tuple(crops), wanted, on_device, settings, folder)


def job_prefix(artifact: Artifact) -> str:
    """What the names of all jobs of an artifact begin with."""
    return f"profile-{next(iter(artifact.manifest.files.values()))[:16]}-"


class ProfileWork(DetachedWork[Profile]):
    """A measurement on a device, whose result is made in a folder here; a subclass says what measures."""

    noun, doing = "measurement", "measuring"
    request: Request

    def run(self, timeout: float | None = None) -> Profile:
        """Measure, or continue, or collect; returns the result.

        Raises PpexportError: InputError where the folder holds another measurement, what the measurement on the device
        may raise, UnavailableError for a device that lacks something, DeviceError, among them StillRunning after
        *timeout* seconds.
        """
        kept = self.request.result()
        if kept is not None:
            self.telling.notice(f"{kept.path.parent} holds this run already, complete: nothing was measured again")
            return kept
        return self.follow_up(timeout)

    def _continue(self, state: State, timeout: float | None) -> Profile:
        # The device answers: before that there is nothing to keep.
        self.request.folder.mkdir(parents=True, exist_ok=True)
        if self.request.past() is None:
            save_crops(self.request.folder / IMAGES, self.request.pictures)
        return super()._continue(state, timeout)


class RemoteProfile(ProfileWork, AgentWork[Profile]):
    """A measurement by our agent, in the Python of the device."""

    def __init__(self, transport: Transport, request: Request, telling: Telling, pace: Pace = POLL) -> None:
        self.request = request
        name, python = job_prefix(request.artifact), request.settings.python
        super().__init__(transport, name, request.digest, python, telling, pace)

    def _failed_before(self) -> None:
        self.telling.notice(
            f"the last measurement on {self.transport.name} was ended after {self._bring()} queries, which are kept: "
            "it continues"
        )

    def _start(self) -> None:
        artifact = self.request.artifact
        modules = sorted(
            str(artifact.manifest.engine.get("runtime", "tensorrt"))
            if target.runtime == "tensorrt"
            else runtimes()[target.runtime].module
            for target in self.request.targets
        )
        # NumPy, all of ppexport that a device runs, and each of the runtimes.
        found = self._probe(("numpy", " ".join(NAMES), *modules))
        problem = problem_of(found, self.python, self.transport.name, modules)
        if problem is not None:
            self.job.discard((ARCHIVE,))
            raise UnavailableError(problem)
        # The bytes that were checked and the manifest they were checked against, whatever the folder holds now.
        files: dict[str, Path | bytes] = {name: artifact.read(artifact.path / name) for name in artifact.manifest.files}
        files |= {MANIFEST: artifact.manifest.to_json().encode(), IMAGES: self.request.folder / IMAGES}
        # What an earlier run measured returns to a device that has lost it.
        if self.request.journal.exists() and not self.job.has(JOURNAL):
            files[JOURNAL] = self.request.journal
        self._start_agent(WORK, self.request.data, files)

    def _bring(self) -> int:
        """Bring the journal here as far as it goes; returns its queries."""
        if not self.job.has(JOURNAL):
            return 0
        with tempfile.TemporaryDirectory(prefix=".received.", dir=self.request.folder) as name:
            source, checked = Path(name) / JOURNAL, Path(name) / "checked"
            self.job.get(JOURNAL, source, MAX_JOURNAL)
            # What only adb can ask: the properties of a phone.
            phone = self.transport.describe() if isinstance(self.transport, AdbTransport) else None
            past, kept = receive(source, self.request.wanted, self.request.digest, checked, phone), self.request.past()
            count, had = sum(past.queries), 0 if kept is None else sum(kept.queries)
            if not count or (count < had and not past.complete):
                # A power cut took what the device had not put on its disk yet: ours returns to it. Of a run that
                # measured nothing not even the versions count, so that another Python may be named.
                self.job.discard((JOURNAL,))
                return had
            checked.replace(self.request.journal)
            return count

    def _kept(self) -> str:
        return f"the {self._bring()} queries that were measured are kept, the same command continues from there"

    def _explain(self, event: dict[str, Any] | None, output: JobOutput, state: State) -> PpexportError | None:
        name = self.transport.name
        if event is not None:
            made = InputError if state.code == EXIT_BAD_INPUT else UnavailableError
            return made(f"{name}: {str(event['message'])[:500]}")
        if state.kind == "died" and any(self.job.has(left) for left in (BEFORE, CLOCKS)):
            self.telling.notice(
                f"{name} is still set for the measurement: the same command continues, and restores power mode and "
                "clocks at its end"
            )
        return None

    def _collect(self) -> Profile:
        self._bring()
        memory = memory_from(self._outcome(), len(self.request.targets))
        return Profile(write_profile(self.request.folder, self.request.journal, memory))


def problem_of(found: Found, python: str, name: str, modules: Sequence[str]) -> str | None:
    """Why *python* on the device *name*, which has *found*, cannot measure with *modules*; None where it can."""
    if found.version is None:
        return f"{name} has no Python that starts as {python}: name one with --device-python, such as that of a venv"
    numpy = re.match(r"(\d{1,3})\.(\d{1,3})", found.has.get("numpy", ""))
    lacking = hint = ""
    if not found.old and (numpy is None or tuple(map(int, numpy.groups())) >= NUMPY):
        # What comes first is the reason for what follows.
        own = next((module for module in found.lacks if module.startswith("ppexport")), NAMES[-1])
        fault = next((module for module in ("numpy", own, *modules) if module not in found.has), None)
        if fault is None:
            return None
        lacking = f" and does not import {fault} ({found.lacks.get(fault, 'no reason given')})"
        # TensorRT comes with JetPack.
        if not fault.startswith(("ppexport", "tensorrt")):
            hint = f", or install it on the device (`{python} -m pip install {fault}`)"
    with_numpy = "" if numpy is None else f" with NumPy {found.has['numpy']}"
    least = [f"{what} {major}.{minor} or newer" for what, (major, minor) in (("Python", PYTHON), ("NumPy", NUMPY))]
    return (
        f"{python} on {name} is Python {found.version}{with_numpy}{lacking}; a measurement needs "
        f"{', '.join([*least, *modules])}: name another Python with --device-python{hint}"
    )
