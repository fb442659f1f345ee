"""Work on a device that outlives the connection, and is taken up by the same call again.

The call waits for work that runs, collects what is done, and starts what failed anew. The job's folder is named after
what is asked for, so that the same call finds it; it is removed once everything is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ppexport.remote.address import ConnectionLost, DeviceError, DiskFullError
from ppexport.remote.job import Job, Pace, State
from ppexport.remote.output import JobOutput
from ppexport.remote.transport import Transport

T = TypeVar("T")
FULL_KB = 1024
"""With less room than this a job that ended without a word is taken for one whose disk was full."""
NO_SPACE = "No space left on device"


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

    def __init__(self, transport: Transport, name: str, telling: Telling, pace: Pace | None = None) -> None:
        """*name* is that of the job folder."""
        self.transport = transport
        self.telling = telling
        self.job = Job(transport, name, pace, telling.notice)
        self.running = False
        """Whether something goes on, on the device, when this program ends now."""

    def follow_up(self, timeout: float | None = None) -> T:
        """Do the work, or go on with it, and return what it made.

        Raises what a subclass raises, and DeviceError, among them StillRunning after *timeout* seconds.
        """
        self.telling.stage(f"asking {self.transport.name}")
        state = self.job.state()
        try:
            return self._go_on(state, timeout)
        except ConnectionLost as error:
            goes_on = f"the {self.noun} goes on there: " if self.running else ""
            again = f"{goes_on}run the same command again to {'collect it' if self.running else 'go on'}"
            raise type(error)(f"{error}; {again}") from None

    def _go_on(self, state: State, timeout: float | None) -> T:
        """The rest of `follow_up`, from *state* on."""
        if state.failed:
            self._failed_before(state)
        if state.kind == "running":
            self.telling.notice(f"a {self.noun} of this model runs on {self.transport.name}: waiting for it")
        elif not state.succeeded:
            self._start()
        self.running = True
        output, state = self._follow(timeout)
        self.running = False
        if state.kind == "absent":
            raise DeviceError(
                f"another command has collected or removed this {self.noun} on {self.transport.name}: the same command "
                "starts it anew"
            )
        for line in output.notices:
            self.telling.notice(f"{self.transport.name}: {line}")
        if not state.succeeded:
            raise self._failure(output, state)
        return self._finish()

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

    def _run(self, command: list[str]) -> None:
        """Start the job, whose files are there."""
        self.telling.stage("starting")
        # From here on: the job may run even if the answer gets lost.
        self.running = True
        self.job.start(command)

    def _remove(self) -> None:
        """Remove the job's folder, now that everything of it is here."""
        try:
            self.job.remove()
        except DeviceError as error:
            self.telling.notice(
                f"everything was collected, but its folder on the device is left, see --clean: {error}"
            )  # fmt: skip

    def _full(self) -> DiskFullError:
        return DiskFullError(
            f"the disk of {self.transport.name} is full: make room there, then run the same command again"
        )

    def _looks_full(self) -> bool:
        """Whether the device has hardly any room left."""
        free = self.transport.describe().get("free_kb", "")
        return free.isdecimal() and int(free) < FULL_KB

    @abstractmethod
    def _failed_before(self, state: State) -> None:
        """Tell of a job that was found failed, before it is started again."""

    @abstractmethod
    def _start(self) -> None:
        """Send what is needed, and `_run`."""

    @abstractmethod
    def _failure(self, output: JobOutput, state: State) -> Exception:
        """The error of a job that ended badly."""

    @abstractmethod
    def _finish(self) -> T:
        """Collect what a job left that ended well, and `_remove` it."""
