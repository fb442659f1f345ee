"""What every way to a device can do: run a script, put and get files, describe the machine.

Work is done in job folders, `~/.cache/ppexport/NAME` on the device. Scripts are POSIX sh, constants of this package;
whatever varies is a positional parameter, so that nothing a user or a device says is ever parsed by a shell. Files are
streamed through a script's standard input and output, so that a board needs no sftp server.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ppexport.errors import InputError
from ppexport.files import atomic_path, sha256_file
from ppexport.remote import scripts
from ppexport.remote.address import DeviceError, DiskFullError, TransferError
from ppexport.remote.output import printable
from ppexport.remote.process import Sink

JOB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
FULL = (b"No space left on device", b"Disk quota exceeded", b"File too large")
MAX_REPLY = 1 << 20
"""Bytes that a script may answer."""
SHORT = 60.0
"""Seconds that a script may take on a busy board."""
BYTES_PER_SECOND = 50_000
"""A file may come as slowly as this before it counts as stuck."""


@dataclass(frozen=True)
class Reply:
    """What a script answered."""

    code: int
    output: bytes
    messages: bytes
    """The end of its standard error."""


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
        said = printable(messages).strip().splitlines()
        raise DeviceError(f"{self.name} refused a step: {said[-1] if said else f'exit code {code}'}")

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
        """End the connection; jobs on the device go on."""
