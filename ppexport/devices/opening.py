"""Address -> transport."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ppexport.devices.address import parse_address
from ppexport.devices.local import LocalTransport
from ppexport.devices.ssh import SshOptions, SshTransport
from ppexport.devices.transport import Transport
from ppexport.errors import InputError


@contextmanager
def open_device(text: str, options: SshOptions | None = None) -> Iterator[Transport]:
    """The transport to the device that *text* names, closed at the end. Raises InputError for a bad address."""
    address = parse_address(text)
    options = options or SshOptions()
    for file in (options.identity, options.config):
        if file is not None and not file.is_file():
            raise InputError(f"{file} is not a file")
    transport = LocalTransport() if address is None else SshTransport(address, options)
    try:
        yield transport
    finally:
        transport.close()
