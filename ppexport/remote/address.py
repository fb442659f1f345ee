"""What can go wrong between this machine and a device."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ppexport.errors import InputError, UnavailableError


class DeviceError(UnavailableError):
    """A device that cannot be reached, refuses the login, or lacks something."""


class HostKeyError(DeviceError):
    """A device that is not the one that the user named, or is not yet known to be."""


class ConnectionLost(DeviceError):
    """The connection broke, or nobody answers; whatever runs on the device continues."""


class DiskFullError(DeviceError):
    """No space is left on the device."""


class TransferError(DeviceError):
    """A file from a device that is missing, is too large, or arrived damaged."""


# Addresses of devices: `local`, `ssh://[user@]host[:port]`, or `adb://serial`.


LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})@)?"
    rf"(?:(?P<host>{LABEL}(?:\.{LABEL})*)|\[(?P<v6>[0-9A-Fa-f:.]{{2,45}})\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
"""Nothing that matches can be taken for an option: user and host begin with a letter, a digit or `_`."""
MAX_HOST = 253
SERIAL = re.compile(r"adb://(?P<serial>[A-Za-z0-9][A-Za-z0-9._:-]{0,99})")
"""A serial number as `adb devices` lists it, also that of a device in the network, such as 10.0.0.5:5555."""


@dataclass(frozen=True)
class SshAddress:
    """A machine behind ssh; None is what the ssh configuration says."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """The address as a user writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"ssh://{user}{host}" + ("" if self.port is None else f":{self.port}")


@dataclass(frozen=True)
class AdbAddress:
    """A device behind adb."""

    serial: str

    def __str__(self) -> str:
        """The address as a user writes it."""
        return f"adb://{self.serial}"


def parse_address(text: str) -> SshAddress | AdbAddress | None:
    """The address that *text* names, None for `local`. Raises InputError for anything else."""
    if text == "local":
        return None
    adb = SERIAL.fullmatch(text)
    if adb is not None:
        return AdbAddress(adb["serial"])
    match = ADDRESS.fullmatch(text)
    if match is None:
        raise InputError(f"a device is local, ssh://[user@]host[:port] or adb://serial, not {text!r}")
    host = match["host"] or match["v6"]
    if match["v6"]:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise InputError(f"[{host}] is not an IPv6 address") from None
    if len(host) > MAX_HOST:
        raise InputError(f"a host name has at most {MAX_HOST} characters, not {len(host)}")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port < 1 << 16:
        raise InputError(f"a port is 1 to 65535, not {port}")
    return SshAddress(host, match["user"], port)
