"""Measures on a device, in a job that outlives the connection: sent, run, collected, removed.

What was measured is here at the end of every call, also of one whose run was killed: the journal is brought back first,
and goes there again where the device has lost it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppexport.backends.onnx.run_external import check_graphs
from ppexport.device.artifact import MANIFEST, Artifact, read_artifact, write_manifest
from ppexport.device.jetson import BEFORE, CLOCKS
from ppexport.device.job import ARCHIVE, IMAGES, JOURNAL, OUTCOME, REQUEST
from ppexport.device.journal import Past, read_past
from ppexport.device.launch import journal_of
from ppexport.device.target import Target
from ppexport.errors import EXIT_BAD_INPUT, InputError, PpexportError, UnavailableError
from ppexport.files import sha256_text, write_text
from ppexport.profile.archive import make_archive
from ppexport.profile.crops import Crop, save_crops
from ppexport.profile.python_probe import PROBE, groups_of, problem_of
from ppexport.profile.received import MAX_JOURNAL, outcome_from, receive
from ppexport.profile.result import PROFILE, Profile, write_profile
from ppexport.remote import scripts
from ppexport.remote.adb import AdbTransport
from ppexport.remote.address import DeviceError, DiskFullError, TransferError
from ppexport.remote.job import OUTPUT, Pace, State, remove_jobs
from ppexport.remote.output import JobOutput, parse_object, printable
from ppexport.remote.transport import FILE_NAME, Transport
from ppexport.remote.work import NO_SPACE, DetachedWork, Telling

NOT_THERE = ("coreml",)
"""Runtimes of machines that no transport leads to."""
RESERVED = {IMAGES, JOURNAL, REQUEST, ARCHIVE, OUTCOME, BEFORE, CLOCKS, OUTPUT, MANIFEST, "pid", "starting", "started"}
PYTHON = re.compile(r"(?:/[A-Za-z0-9_./+-]{1,200}|[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})")
POWER_MODE = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")
"""A power mode's name."""
MAX_OUTCOME = 1 << 20
POLL = Pace(poll=5.0)
"""Every look at a small board takes time of it, so there are few."""
PROBE_SECONDS = 120
AFTER_KILL = "the same command goes on, and puts power mode and clocks back at its end"
LEFT = (
    scripts.PRELUDE
    + scripts.STATES
    + r"""
for job in "$root/$1"*; do
    if [ ! -d "$job" ] || alive; then continue; fi
    for name in "$2" "$3"; do
        if [ -f "$job/$name" ]; then printf '%s: %s\n' "$name" "$(head -c 200 "$job/$name" | head -n 1)"; fi
    done
done
"""
)
"""The settings `$2`, `$3` that killed jobs, whose names begin with `$1`, have not put back."""


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
        if self.python is not None and not PYTHON.fullmatch(self.python):
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
    """As the device sees them: its job's folder is the artefact's."""
    settings: Settings

    @property
    def data(self) -> dict[str, Any]:
        """What the device is sent."""
        return {
            "wanted": self.wanted,
            "targets": [target.to_dict() for target in self.targets],
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
    """The request to measure *wanted*, of one artefact in *targets*. Raises PpexportError for what cannot be sent."""
    artifact = read_artifact(Path(targets[0].artifact))
    for target in targets:
        if target.runtime in NOT_THERE:
            raise UnavailableError(f"{target.runtime} is timed on a Mac only: run this command there")
        if target.runtime == "tensorrt":
            from ppexport.backends.tensorrt.run_engine import check_trust

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
    """What the names of all jobs of an artefact begin with."""
    return f"profile-{next(iter(artifact.manifest.files.values()))[:16]}-"


def clean(transport: Transport, artifact: Artifact) -> list[str]:
    """Stop and remove every measurement of *artifact* on the device; returns what was done."""
    prefix = job_prefix(artifact)
    left = printable(transport.checked(LEFT, (prefix, BEFORE, CLOCKS))).splitlines()
    done = remove_jobs(transport, prefix)
    return [*done, *(f"left by a measurement that was killed, put it back by hand: {line}" for line in left)]


class ProfileWork(DetachedWork[Profile]):
    """A measurement on a device, whose result is made in a folder here; a subclass says what measures."""

    noun, doing = "measurement", "measuring"

    def __init__(
        self, transport: Transport, name: str, request: Request, folder: Path, telling: Telling, pace: Pace
    ) -> None:
        """Raises InputError where *folder* holds another measurement."""
        super().__init__(transport, name, telling, pace)
        self.request, self.folder = request, folder
        self.journal = folder / JOURNAL
        self.known = holds(folder, request)

    def run(self, timeout: float | None = None) -> Profile:
        """Measure, or go on, or collect; returns the result.

        Raises PpexportError: what measures there may raise, UnavailableError for a device that lacks something,
        DeviceError, among them StillRunning after *timeout* seconds.
        """
        if self.known is not None and self.known.complete and (self.folder / PROFILE).is_file():
            self.telling.notice(f"{self.folder} holds this run already, complete: nothing was measured again")
            return Profile(self.folder / PROFILE)
        return self.follow_up(timeout)

    def _go_on(self, state: State, timeout: float | None) -> Profile:
        # The device answers: before that there is nothing to keep.
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.known is None:
            save_crops(self.folder / IMAGES, self.request.pictures)
        return super()._go_on(state, timeout)


class RemoteProfile(ProfileWork):
    """A measurement by our agent, in the Python of the device."""

    def __init__(
        self, transport: Transport, request: Request, folder: Path, telling: Telling, pace: Pace = POLL
    ) -> None:
        """Raises InputError where *folder* holds another measurement."""
        self.archive = make_archive()
        name = job_prefix(request.artifact) + sha256_text(request.digest + self.archive.hex())[:12]
        super().__init__(transport, name, request, folder, telling, pace)
        self.python = request.settings.python or transport.python

    def _failed_before(self, state: State) -> None:
        count = self._bring()
        self.telling.notice(
            f"the last measurement on {self.transport.name} was ended after {count} queries, which are kept: it goes on"
        )

    def _start(self) -> None:
        self._probe()
        put, artifact = self.job.put, self.request.artifact
        self.job.discard((OUTCOME,))
        with tempfile.TemporaryDirectory() as name:
            made = Path(name)
            (made / ARCHIVE).write_bytes(self.archive)
            write_text(made / REQUEST, json.dumps(self.request.data) + "\n")
            files = {ARCHIVE: made / ARCHIVE, IMAGES: self.folder / IMAGES}
            # The bytes that were checked and the manifest they were checked against, whatever the folder holds now.
            write_manifest(made, artifact.manifest)
            for n in artifact.manifest.files:
                (made / n).write_bytes(artifact.read(artifact.path / n))
            files |= {n: made / n for n in (MANIFEST, *artifact.manifest.files)}
            # A request that is there is that of an earlier call, with its date.
            if not self.job.has(REQUEST):
                files[REQUEST] = made / REQUEST
            # What an earlier run measured goes back to a device that has lost it.
            if self.journal.exists() and not self.job.has(JOURNAL):
                files[JOURNAL] = self.journal
            for name, file in files.items():
                self.telling.stage(f"sending {name}")
                put(file, name)
        self._run([self.python, "-u", ARCHIVE])

    def _probe(self) -> None:
        """Raise UnavailableError where the device's Python cannot import the modules that a measurement imports."""
        name, engine = self.transport.name, self.request.artifact.manifest.engine
        runtimes = {
            str(engine.get("runtime", "tensorrt")) if target.runtime == "tensorrt" else target.runtime
            for target in self.request.targets
        }
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / ARCHIVE).write_bytes(self.archive)
            self.job.put(Path(place) / ARCHIVE, ARCHIVE)
        self.telling.stage(f"looking for Python on {name}")
        arguments = (self.job.folder, ARCHIVE, self.python, *groups_of(sorted(runtimes)))
        said = self.transport.checked(PROBE, arguments, PROBE_SECONDS)
        problem = problem_of(printable(said), self.python, name, sorted(runtimes))
        if problem is not None:
            self.job.discard((ARCHIVE,))
            raise UnavailableError(problem)

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

    def _failure(self, output: JobOutput, state: State) -> PpexportError:
        name = self.transport.name
        kept = f"the {self._bring()} queries that were measured are kept, the same command goes on from there"
        if output.failure is not None:
            said = str(output.failure["message"])[:500]
            if NO_SPACE in said:
                return DiskFullError(f"{self._full()}; {kept}")
            made = InputError if state.code == EXIT_BAD_INPUT else UnavailableError
            return made(f"{name}: {said}; {kept}")
        if any(NO_SPACE in line for line in output.tail) or self._looks_full():
            return DiskFullError(f"{self._full()}; {kept}")
        if state.kind == "died":
            if any(self.job.has(left) for left in (BEFORE, CLOCKS)):
                self.telling.notice(f"{name} is still set for the measurement: {AFTER_KILL}")
            return DeviceError(
                f"the measurement on {name} was ended from outside: {name} was restarted, or ran out of memory; {kept}"
            )
        said = output.tail[-1] if output.tail else "it gave no reason"
        return DeviceError(f"the measurement on {name} {state.ending}: {said[:500]}; {kept}")

    def _finish(self) -> Profile:
        self.telling.stage("collecting")
        self._bring()
        with tempfile.TemporaryDirectory(prefix=".received.", dir=self.folder) as name:
            outcome = Path(name) / OUTCOME
            self.job.get(OUTCOME, outcome, MAX_OUTCOME)
            data = parse_object(outcome.read_bytes())
        if data is None:
            raise TransferError(f"{OUTCOME} from {self.transport.name} is not a JSON object")
        memory = outcome_from(data, len(self.request.targets))
        result = Profile(write_profile(self.folder, self.journal, memory))
        self._remove()
        return result
