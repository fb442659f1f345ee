"""Address -> transport, and this machine as a device."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from ppexport.errors import InputError
from ppexport.remote.adb import AdbTransport
from ppexport.remote.address import AdbAddress, DeviceError, SshAddress, parse_address
from ppexport.remote.ssh import SshOptions, SshTransport
from ppexport.remote.transport import Sink, Transport, run_limited


class LocalTransport(Transport):
    """Runs the same scripts without a connection."""

    name = "this machine"
    python = sys.executable

    def _stream(self, script: str, arguments: Sequence[str], source: IO[bytes] | None, sink: Sink, limit: int,
                timeout: float) -> tuple[int, bytes]:  # fmt: skip
        try:
            return run_limited(("sh", "-c", script, "sh", *arguments), source, sink, limit, timeout)
        except OSError as error:
            raise DeviceError(f"sh cannot be started: {error.strerror}") from None

    def close(self) -> None:
        """Nothing is open."""


def transport_to(address: SshAddress | AdbAddress | None, options: SshOptions) -> Transport:
    """The transport to *address*, not connected yet."""
    if address is None:
        return LocalTransport()
    return AdbTransport(address) if isinstance(address, AdbAddress) else SshTransport(address, options)


@contextmanager
def open_device(text: str, options: SshOptions | None = None) -> Iterator[Transport]:
    """The transport to the device that *text* names, closed at the end. Raises InputError for a bad address."""
    address = parse_address(text)
    options = options or SshOptions()
    for file in (options.identity, options.config):
        if file is not None and not file.is_file():
            raise InputError(f"{file} is not a file")
    transport = transport_to(address, options)
    try:
        yield transport
    finally:
        transport.close()
