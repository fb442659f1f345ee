"""A child process whose output has a limit and whose time has an end."""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO

from ppexport.errors import present
from ppexport.remote.address import DeviceError, TransferError

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
