"""The program that works on a device: one file, made of this package's own modules, and the jobs that it does.

It needs Python 3.8 to 3.13 and whatever its job imports: a measurement needs NumPy 1.17 or newer and the runtime, a
build needs TensorRT. On this machine and on the device the same code is timed. Equal sources make equal bytes.
`ppexport.device.agent` describes the files of a job.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ppexport
from ppexport.device.agent import ARCHIVE, OUTCOME, REQUEST
from ppexport.errors import printable
from ppexport.files import sha256_text
from ppexport.remote import scripts
from ppexport.remote.address import TransferError
from ppexport.remote.detached import DetachedWork, Pace, T, Telling
from ppexport.remote.output import parse_object
from ppexport.remote.transport import Transport

ROOT = Path(ppexport.__file__).parent
MODULES = (
    "__init__", "errors", "files", "plugins",
    *(str(path.relative_to(ROOT).with_suffix(""))
      for pattern in ("device/*.py", "backends/*/run*.py")
      for path in sorted(ROOT.glob(pattern))),
)  # fmt: skip
"""All that runs on a device: the room `device`, and what each backend runs its files with."""
EMPTY = sorted({"backends/__init__", *(f"{Path(name).parent}/__init__" for name in MODULES if name[:9] == "backends/")})
"""Packages whose own `__init__` says what a backend can build, which no device needs."""
NAMES = tuple("ppexport" + f"/{name}".replace("/__init__", "").replace("/", ".") for name in MODULES)
"""The same as Python imports them."""
MAIN = "device/agent"
"""What the archive runs."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)
PYTHON = (3, 8)
"""What the archive needs at least; JetPack 5 has it."""
PROBE_SECONDS = 120
"""Importing a runtime from a memory card takes a while."""
PROBE = (
    scripts.PRELUDE
    + r"""
cd "$root/$1"
archive=$2 python=$3
shift 3
if ! command -v "$python" > /dev/null; then echo none; exit 0; fi
"$python" -c 'import sys; print("python %d.%d.%d" % sys.version_info[:3])' || { echo none; exit 0; }
for modules; do
    # One process for each group: a runtime that was compiled for another processor ends it.
    # shellcheck disable=SC2086
    "$python" "$archive" check $modules 2> /dev/null || echo "lacks ${modules##* } it ends Python"
done
"""
)
"""Version of the Python `$3`, then a line of the archive `$2` in job `$1` for each of the groups of modules `$4`…"""
MAX_OUTCOME = 1 << 20


def make_archive() -> bytes:
    """The archive, for `python3 agent.pyz`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        sources = {"__main__": MAIN, **{f"ppexport/{name}": name for name in (*MODULES, *EMPTY)}}
        for name, source in sources.items():
            text = "" if source in EMPTY else (ROOT / f"{source}.py").read_text(encoding="utf-8")
            archive.writestr(zipfile.ZipInfo(f"{name}.py", LONG_AGO), text, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


@dataclass(frozen=True)
class Found:
    """What a Python on a device can import."""

    version: str | None
    """Such as "3.8.10"; None where no Python starts."""
    has: Mapping[str, str]
    """{module: its version, "" where it has none}, the last module of every group that can be imported."""
    lacks: Mapping[str, str]
    """{module: why it cannot be imported}."""

    @property
    def old(self) -> bool:
        """Whether no job runs in this Python."""
        return self.version is None or tuple(map(int, self.version.split(".")[:2])) < PYTHON


def read_probe(said: str) -> Found:
    """What `PROBE` printed, made printable."""
    lines = said.splitlines()
    version = re.fullmatch(r"python (\d{1,2}\.\d{1,3}\.\d{1,3})", lines[0] if lines else "")
    found: dict[str, dict[str, str]] = {"has": {}, "lacks": {}}
    for line in lines[1:]:
        kind, _, rest = line.partition(" ")
        module, _, text = rest.partition(" ")
        found.get(kind, {})[module] = text.strip()[:200]
    return Found(None if version is None else version[1], found["has"], found["lacks"])


class AgentWork(DetachedWork[T]):
    """Work that the archive does in a Python of the device."""

    def __init__(
        self, transport: Transport, prefix: str, digest: str, python: str | None, telling: Telling, pace: Pace | None
    ) -> None:
        """*prefix* begins the name of the job's folder, *digest* names the request."""
        self.archive, self.digest, self.python = make_archive(), digest, python or transport.python
        super().__init__(transport, prefix + sha256_text(digest + self.archive.hex())[:12], telling, pace)

    def _probe(self, groups: Sequence[str]) -> Found:
        """What the device's Python can import of *groups* of modules, parted by blanks; sends the archive."""
        self._send({ARCHIVE: self.archive})
        self.telling.stage(f"looking for Python on {self.transport.name}")
        arguments = (self.job.folder, ARCHIVE, self.python, *groups)
        return read_probe(printable(self.transport.checked(PROBE, arguments, PROBE_SECONDS)))

    def _start_agent(self, work: str, request: Mapping[str, Any], files: Mapping[str, Path | bytes]) -> None:
        """Have the function *work*, "MODULE:FUNCTION", do *request* with *files*; the archive is on the device."""
        self.job.discard((OUTCOME,))
        text = json.dumps({"work": work, "id": self.digest, **request}) + "\n"
        # A request that the folder has already is that of an earlier call, with its date.
        self._send({**files, **({} if self.job.has(REQUEST) else {REQUEST: text.encode()})})
        self._run([self.python, "-u", ARCHIVE])

    def _outcome(self) -> dict[str, Any]:
        """What a job that ended well left. Raises TransferError for anything that is not of this request."""
        outcome = parse_object(self.job.read(OUTCOME, MAX_OUTCOME))
        if outcome is None:
            raise TransferError(f"{OUTCOME} from {self.transport.name} is not a JSON object")
        if outcome.get("id") != self.digest:
            raise TransferError(f"{OUTCOME} from {self.transport.name} is that of another request")
        return outcome
