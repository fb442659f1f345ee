"""Jobs: programs in a folder on a device, which outlive the connection and are collected when there is one again.

The same call again continues a piece of work, such as a build: it waits for a job that runs, collects one that is done,
and starts one that failed anew. The job's folder is named after the request, so that the same call finds it; it is
removed once everything is on this machine.
"""

from __future__ import annotations

import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ppexport.errors import PpexportError, printable
from ppexport.remote import scripts
from ppexport.remote.address import ConnectionLost, DeviceError, DiskFullError
from ppexport.remote.output import JobOutput
from ppexport.remote.transport import Transport, check_job_name

T = TypeVar("T")
STATE = re.compile(r"(absent|new|running|died)|exited ([0-9]{1,3})")
OUTPUT = "output"
"""The file of a job's output in its folder."""
KILLED = 137
"""Exit code of a program that was ended by SIGKILL."""
FIRST_POLL = 0.25
"""Seconds after which a job that was just started is polled; twice as many after every further poll."""
CHUNK = 1 << 18
"""Bytes of output that are fetched at a time."""
FULL_KB = 1024
"""With less room than this a job that ended without a word is taken for one whose disk was full."""
NO_SPACE = "No space left on device"


class State(NamedTuple):
    """What a job is doing."""

    kind: str
    """"absent": no folder; "new": a folder, never started; "running"; "exited", with a code; "died": killed, or the
    machine was restarted."""
    code: int | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it ended as it should."""
        return self == ("exited", 0)

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise."""
        return self.kind in ("died", "exited") and not self.succeeded

    @property
    def killed(self) -> bool:
        """Whether its program was killed, which a machine without memory does."""
        return self.code == KILLED

    @property
    def ending(self) -> str:
        """How a job with an exit code ended, for people."""
        if self.killed:
            return f"was killed (exit code {KILLED}), most likely because the memory ran out"
        return f"ended with exit code {self.code}"


@dataclass(frozen=True)
class Pace:
    """How often to ask, in seconds."""

    poll: float = 1.0
    reconnect: tuple[float, ...] = (1, 2, 5, 10, 20, 40)
    """Waits before a lost connection is tried again; after the last one it is given up."""


class StillRunning(ConnectionLost):
    """The job did not end in the time that the caller would wait."""


class Job:
    """The job folder *folder* of a device. Every step can be repeated, and is when the connection was lost."""

    def __init__(
        self, transport: Transport, folder: str, pace: Pace | None = None, notice: Callable[[str], object] = print
    ) -> None:
        check_job_name(folder)
        self.transport = transport
        self.folder = folder
        self.pace = pace or Pace()
        self.notice = notice

    def _again(self, step: Callable[..., T], *arguments: Any) -> T:
        """Call *step*, and again while the connection is lost. Raises ConnectionLost in the end."""
        for wait in self.pace.reconnect:
            try:
                return step(*arguments)
            except ConnectionLost as error:
                self.notice(f"{error}; trying again in {wait:g} s")
                time.sleep(wait)
        return step(*arguments)

    def _poll(self, offset: int) -> tuple[State, bytes]:
        """The state, and output from byte *offset* on."""
        reply = self.transport.checked(scripts.POLL, (self.folder, str(offset), str(CHUNK)))
        line, _, output = reply.partition(b"\n")
        match = STATE.fullmatch(line.decode("ascii", "replace"))
        if match is None:
            raise self.transport.misunderstood("no state of the job")
        return (State("exited", int(match[2])) if match[2] else State(match[1])), output

    def state(self) -> State:
        """What the job is doing."""
        # Not tried again: a first connection that fails is a mistake of the address more often than a lost line.
        return self._poll(0)[0]

    def put(self, source: Path, name: str) -> None:
        """Copy a file into the folder."""
        self._again(self.transport.put, source, self.folder, name)

    def start(self, command: Sequence[str]) -> None:
        """Run *command* in the folder, detached; a job that runs already continues."""
        self._again(self.transport.checked, scripts.START, (self.folder, *command))

    def follow(self, sink: Callable[[bytes], object], timeout: float | None = None) -> State:
        """Give all output to *sink* until the job has ended; returns its last state.

        Raises StillRunning after *timeout* seconds, ConnectionLost where the device does not come back.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        offset, pause = 0, FIRST_POLL
        while True:
            state, output = self._again(self._poll, offset)
            sink(output)
            offset += len(output)
            if len(output) < CHUNK and state.kind != "running":
                return state
            if deadline is not None and time.monotonic() > deadline:
                raise StillRunning(f"the job on {self.transport.name} continues after {timeout:g} s")
            if len(output) < CHUNK:
                # Short at first, so that the failure of a job that fails at once is shown at once.
                time.sleep(min(pause, self.pace.poll))
                pause *= 2

    def discard(self, names: Sequence[str]) -> None:
        """Remove files of an earlier run from the folder."""
        self._again(self.transport.checked, scripts.DISCARD, (self.folder, *names))

    def has(self, name: str) -> bool:
        """Whether the folder has a plain file *name*."""
        return self._again(self.transport.stat, self.folder, name) is not None

    def get(self, name: str, target: Path, limit: int) -> None:
        """Copy a file of at most *limit* bytes from the folder to *target*."""
        self._again(self.transport.get, self.folder, name, target, limit)

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file of at most *limit* bytes in the folder."""
        with tempfile.TemporaryDirectory() as place:
            self.get(name, Path(place, name), limit)
            return Path(place, name).read_bytes()

    def remove(self) -> None:
        """Remove the folder; a job that still runs is stopped."""
        self._again(remove_jobs, self.transport, self.folder)


def remove_jobs(transport: Transport, prefix: str) -> list[str]:
    """Stop and remove all jobs whose names begin with *prefix*; returns what was done and what is left, for people."""
    check_job_name(prefix)
    return printable(transport.checked(scripts.REMOVE, (prefix,))).splitlines()


@dataclass(frozen=True)
class Telling:
    """Where messages for people go."""

    notice: Callable[[str], object]
    """Receives sentences and lines of logs."""
    stage: Callable[[str], object]
    """Receives what is being done now, many times a second. It may end the waiting by an exception."""


class DetachedWork(ABC, Generic[T]):
    """One piece of work on one device; a subclass says how it is started, and what it leaves."""

    noun: str
    """"build": what a sentence calls it."""
    doing: str
    """"building"."""
    failed: type[PpexportError] = DeviceError
    """The error of a job that ended badly for no reason that is known."""

    def __init__(self, transport: Transport, name: str, telling: Telling, pace: Pace | None = None) -> None:
        """*name* is that of the job folder."""
        self.transport = transport
        self.telling = telling
        self.job = Job(transport, name, pace, telling.notice)
        self.running = False
        """Whether a job continues on the device when this program ends now."""

    def follow_up(self, timeout: float | None = None) -> T:
        """Do the work, or continue with it, and return what it made.

        Raises what a subclass raises, and DeviceError, among them StillRunning after *timeout* seconds.
        """
        self.telling.stage(f"asking {self.transport.name}")
        state = self.job.state()
        try:
            return self._continue(state, timeout)
        except ConnectionLost as error:
            continues = f"the {self.noun} continues on the device: " if self.running else ""
            again = f"{continues}run the same command again to {'collect it' if self.running else 'continue'}"
            raise type(error)(f"{error}; {again}") from None

    def _continue(self, state: State, timeout: float | None) -> T:
        """The rest of `follow_up`, for a job in *state*."""
        if state.failed:
            self._failed_before()
        if state.kind == "running":
            self.telling.notice(f"a {self.noun} of this model runs on {self.transport.name}: waiting for it")
        elif not state.succeeded:
            self._start()
        self.running = True
        output, state = self._follow(timeout)
        self.running = False
        if state.kind == "absent":
            raise self._taken()
        for line in output.notices:
            self.telling.notice(f"{self.transport.name}: {line}")
        if not state.succeeded:
            raise self._failure(output, state)
        self.telling.stage("collecting")
        try:
            made = self._collect()
        except DeviceError as error:
            # Another command may remove the folder also while files are copied.
            if isinstance(error, ConnectionLost) or self.job.state().kind != "absent":
                raise
            raise self._taken() from None
        try:
            self.job.remove()
        except DeviceError as error:
            self.telling.notice(f"everything was collected, but its folder is left on the device, see --clean: {error}")
        return made

    def _taken(self) -> DeviceError:
        return DeviceError(
            f"another command has collected or removed this {self.noun} on {self.transport.name}: the same command "
            "starts it anew"
        )

    def _follow(self, timeout: float | None) -> tuple[JobOutput, State]:
        self.telling.stage(self.doing)
        output = JobOutput()

        def sink(data: bytes) -> None:
            output.feed(data)
            # Also where there is nothing new, since it may end the waiting.
            self.telling.stage(f"{self.doing}: {output.doing}" if output.doing else self.doing)

        state = self.job.follow(sink, timeout)
        output.finish()
        return output, state

    def _send(self, files: Mapping[str, Path | bytes]) -> None:
        """Put *files* {name: file or content} into the job's folder."""
        with tempfile.TemporaryDirectory() as place:
            for name, content in files.items():
                self.telling.stage(f"sending {name}")
                source = content if isinstance(content, Path) else Path(place) / name
                if isinstance(content, bytes):
                    source.write_bytes(content)
                self.job.put(source, name)

    def _run(self, command: list[str]) -> None:
        """Start the job, whose files are on the device."""
        self.telling.stage("starting")
        # From now on the job may run, even if the answer gets lost.
        self.running = True
        self.job.start(command)

    def _failure(self, output: JobOutput, state: State) -> PpexportError:
        """The error of a job that ended badly."""
        name, event, kept = self.transport.name, output.failure, self._kept()
        lines = [*output.tail, *([] if event is None else [event["message"]])]
        error = self._explain(event, output, state)
        full = any(NO_SPACE in line for line in lines)
        if full or (error is None and event is None and self._looks_full()):
            error = DiskFullError(f"the disk of {name} is full: make room on it, then run the same command again")
        elif error is None and state.kind == "died":
            error = self.failed(
                f"the {self.noun} on {name} was ended from outside: {name} was restarted, or ran out of memory"
            )
        elif error is None:
            said = output.tail[-1] if output.tail else "it gave no reason"
            error = self.failed(f"the {self.noun} on {name} {state.ending}: {said[:500]}")
        return type(error)(f"{error}{kept and f'; {kept}'}")

    def _looks_full(self) -> bool:
        """Whether the device has hardly any room left."""
        free = self.transport.describe().get("free_kb", "")
        return free.isdecimal() and int(free) < FULL_KB

    def _explain(self, event: dict[str, Any] | None, output: JobOutput, state: State) -> PpexportError | None:
        """The error of a job that ended badly, None for no reason that this kind of work knows.

        *event* is the job's own event "failed", if it printed one.
        """
        return None

    def _kept(self) -> str:
        """What of a failed job is kept, for people; "" where there is nothing to say."""
        return ""

    @abstractmethod
    def _failed_before(self) -> None:
        """Report a job that was found failed, before it is started again."""

    @abstractmethod
    def _start(self) -> None:
        """Send what is needed, and `_run`."""

    @abstractmethod
    def _collect(self) -> T:
        """Fetch and check what a job left that ended well. Its folder is removed afterwards."""
