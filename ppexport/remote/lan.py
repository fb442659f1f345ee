"""The addresses of this machine in local networks, found without sending anything."""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import suppress

from ppexport.errors import InputError, UnavailableError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ADDRESS_OF = 0x8915
"""Linux: the request SIOCGIFADDR, which returns an interface's IPv4 address."""
ELSEWHERE = ("192.0.2.1", 9)
"""An address that belongs to nobody (RFC 5737)."""


def lan_addresses() -> list[str]:
    """IPv4 addresses of this machine but the loopback's, first the one that other networks are reached through."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # A datagram socket sends nothing when it is connected: the system only chooses its own address.
        with suppress(OSError):
            probe.connect(ELSEWHERE)
            found.append(str(probe.getsockname()[0]))
        for _, name in socket.if_nameindex() if fcntl is not None else ():
            # Other systems than Linux have other numbers, and an interface may have no address.
            with suppress(OSError):
                told = fcntl.ioctl(probe, ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(told[20:24]))
    return [address for address in dict.fromkeys(found) if not ipaddress.ip_address(address).is_loopback]


def choose_address(named: str | None) -> tuple[str, list[str]]:
    """The address to listen on for the local network, and this machine's other ones.

    *named* is what the user asks for, None for the first. Raises InputError for what is no such address, and
    UnavailableError where this machine has none.
    """
    known = lan_addresses()
    if named is None:
        if not known:
            raise UnavailableError("this machine has no address in a local network: connect it to one")
        return known[0], known[1:]
    try:
        address = ipaddress.IPv4Address(named)
    except ValueError:
        raise InputError(f"an address of this machine is four numbers, such as 192.168.1.5, not {named!r}") from None
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise InputError(f"{named} is no address of this machine in a network: it has {', '.join(known) or 'none'}")
    return str(address), [other for other in known if other != str(address)]
