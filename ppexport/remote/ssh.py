"""A device behind the OpenSSH client: keys only, host keys checked, one connection that all steps share.

`open_device` chooses among this and the other transports.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ppexport.errors import InputError, printable
from ppexport.remote.adb import AdbTransport
from ppexport.remote.address import AdbAddress, ConnectionLost, DeviceError, HostKeyError, SshAddress, parse_address
from ppexport.remote.transport import MAX_REPLY, LocalTransport, Transport, last_line, run_limited

FAILED = 255
"""ssh's own exit code; no script of ours ends with it."""
CONNECT_SECONDS = 20
IDLE_SECONDS = 120
"""The shared connection ends by itself after this, should this program be killed."""
MAX_SOCKET_FOLDER = 60
"""A socket's path has at most 104 bytes on some systems, and ssh appends to it."""
SPECIAL = frozenset('"\\$\n')
"""Characters that have no form in a quoted value of ssh's which all its versions read."""


@dataclass(frozen=True)
class SshOptions:
    """What a user may choose about a connection."""

    identity: Path | None = None
    """Private key, in place of those that the configuration and the agent offer."""
    config: Path | None = None
    """ssh configuration file, in place of the user's."""
    accept_new_host_key: bool = False
    """Take the key of a host that is not known yet; a key that changed is refused all the same."""


def quoted(path: Path) -> str:
    """*path* as a value of ssh's configuration, where spaces part words and a percent sign begins an abbreviation.

    Raises InputError for a path with characters of `SPECIAL`.
    """
    if set(str(path)) & SPECIAL:
        raise InputError(
            f"ssh cannot be given the path {path}: name one without double quotes, backslashes, dollar signs and line "
            "breaks"
        )
    return '"' + str(path).replace("%", "%%") + '"'


class SshTransport(Transport):
    """A device behind ssh. The connection is made when it is first needed, and again after it was lost."""

    install = "; install the OpenSSH client"

    def __init__(self, address: SshAddress, options: SshOptions | None = None) -> None:
        self.address = address
        self.options = options or SshOptions()
        self.name = str(address)
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > MAX_SOCKET_FOLDER or set(base) & SPECIAL:
            base = "/tmp"
        # mkdtemp makes a folder that only this user can enter: who can use the socket is logged in.
        self._socket = Path(tempfile.mkdtemp(prefix="ppexport-", dir=base)) / "socket"

    def _ssh(self, *more: str) -> list[str]:
        """The ssh command up to the host; *more* are options of this call."""
        options = self.options
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new" if options.accept_new_host_key else "yes",
            "ConnectTimeout": CONNECT_SECONDS,
            "ServerAliveInterval": 15,
            "ServerAliveCountMax": 4,
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "LogLevel": "ERROR",
            "ControlPath": quoted(self._socket),
        }
        command = ["ssh", *(["-F", str(options.config)] if options.config else [])]
        for name, value in settings.items():
            command += ["-o", f"{name}={value}"]
        if options.identity is not None:
            command += ["-o", f"IdentityFile={quoted(options.identity)}", "-o", "IdentitiesOnly=yes"]
        if self.address.user is not None:
            command += ["-l", self.address.user]
        if self.address.port is not None:
            command += ["-p", str(self.address.port)]
        return [*command, *more, "--", self.address.host]

    def _connect(self) -> None:
        """Start the shared connection in the background. Raises DeviceError with the reason where it fails."""
        command = self._ssh("-M", "-N", "-f", "-o", f"ControlPersist={IDLE_SECONDS}")
        code, messages = self._run(command, None, lambda _: None, MAX_REPLY, 2 * CONNECT_SECONDS)
        if code:
            raise self._explain(messages)

    def _explain(self, messages: bytes) -> DeviceError:
        """The error that ssh's *messages* mean."""
        text, said = printable(messages), last_line(messages) or "no reason given"
        if "IDENTIFICATION HAS CHANGED" in text:
            return HostKeyError(
                f"{self.name} shows another host key than the known one: either the device was installed anew, then "
                "remove its old key with `ssh-keygen -R`, or somebody stands between; nothing was sent"
            )
        if "Host key verification failed" in text:
            return HostKeyError(
                f"the host key of {self.name} is not known: connect once with ssh and compare its fingerprint, or "
                "pass --accept-new-host-key; nothing was sent"
            )
        if "Permission denied" in text or "Too many authentication failures" in text:
            return DeviceError(
                f"{self.name} refuses the login: ssh must work without a password, see --identity ({said})"
            )
        return ConnectionLost(f"{self.name} cannot be reached: {said}")

    def _command(self, script: str, arguments: Sequence[str]) -> list[str]:
        # The shared connection removes its socket when it ends.
        if not self._socket.exists():
            self._connect()
        # The login shell on the device gets one line, in which every word is quoted.
        return [*self._ssh("-o", "ControlMaster=no"), shlex.join(("sh", "-c", script, "sh", *arguments))]

    def _ended(self, code: int, messages: bytes) -> tuple[int, bytes]:
        if code == FAILED:
            self._disconnect()
            raise self._explain(messages)
        return code, messages

    def _disconnect(self) -> None:
        """End the shared connection, whatever state it is in."""
        if self._socket.exists():
            with suppress(DeviceError, OSError):
                run_limited(self._ssh("-O", "exit"), None, lambda _: None, MAX_REPLY, 10)
            self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        """End the shared connection; jobs on the device continue."""
        super().close()
        shutil.rmtree(self._socket.parent, ignore_errors=True)


@contextmanager
def open_device(text: str, options: SshOptions | None = None) -> Iterator[Transport]:
    """The transport to the device that *text* names, closed at the end of the block.

    Args:
        text: An address as `parse_address` reads it.
        options: How to reach a device behind ssh; other devices need none.

    Raises:
        InputError: The address is not one, or a file of the options is missing.
    """
    address, options = parse_address(text), options or SshOptions()
    for file in (options.identity, options.config):
        if file is not None and not file.is_file():
            raise InputError(f"{file} is not a file")
    if address is None:
        transport: Transport = LocalTransport()
    elif isinstance(address, AdbAddress):
        transport = AdbTransport(address)
    else:
        transport = SshTransport(address, options)
    try:
        yield transport
    finally:
        transport.close()
