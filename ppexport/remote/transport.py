"""What every way to a device can do: run a script, put and get files, describe the machine.

Work is done in job folders, `~/.cache/ppexport/NAME` on the device. Scripts are POSIX sh, constants of this package;
whatever varies is a positional parameter, so that nothing a user or a device says is ever parsed by a shell. Files are
streamed through a script's standard input and output, so that a board needs no sftp server.
"""

from __future__ import annotations

import logging
import os
import re
import selectors
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from ppexport.errors import InputError, present, printable
from ppexport.files import atomic_path, sha256_file
from ppexport.remote import scripts
from ppexport.remote.address import ConnectionLost, DeviceError, DiskFullError, TransferError

JOB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
FULL = (b"No space left on device", b"Disk quota exceeded", b"File too large")
MAX_REPLY = 1 << 20
"""Bytes that a script may answer."""
SHORT = 60.0
"""Seconds that a script may take on a busy board."""
BYTES_PER_SECOND = 50_000
"""A file may come as slowly as this before it counts as stuck."""
BLOCK = 1 << 16
MAX_MESSAGES = 1 << 16
"""Bytes of standard error that are kept; the rest is read and dropped."""
Sink = Callable[[bytes], object]


class TimeIsUp(DeviceError):
    """A process that took longer than it was given; it was ended."""


def run_limited(
    command: Sequence[str], source: IO[bytes] | None, sink: Sink, limit: int, timeout: float
) -> tuple[int, bytes]:
    """Run *command*, its standard input *source*, and give its output to *sink*.

    *limit* is in bytes, *timeout* in seconds. Returns (exit code, standard error). Raises TransferError for more
    output than *limit*, TimeIsUp, and OSError where the program cannot be started.
    """
    logging.getLogger("ppexport").debug("running %s", command)
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        command,
        stdin=source or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Its own session: Ctrl-C is for this program, which decides what becomes of its children.
        start_new_session=True,
    ) as child:
        try:
            messages = _collect(child, sink, limit, deadline)
            return child.wait(max(0.0, deadline - time.monotonic())), messages
        except subprocess.TimeoutExpired:
            raise TimeIsUp(f"{command[0]} did not end in time") from None
        finally:
            child.kill()


def _collect(child: subprocess.Popen[bytes], sink: Sink, limit: int, deadline: float) -> bytes:
    streams = present(child.stdout, "the output of a process"), present(child.stderr, "the errors of a process")
    messages, received = b"", 0
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ended = child.poll() is not None
            ready = selector.select(0 if ended else 0.05)
            if ended and not ready:
                # A process in the background, such as ssh's master, may hold the pipes open for ever.
                break
            for key, _ in ready:
                block = os.read(key.fd, BLOCK)
                if not block:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    messages = (messages + block)[-MAX_MESSAGES:]
                else:
                    received += len(block)
                    if received > limit:
                        raise TransferError(f"the device sent more than {limit} bytes where no more belong")
                    sink(block)
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(child.args, 0)
    return messages


class Reply(NamedTuple):
    """What a script answered."""

    code: int
    output: bytes
    messages: bytes
    """The end of its standard error."""


def last_line(messages: bytes) -> str:
    """The last line of *messages* that is not empty, printable; "" where there is none."""
    return next((line.strip() for line in reversed(printable(messages).splitlines()) if line.strip()), "")


def check_names(folder: str, name: str) -> None:
    """Raise InputError unless a job folder and a file have names of ours, which no shell could misread."""
    check_job_name(folder)
    if not FILE_NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot be the name of a file on a device")


def check_job_name(folder: str) -> None:
    """Raise InputError unless *folder* can be a job's, or the beginning of several jobs' names."""
    if not JOB_NAME.fullmatch(folder):
        raise InputError(f"{folder!r} cannot be the name of a job on a device")


def fact_lines(output: bytes) -> dict[str, str]:
    """`name=value` lines as a device prints them -> {name: printable value}."""
    pairs = (line.partition("=") for line in printable(output).splitlines())
    return {
        name: value.strip()[:200] for name, found, value in pairs if found and re.fullmatch("[a-z0-9_]{1,20}", name)
    }


class Transport(ABC):
    """A way to a device; a subclass says how a script reaches it."""

    name: str
    """The device in messages."""
    python = "python3"
    """The Python to run on the device."""
    install = ""
    """The end of an error of the program that leads to the device, where that is missing."""

    @abstractmethod
    def _command(self, script: str, arguments: Sequence[str]) -> list[str]:
        """The command on this machine that runs *script* on the device. Raises DeviceError."""

    def _ended(self, code: int, messages: bytes) -> tuple[int, bytes]:
        """The exit code and standard error of a script, by those of its command. Raises DeviceError."""
        return code, messages

    def _run(
        self, command: Sequence[str], source: IO[bytes] | None, sink: Sink, limit: int, timeout: float
    ) -> tuple[int, bytes]:
        """As `run_limited`, but every error is a DeviceError that names the device."""
        try:
            return run_limited(command, source, sink, limit, timeout)
        except TimeIsUp:
            self._disconnect()
            raise ConnectionLost(f"{self.name} does not answer") from None
        except OSError as error:
            raise DeviceError(f"{command[0]} cannot be started: {error.strerror}{self.install}") from None

    def _stream(
        self, script: str, arguments: Sequence[str], source: IO[bytes] | None, sink: Sink, limit: int, timeout: float
    ) -> tuple[int, bytes]:
        """Run *script* on the device, with *source* as its standard input; returns (exit code, standard error)."""
        return self._ended(*self._run(self._command(script, arguments), source, sink, limit, timeout))

    def run(self, script: str, arguments: Sequence[str] = (), timeout: float = SHORT) -> Reply:
        """Run a sh *script* with positional parameters, in *timeout* seconds. Raises DeviceError if it cannot run."""
        output = bytearray()
        code, messages = self._stream(script, arguments, None, output.extend, MAX_REPLY, timeout)
        return Reply(code, bytes(output), messages)

    def checked(self, script: str, arguments: Sequence[str] = (), timeout: float = SHORT) -> bytes:
        """The output of a *script* that must work. Raises DeviceError where it does not."""
        reply = self.run(script, arguments, timeout)
        self._check(reply.code, reply.messages)
        return reply.output

    def _check(self, code: int, messages: bytes) -> None:
        if code == 0:
            return
        if any(text in messages for text in FULL):
            raise DiskFullError(f"the disk of {self.name} is full: make room on it, then run the same command again")
        raise DeviceError(f"{self.name} refused a step: {last_line(messages) or f'exit code {code}'}")

    def put(self, source: Path, folder: str, name: str) -> None:
        """Copy *source* into the job folder, whole or not at all; a file that the device has already is not sent again.

        Raises DeviceError, among them DiskFullError.
        """
        size, digest = source.stat().st_size, sha256_file(source)
        if self.stat(folder, name) == (size, digest):
            return
        arguments, timeout = (folder, name, str(size), digest), SHORT + size / BYTES_PER_SECOND
        with source.open("rb") as stream:
            ended = self._stream(scripts.PUT, arguments, stream, lambda _: None, MAX_REPLY, timeout)
        self._check(*ended)

    def stat(self, folder: str, name: str) -> tuple[int, str] | None:
        """Size and hash ("-" if unknown) of a file on the device, None where it is missing or is no plain file."""
        check_names(folder, name)
        answer = self.checked(scripts.STAT, (folder, name)).decode("ascii", "replace").strip()
        if answer == "absent":
            return None
        found = re.fullmatch(r"([0-9]{1,18}) (-|[0-9a-f]{64})", answer)
        if found is None:
            raise self.misunderstood(f"no size of {name}")
        return int(found[1]), found[2]

    def misunderstood(self, what: str) -> TransferError:
        """The error of an answer that is not what a script prints."""
        return TransferError(f"{self.name} gave {what}: does a start file of its login shell print something?")

    def get(self, folder: str, name: str, target: Path, limit: int) -> None:
        """Copy a file of at most *limit* bytes to *target*, atomically.

        Size and, where the device can compute it, hash are compared. Raises DeviceError.
        """
        facts = self.stat(folder, name)
        if facts is None:
            raise TransferError(f"{name} is missing on {self.name}")
        size, expected = facts
        if size > limit:
            raise TransferError(f"{name} on {self.name} has {size} bytes; no more than {limit} belong there")
        with atomic_path(target) as temporary:
            with temporary.open("wb") as stream:
                timeout = SHORT + size / BYTES_PER_SECOND
                self._check(*self._stream(scripts.GET, (folder, name), None, stream.write, size, timeout))
            if temporary.stat().st_size != size or expected not in ("-", sha256_file(temporary)):
                raise TransferError(f"{name} arrived damaged from {self.name}: run the same command again")

    def describe(self) -> dict[str, str]:
        """Facts of the machine from /proc, /etc and uname, by name; what is unknown is left out."""
        return fact_lines(self.checked(scripts.DESCRIBE))

    def _disconnect(self) -> None:  # noqa: B027
        """End a connection that may be broken; the next step makes another."""

    def close(self) -> None:
        """End the connection; jobs on the device continue."""
        self._disconnect()


class LocalTransport(Transport):
    """Runs the same scripts on this machine."""

    name = "this machine"
    python = sys.executable

    def _command(self, script: str, arguments: Sequence[str]) -> list[str]:
        return ["sh", "-c", script, "sh", *arguments]
