"""Jobs: programs in a folder on a device, which outlive the connection and are collected when there is one again.

A piece of work, such as a build, is taken up by the same call again: it waits for a job that runs, collects one that is
done, and starts one that failed anew. The job's folder is named after what is asked for, so that the same call finds
it; it is removed once everything is here.
"""

from __future__ import annotations

import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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
"""Seconds after which a job that was just started is looked at; twice as many after every further look."""
CHUNK = 1 << 18
"""Bytes of output that are fetched at a time."""
FULL_KB = 1024
"""With less room than this a job that ended without a word is taken for one whose disk was full."""
NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class State:
    """What a job is doing."""

    kind: str
    """"absent": no folder; "new": a folder, never started; "running"; "exited", with a code; "died": killed, or the
    machine was restarted."""
    code: int | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it ended as it should."""
        return self.kind == "exited" and self.code == 0

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise."""
        return self.kind == "died" or (self.kind == "exited" and self.code != 0)

    @property
    def killed(self) -> bool:
        """Whether its program was killed, which a machine without memory does."""
        return self.kind == "exited" and self.code == KILLED

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

    def _again(self, step: Callable[[], T]) -> T:
        """*step*, tried again while the connection is lost. Raises ConnectionLost at last."""
        for wait in self.pace.reconnect:
            try:
                return step()
            except ConnectionLost as error:
                self.notice(f"{error}; trying again in {wait:g} s")
                time.sleep(wait)
        return step()

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
        # A first connection that fails is a mistake of the address more often than a lost line.
        return self._poll(0)[0]

    def put(self, source: Path, name: str) -> None:
        """Copy a file into the folder."""
        self._again(lambda: self.transport.put(source, self.folder, name))

    def start(self, command: Sequence[str]) -> None:
        """Run *command* in the folder, detached; a job that runs already continues."""
        self._again(lambda: self.transport.checked(scripts.START, (self.folder, *command)))

    def follow(self, sink: Callable[[bytes], object], timeout: float | None = None) -> State:
        """Give all output to *sink* until the job has ended; returns its last state.

        Raises StillRunning after *timeout* seconds, ConnectionLost where the device does not come back.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        offset, pause = 0, FIRST_POLL
        while True:
            state, output = self._again(lambda offset=offset: self._poll(offset))  # type: ignore[misc]
            sink(output)
            offset += len(output)
            if len(output) < CHUNK and state.kind != "running":
                return state
            if deadline is not None and time.monotonic() > deadline:
                raise StillRunning(f"the job on {self.transport.name} continues after {timeout:g} s")
            if len(output) < CHUNK:
                # A job that fails at once is told at once.
                time.sleep(min(pause, self.pace.poll))
                pause *= 2

    def discard(self, names: Sequence[str]) -> None:
        """Remove files of an earlier run from the folder."""
        self._again(lambda: self.transport.checked(scripts.DISCARD, (self.folder, *names)))

    def has(self, name: str) -> bool:
        """Whether the folder has a plain file *name*."""
        return self._again(lambda: self.transport.stat(self.folder, name)) is not None

    def get(self, name: str, target: Path, limit: int) -> str:
        """Copy a file of at most *limit* bytes from the folder; returns its SHA-256."""
        return self._again(lambda: self.transport.get(self.folder, name, target, limit))

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file of at most *limit* bytes in the folder."""
        with tempfile.TemporaryDirectory() as place:
            self.get(name, Path(place) / name, limit)
            return (Path(place) / name).read_bytes()

    def remove(self) -> None:
        """Remove the folder; a job that still runs is stopped."""
        self._again(lambda: remove_jobs(self.transport, self.folder))


def remove_jobs(transport: Transport, prefix: str) -> list[str]:
    """Stop and remove all jobs whose names begin with *prefix*; returns what was done and what is left, for people."""
    check_job_name(prefix)
    return printable(transport.checked(scripts.REMOVE, (prefix,))).splitlines()


@dataclass(frozen=True)
class Telling:
    """Who is told what happens."""

    notice: Callable[[str], object]
    """Gets sentences and lines of logs."""
    stage: Callable[[str], object]
    """Gets what is being done now, many times a second."""


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
        """The rest of `follow_up`, from *state* on."""
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
            # Also while files were copied the folder may go.
            if isinstance(error, ConnectionLost) or self.job.state().kind != "absent":
                raise
            raise self._taken() from None
        try:
            self.job.remove()
        except DeviceError as error:
            self.telling.notice(
                f"everything was collected, but its folder on the device is left, see --clean: {error}"
            )  # fmt: skip
        return made

    def _taken(self) -> DeviceError:
        return DeviceError(
            f"another command has collected or removed this {self.noun} on {self.transport.name}: the same command "
            "starts it anew"
        )

    def _follow(self, timeout: float | None) -> tuple[JobOutput, State]:
        self.telling.stage(self.doing)
        said = [self.doing]
        output = JobOutput(lambda doing: said.append(f"{self.doing}: {doing}"))

        def sink(data: bytes) -> None:
            output.feed(data)
            # Also where there is nothing new: who is told may end the waiting.
            del said[:-1]
            self.telling.stage(said[0])

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
        # From here on: the job may run even if the answer gets lost.
        self.running = True
        self.job.start(command)

    def _failure(self, output: JobOutput, state: State) -> PpexportError:
        """The error of a job that ended badly."""
        name, event, kept = self.transport.name, output.failure, self._kept()
        lines = [*output.tail, *([] if event is None else [event["message"]])]
        known = self._explain(event, output, state)
        full = any(NO_SPACE in line for line in lines)
        if full or (known is None and event is None and self._looks_full()):
            return DiskFullError(
                f"the disk of {name} is full: make room there, then run the same command again{kept and f'; {kept}'}"
            )
        if known is None and state.kind == "died":
            known = self.failed(
                f"the {self.noun} on {name} was ended from outside: {name} was restarted, or ran out of memory"
            )
        if known is None:
            said = output.tail[-1] if output.tail else "it gave no reason"
            known = self.failed(f"the {self.noun} on {name} {state.ending}: {said[:500]}")
        return type(known)(f"{known}{kept and f'; {kept}'}")

    def _looks_full(self) -> bool:
        """Whether the device has hardly any room left."""
        free = self.transport.describe().get("free_kb", "")
        return free.isdecimal() and int(free) < FULL_KB

    def _explain(self, event: dict[str, Any] | None, output: JobOutput, state: State) -> PpexportError | None:
        """The error of a job that ended badly for a reason that this kind of work knows; *event* is its last words."""
        return None

    def _kept(self) -> str:
        """What of a failed job is kept, for people; "" for nothing."""
        return ""

    @abstractmethod
    def _failed_before(self) -> None:
        """Tell of a job that was found failed, before it is started again."""

    @abstractmethod
    def _start(self) -> None:
        """Send what is needed, and `_run`."""

    @abstractmethod
    def _collect(self) -> T:
        """Bring here and check what a job left that ended well. Its folder is removed afterwards."""
