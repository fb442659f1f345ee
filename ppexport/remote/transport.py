"""What every way to a device can do: run a script, put and get files, describe the machine.

Work is done in job folders, `~/.cache/ppexport/NAME` on the device. Scripts are POSIX sh, constants of this package;
whatever varies is a positional parameter, so that nothing a user or a device says is ever parsed by a shell. Files are
streamed through a script's standard input and output, so that a board needs no sftp server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import selectors
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ppexport.errors import InputError, present, printable
from ppexport.files import atomic_path, sha256_file
from ppexport.remote import scripts
from ppexport.remote.address import DeviceError, DiskFullError, TransferError

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
    logging.getLogger("ppexport").debug("running %s", list(command))
    # Its own session: Ctrl-C is for this program, which decides what becomes of its children.
    child = subprocess.Popen(
        list(command),
        stdin=source or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return _collect(child, sink, limit, time.monotonic() + timeout)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _collect(child: subprocess.Popen[bytes], sink: Sink, limit: int, deadline: float) -> tuple[int, bytes]:
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
                raise TimeIsUp(f"{child.args[0]!r} did not end in time")  # type: ignore[index]
    while child.poll() is None:
        if time.monotonic() > deadline:
            raise TimeIsUp(f"{child.args[0]!r} did not end in time")  # type: ignore[index]
        time.sleep(0.01)
    return child.returncode, messages


@dataclass(frozen=True)
class Reply:
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
        raise InputError(f"{name!r} is no name of a file on a device")


def check_job_name(folder: str) -> None:
    """Raise InputError unless *folder* can be a job's, or the beginning of several jobs' names."""
    if not JOB_NAME.fullmatch(folder):
        raise InputError(f"{folder!r} is no name of a job on a device")


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
    python: str
    """The Python to run there."""

    @abstractmethod
    def _stream(self, script: str, arguments: Sequence[str], source: IO[bytes] | None, sink: Sink, limit: int,
                timeout: float) -> tuple[int, bytes]:  # fmt: skip
        """Run *script* there, *source* its standard input; returns (exit code, standard error). Raises DeviceError."""

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
            raise DiskFullError(f"the disk of {self.name} is full: make room there, then run the same command again")
        raise DeviceError(f"{self.name} refused a step: {last_line(messages) or f'exit code {code}'}")

    def put(self, source: Path, folder: str, name: str) -> None:
        """Copy *source* into the job folder, whole or not at all; a file that is there already is not sent again.

        Raises DeviceError, among them DiskFullError.
        """
        check_names(folder, name)
        size, digest = source.stat().st_size, sha256_file(source)
        if self.stat(folder, name) == (size, digest):
            return
        with source.open("rb") as stream:
            arguments = (folder, name, str(size), digest)
            code, messages = self._stream(
                scripts.PUT, arguments, stream, lambda _: None, MAX_REPLY, SHORT + size / BYTES_PER_SECOND
            )
        self._check(code, messages)

    def stat(self, folder: str, name: str) -> tuple[int, str] | None:
        """Size and hash ("-" if unknown) of a file there, None where it is missing or is no plain file."""
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

    def get(self, folder: str, name: str, target: Path, limit: int) -> str:
        """Copy a file of at most *limit* bytes to *target*, atomically; returns its SHA-256.

        Size and, where the device can compute it, hash are compared. Raises DeviceError.
        """
        check_names(folder, name)
        facts = self.stat(folder, name)
        if facts is None:
            raise TransferError(f"{name} is missing on {self.name}")
        size, expected = facts
        if size > limit:
            raise TransferError(f"{name} on {self.name} has {size} bytes; no more than {limit} belong there")
        digest, received = hashlib.sha256(), 0

        with atomic_path(target) as temporary, temporary.open("wb") as stream:

            def keep(block: bytes) -> None:
                nonlocal received
                received += len(block)
                digest.update(block)
                stream.write(block)

            timeout = SHORT + size / BYTES_PER_SECOND
            code, messages = self._stream(scripts.GET, (folder, name), None, keep, size, timeout)
            self._check(code, messages)
            if received != size or expected not in ("-", digest.hexdigest()):
                raise TransferError(f"{name} arrived damaged from {self.name}: run the same command again")
        return digest.hexdigest()

    def describe(self) -> dict[str, str]:
        """Facts of the machine that /proc, /etc and uname tell, by name; what is unknown is left out."""
        return fact_lines(self.checked(scripts.DESCRIBE))

    @abstractmethod
    def close(self) -> None:
        """End the connection; jobs on the device continue."""
