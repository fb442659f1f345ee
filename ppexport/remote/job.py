"""A program in a folder on a device, which outlives the connection and is collected when there is one again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ppexport.remote import scripts
from ppexport.remote.address import ConnectionLost
from ppexport.remote.output import printable
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
        """Run *command* in the folder, detached; a job that runs already goes on."""
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
                raise StillRunning(f"the job on {self.transport.name} goes on after {timeout:g} s")
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

    def remove(self) -> None:
        """Remove the folder; a job that still runs is stopped."""
        self._again(lambda: remove_jobs(self.transport, self.folder))


def remove_jobs(transport: Transport, prefix: str) -> list[str]:
    """Stop and remove all jobs whose names begin with *prefix*; returns what was done, for people."""
    check_job_name(prefix)
    return printable(transport.checked(scripts.REMOVE, (prefix,))).splitlines()
