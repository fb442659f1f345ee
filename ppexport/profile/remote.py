"""Measures on a device, in a job that outlives the connection: sent, run, collected, removed.

What was measured is here at the end of every call, also of one whose run was killed: the journal is brought back first,
and goes there again where the device has lost it.
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
from ppexport.device.job import IMAGES, JOURNAL
from ppexport.device.journal import Past, read_past
from ppexport.device.launch import journal_of
from ppexport.device.target import Target
from ppexport.errors import EXIT_BAD_INPUT, InputError, PpexportError, UnavailableError
from ppexport.files import sha256_text
from ppexport.profile.query_crops import Crop, save_crops
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
POWER_MODE = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")
"""A power mode's name."""
POLL = Pace(poll=5.0)
"""Every look at a small board takes time of it, so there are few."""
NUMPY = (1, 17)
"""What a measurement needs at least; JetPack 5 has it."""
AFTER_KILL = "the same command continues, and puts power mode and clocks back at its end"


@dataclass(frozen=True)
class Settings:
    """What a device is to be set to."""

    python: str | None = None
    """None is the transport's."""
    power_mode: int | str | None = None
    """Of a Jetson, by its number or by its name in /etc/nvpmodel.conf; None leaves the one that is set."""
    lock_clocks: bool = False
    """Of a Jetson: `jetson_clocks` for the time of the measurement."""
    cores: tuple[int, ...] = ()
    """Cores to run on; none are all."""

    def __post_init__(self) -> None:
        if self.python is not None and not PYTHON_NAME.fullmatch(self.python):
            raise InputError(f"a device's Python is a name, or a path that begins with /, not {self.python!r}")
        if isinstance(self.power_mode, str) and not POWER_MODE.fullmatch(self.power_mode):
            raise InputError(f"a power mode is a number, or a name such as MAXN_SUPER, not {self.power_mode!r}")


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

    @property
    def data(self) -> dict[str, Any]:
        """What the device is sent."""
        return {
            "wanted": self.wanted,
            "targets": [asdict(target) for target in self.targets],
            "power_mode": self.settings.power_mode,
            "lock_clocks": self.settings.lock_clocks,
            "cores": list(self.settings.cores),
        }

    @property
    def digest(self) -> str:
        """What names it: everything but when it was first asked for."""
        wanted = {name: value for name, value in self.wanted.items() if name != "created"}
        return sha256_text(json.dumps({**self.data, "wanted": wanted}, sort_keys=True))


def make_request(
    targets: Sequence[Target], pictures: Sequence[Crop], wanted: dict[str, Any], settings: Settings
) -> Request:
    """The request to measure *wanted*, of one artifact in *targets*. Raises PpexportError for what cannot be sent."""
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
        # Before a device sees it: what runs it there may open the files that it names.
        check_graphs(artifact)
    # The user's trust was settled here; the device has no key.
    there = tuple(replace(target, artifact=".", trust=True) for target in targets)
    return Request(artifact, tuple(pictures), wanted, there, settings)


def holds(folder: Path, request: Request) -> Past | None:
    """What *folder* has of *request* already, as `journal_of`."""
    return journal_of(folder / JOURNAL, "request", request.digest, len(request.targets))


def job_prefix(artifact: Artifact) -> str:
    """What the names of all jobs of an artifact begin with."""
    return f"profile-{next(iter(artifact.manifest.files.values()))[:16]}-"


class ProfileWork(DetachedWork[Profile]):
    """A measurement on a device, whose result is made in a folder here; a subclass says what measures."""

    noun, doing = "measurement", "measuring"
    request: Request
    folder: Path

    def _begin(self, request: Request, folder: Path) -> None:
        """Raises InputError where *folder* holds another measurement."""
        self.request, self.folder = request, folder
        self.journal = folder / JOURNAL
        self.known = holds(folder, request)

    def run(self, timeout: float | None = None) -> Profile:
        """Measure, or continue, or collect; returns the result.

        Raises PpexportError: what measures there may raise, UnavailableError for a device that lacks something,
        DeviceError, among them StillRunning after *timeout* seconds.
        """
        if self.known is not None and self.known.complete and (self.folder / PROFILE).is_file():
            self.telling.notice(f"{self.folder} holds this run already, complete: nothing was measured again")
            return Profile(self.folder / PROFILE)
        return self.follow_up(timeout)

    def _continue(self, state: State, timeout: float | None) -> Profile:
        # The device answers: before that there is nothing to keep.
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.known is None:
            save_crops(self.folder / IMAGES, self.request.pictures)
        return super()._continue(state, timeout)


class RemoteProfile(ProfileWork, AgentWork[Profile]):
    """A measurement by our agent, in the Python of the device."""

    def __init__(
        self, transport: Transport, request: Request, folder: Path, telling: Telling, pace: Pace = POLL
    ) -> None:
        """Raises InputError where *folder* holds another measurement."""
        super().__init__(
            transport, job_prefix(request.artifact), request.digest, request.settings.python, telling, pace
        )  # fmt: skip
        self._begin(request, folder)

    def _failed_before(self) -> None:
        count = self._bring()
        self.telling.notice(
            f"the last measurement on {self.transport.name} was ended after {count} queries, which are kept: it "
            "continues"
        )

    def _start(self) -> None:
        artifact = self.request.artifact
        runtimes = sorted(
            str(artifact.manifest.engine.get("runtime", "tensorrt")) if target.runtime == "tensorrt" else target.runtime
            for target in self.request.targets
        )
        # NumPy, all of ppexport that a device runs, and each of the runtimes.
        found = self._probe(("numpy", " ".join(NAMES), *runtimes))
        problem = problem_of(found, self.python, self.transport.name, runtimes)
        if problem is not None:
            self.job.discard((ARCHIVE,))
            raise UnavailableError(problem)
        # The bytes that were checked and the manifest they were checked against, whatever the folder holds now.
        files: dict[str, Path | bytes] = {name: artifact.read(artifact.path / name) for name in artifact.manifest.files}
        files |= {MANIFEST: artifact.manifest.to_json().encode(), IMAGES: self.folder / IMAGES}
        # What an earlier run measured goes back to a device that has lost it.
        if self.journal.exists() and not self.job.has(JOURNAL):
            files[JOURNAL] = self.journal
        self._start_agent(WORK, self.request.data, files)

    def _bring(self) -> int:
        """Bring the journal here as far as it goes; returns its queries."""
        if not self.job.has(JOURNAL):
            return 0
        with tempfile.TemporaryDirectory(prefix=".received.", dir=self.folder) as name:
            source = Path(name) / JOURNAL
            self.job.get(JOURNAL, source, MAX_JOURNAL)
            # What only adb can ask: the properties of a phone.
            phone = self.transport.describe() if isinstance(self.transport, AdbTransport) else None
            checked = Path(name) / "checked"
            count = receive(source, self.request.wanted, self.request.digest, checked, phone)
            past, kept = read_past(str(checked), len(self.request.targets)), holds(self.folder, self.request)
            had = 0 if kept is None else sum(kept.queries)
            if not count or (count < had and not past.complete):
                # A power cut took what the device had not put on its disk yet: ours goes back there. Of a run that
                # measured nothing not even the versions count, so that another Python may be named.
                self.job.discard((JOURNAL,))
                return had
            checked.replace(self.journal)
            return count

    def _kept(self) -> str:
        return f"the {self._bring()} queries that were measured are kept, the same command continues from there"

    def _explain(self, event: dict[str, Any] | None, output: JobOutput, state: State) -> PpexportError | None:
        name = self.transport.name
        if event is not None:
            made = InputError if state.code == EXIT_BAD_INPUT else UnavailableError
            return made(f"{name}: {str(event['message'])[:500]}")
        if state.kind == "died" and any(self.job.has(left) for left in (BEFORE, CLOCKS)):
            self.telling.notice(f"{name} is still set for the measurement: {AFTER_KILL}")
        return None

    def _collect(self) -> Profile:
        self._bring()
        memory = memory_from(self._outcome(), len(self.request.targets))
        return Profile(write_profile(self.folder, self.journal, memory))


def problem_of(found: Found, python: str, name: str, runtimes: Sequence[str]) -> str | None:
    """Why *python* on the device *name*, which has *found*, cannot measure in *runtimes*; None where it can."""
    if found.version is None:
        return f"{name} has no Python that starts as {python}: name one with --device-python, such as that of a venv"
    numpy = re.match(r"(\d{1,3})\.(\d{1,3})", found.has.get("numpy", ""))
    fault = None
    if not found.old and (numpy is None or tuple(map(int, numpy.groups())) >= NUMPY):
        # What comes first is the reason for what follows.
        own = next((module for module in found.lacks if module.startswith("ppexport")), NAMES[-1])
        fault = next((module for module in ("numpy", own, *runtimes) if module not in found.has), "")
    if fault == "":
        return None
    with_numpy = "" if numpy is None else f" with NumPy {found.has['numpy']}"
    reason = "" if fault is None else found.lacks.get(fault, "no reason given")
    lacking = "" if fault is None else f" and does not import {fault} ({reason})"
    least = [f"{what} {major}.{minor} or newer" for what, (major, minor) in (("Python", PYTHON), ("NumPy", NUMPY))]
    hint = ""
    # TensorRT comes with JetPack.
    if fault is not None and not fault.startswith(("ppexport", "tensorrt")):
        hint = f", or install it on the device (`{python} -m pip install {fault}`)"
    return (
        f"{python} on {name} is Python {found.version}{with_numpy}{lacking}; a measurement needs "
        f"{', '.join([*least, *runtimes])}: name another Python with --device-python{hint}"
    )
