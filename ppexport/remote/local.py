"""This machine as a device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from ppexport.remote.address import DeviceError
from ppexport.remote.process import Sink, run_limited
from ppexport.remote.transport import Transport


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
