"""What can go wrong between this machine and a device."""

from __future__ import annotations

from ppexport.errors import UnavailableError


class DeviceError(UnavailableError):
    """A device that cannot be reached, refuses the login, or lacks something."""


class HostKeyError(DeviceError):
    """A device that is not, or is not yet known to be, the one that was asked for."""


class ConnectionLost(DeviceError):
    """The line broke, or nobody answers; whatever runs on the device goes on."""


class DiskFullError(DeviceError):
    """No space is left on the device."""


class TransferError(DeviceError):
    """A file that is not there, is too large, or arrived damaged."""
