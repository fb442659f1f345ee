"""A phone or board behind adb, Google's debug bridge.

adb's own failures and those of a program on the device share exit codes, and old devices forward none. Every call
therefore ends with a line of ours on standard error that holds the code; where it is missing, the connection broke.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ppexport.errors import printable
from ppexport.remote.address import AdbAddress, ConnectionLost, DeviceError
from ppexport.remote.transport import MAX_REPLY, SHORT, Transport, fact_lines, last_line

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


OPEN = 'am start -a android.intent.action.VIEW -d "$1" 2>&1'
"""Shows the address $1; what it prints alone tells of a failure."""


class AdbTransport(Transport):
    """A device behind adb, by its serial. adb's server keeps the connection."""

    install = "; install Android's platform tools"

    def __init__(self, address: AdbAddress) -> None:
        self.address = address
        self.name = str(address)

    def _command(self, script: str, arguments: Sequence[str]) -> list[str]:
        # One word for adb, which joins words by blanks; the shell on the device takes it apart again.
        inner = shlex.join(("sh", "-c", script, "sh", *arguments))
        line = f'HOME={HOME}; export HOME; {inner}; code=$?; echo >&2; echo "{MARK} $code" >&2; exit "$code"'
        # -T: no terminal on the device, which would change line ends.
        return ["adb", "-s", self.address.serial, "shell", "-T", line]

    def _ended(self, code: int, messages: bytes) -> tuple[int, bytes]:
        ended = ENDED.search(messages)
        if ended is None:
            raise self._explain(messages)
        return int(ended[1]), messages[: ended.start()]

    def _explain(self, messages: bytes) -> DeviceError:
        """The error of a call that ended without our line."""
        said = last_line(messages)
        if "unauthorized" in said:
            return DeviceError(f"{self.name} has not allowed this computer: unlock it and accept its question")
        if "unknown option" in said.lower() or "shell -T" in said:
            return DeviceError(f"{self.name}: this adb knows no `shell -T`, install current platform tools ({said})")
        if not said or TRANSIENT.search(said):
            return ConnectionLost(f"{self.name} cannot be reached: {said or 'the connection ended'}")
        return DeviceError(f"{self.name} cannot be used: {said[:300]}")

    @contextmanager
    def reversed(self, port: int) -> Iterator[None]:
        """While the block runs, *port* of the phone's own address leads to the same port of this machine's.

        A browser there takes what it shows for the phone's own, which it trusts with threads and a GPU. Raises
        DeviceError.
        """
        name = f"tcp:{port}"
        self._adb("reverse", name, name)
        try:
            yield
        finally:
            with suppress(DeviceError):
                self._adb("reverse", "--remove", name)

    def open_page(self, url: str) -> None:
        """Have the phone show *url* in its browser. Raises DeviceError where it has none."""
        said = printable(self.checked(OPEN, (url,)))
        if "Error" in said:
            raise DeviceError(f"{self.name} opens no browser: {said.strip().splitlines()[-1][:300]}")

    def _adb(self, *arguments: str) -> None:
        """Run an own command of adb. Raises DeviceError."""
        command = ["adb", "-s", self.address.serial, *arguments]
        code, messages = self._run(command, None, lambda _: None, MAX_REPLY, SHORT)
        if code:
            raise self._explain(messages)

    def describe(self) -> dict[str, str]:
        """As for every device, and Android's properties."""
        facts = super().describe()
        with suppress(DeviceError):
            facts |= fact_lines(self.checked(PROPERTIES))
        return facts
