"""A phone or board behind adb, Google's debug bridge.

adb's own failures and those of a program there share exit codes, and old devices forward none. Every call therefore
ends with a line of ours on standard error that holds the code; where it is missing, the line broke.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from ppexport.remote.address import AdbAddress, ConnectionLost, DeviceError
from ppexport.remote.transport import Sink, TimeIsUp, Transport, fact_lines, last_line, run_limited

HOME = "/data/local/tmp"
"""Where adb's user may write and run programs; its own home is not writable."""
MARK = "ppexport-exit"
ENDED = re.compile(rb"(?:^|\n)ppexport-exit ([0-9]{1,3})\r?\n?\Z")
TRANSIENT = re.compile(
    r"offline|not found|no devices|closed|protocol fault|connection (?:reset|refused)|cannot connect"
)
PROPERTIES = r"""
say() { value=$(getprop "$2"); if [ -n "$value" ]; then printf '%s=%s\n' "$1" "$value"; fi; }
say board ro.product.model
say maker ro.product.manufacturer
say soc ro.soc.model
say soc_maker ro.soc.manufacturer
say platform ro.board.platform
say sdk ro.build.version.sdk
say abi ro.product.cpu.abi
say android ro.build.version.release
say build ro.build.fingerprint
"""
"""Facts that only Android has, one `name=value` a line."""


class AdbTransport(Transport):
    """A device behind adb, by its serial. adb's server keeps the connection."""

    python = "python3"

    def __init__(self, address: AdbAddress) -> None:
        self.address = address
        self.name = str(address)

    def _stream(self, script: str, arguments: Sequence[str], source: IO[bytes] | None, sink: Sink, limit: int,
                timeout: float) -> tuple[int, bytes]:  # fmt: skip
        # One word for adb, which joins words by blanks; the shell there takes it apart again.
        inner = shlex.join(("sh", "-c", script, "sh", *arguments))
        line = f'HOME={HOME}; export HOME; {inner}; code=$?; echo >&2; echo "{MARK} $code" >&2; exit "$code"'
        # -T: no terminal there, which would change line ends.
        command = ("adb", "-s", self.address.serial, "shell", "-T", line)
        try:
            _, messages = run_limited(command, source, sink, limit, timeout)
        except TimeIsUp:
            raise ConnectionLost(f"{self.name} does not answer") from None
        except OSError as error:
            raise DeviceError(f"adb cannot be started: {error.strerror}; install Android's platform tools") from None
        ended = ENDED.search(messages)
        if ended is None:
            raise self._explain(messages)
        return int(ended[1]), messages[: ended.start()]

    def _explain(self, messages: bytes) -> DeviceError:
        """The error of a call that did not come to its end."""
        said = last_line(messages)
        if "unauthorized" in said:
            return DeviceError(f"{self.name} has not allowed this computer: unlock it and accept its question")
        if "unknown option" in said.lower() or "shell -T" in said:
            return DeviceError(f"{self.name}: this adb knows no `shell -T`, install current platform tools ({said})")
        if not said or TRANSIENT.search(said):
            return ConnectionLost(f"{self.name} cannot be reached: {said or 'the connection ended'}")
        return DeviceError(f"{self.name} cannot be used: {said[:300]}")

    def describe(self) -> dict[str, str]:
        """As for every device, and Android's properties."""
        facts = super().describe()
        with suppress(DeviceError):
            facts |= fact_lines(self.checked(PROPERTIES))
        return facts

    def close(self) -> None:
        """Nothing to end: the connection belongs to adb's server."""
