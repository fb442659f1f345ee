"""Address -> transport."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ppexport.errors import InputError
from ppexport.remote.adb import AdbTransport
from ppexport.remote.address import AdbAddress, SshAddress, parse_address
from ppexport.remote.local import LocalTransport
from ppexport.remote.ssh import SshOptions, SshTransport
from ppexport.remote.transport import Transport


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
