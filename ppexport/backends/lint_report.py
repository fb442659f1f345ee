"""What lint rules find in a file, the report, and the child process that reads the file.

Whatever a damaged or hostile file makes a parser do in the child process ends with one sentence: the child has a limit
of time and, on Linux, of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ppexport.errors import InputError, PpexportError

SECONDS = 120.0
"""What the child may take; the files of this project take about 2 s, most of it imports."""
MAX_REPORT = 64 << 20
"""Characters of the longest report that is handed over."""


class Severity(str, Enum):
    """How bad a finding is."""

    ERROR = "error"
    """Some supported runtime refuses the model, runs it wrongly, or runs it absurdly slowly."""
    WARNING = "warning"
    """It works on the oldest supported runtimes, but costs something or is one step from not working."""
    NOTE = "note"
    """Worth knowing when something else goes wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing that a rule objects to."""

    severity: Severity
    rule: str
    message: str
    """What is wrong and why, one or two sentences."""
    way_out: str
    runtimes: tuple[str, ...]
    """Those concerned."""
    node: str | None = None
    op: str | None = None
    module: str | None = None
    """Dotted path of the PyTorch module; "" is the network itself, None is unknown or does not apply."""
    tensor: str | None = None


@dataclass(frozen=True)
class LintReport:
    """What is wrong with a model, errors first, and what it is."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]
    """As JSON types: file (its name), producer, file_bytes, nodes, operators (counts, the most frequent first), inputs
    and outputs (name, type, shape, in which None is unknown).

    Of an ONNX model also ir_version, opsets, external_files ({name: bytes}), initializer_bytes (all constants, in the
    file or beside it), large_constant_bytes (those that `large-constant` objects to), symbols (lengths at which
    symbolic axes were checked); its nodes are counted with functions expanded and bodies included.
    """
    runtimes: dict[str, str]
    """{runtime: the oldest version that the rules know}."""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.counts[Severity.ERROR] == 0

    @property
    def counts(self) -> dict[Severity, int]:
        """Number of findings of each severity."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in Severity}

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "ok": self.ok,
            "counts": {severity.value: count for severity, count in self.counts.items()},
            "runtimes": self.runtimes,
            "findings": [asdict(finding) for finding in self.findings],
            "facts": self.facts,
        }


def lint_in_child(
    path: Path, command: Sequence[str], megabytes: int, way_out: str, symbols: Mapping[str, int] | None = None
) -> LintReport:
    """The report on the file *path* that `answer` makes in a child process.

    Args:
        path: of the file.
        command: starts the child, which calls `answer` with the request on its standard input.
        megabytes: that the child may use.
        way_out: what to do about a file that takes more time than the limit.
        symbols: lengths of symbolic axes.

    Raises:
        InputError: `answer` gives no report, or the child takes more time or memory than the limit.
    """
    request = {"path": str(path), "symbols": dict(symbols or {}), "megabytes": megabytes}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            # Every thread reserves memory, and nothing here is worth a second one.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{path} takes more time to lint than the limit of {SECONDS:.0f} s: {way_out}") from None
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise InputError(
            f"{path} ended the process that reads it ({last[0][:200]}): it is damaged or made to do harm, or it needs "
            f"more memory than the limit of {megabytes} MB; export it again, with its weights beside it"
        )
    said = json.loads(done.stdout)
    if "error" in said:
        raise InputError(said["error"])
    return TypeAdapter(LintReport).validate_python(said)


def answer(
    lint: Callable[[Path, Mapping[str, int]], LintReport],
    path: str,
    symbols: Mapping[str, int],
    megabytes: int,
    way_out: str = "export it again",
) -> str:
    """In the child: what *lint* says of *path* as JSON, or why there is nothing.

    From now on this process has *megabytes* of memory; *way_out* is what to do about a file that needs more.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no `resource`, macOS no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    try:
        text = json.dumps(lint(Path(path), symbols).to_dict())
        if len(text) > MAX_REPORT:
            raise InputError(
                f"the report on {path} is longer than the limit of {MAX_REPORT >> 20} MB: it finds a fault "
                "in almost every node"
            )
        return text
    except PpexportError as error:
        said = str(error)
    except MemoryError:
        said = f"{path} needs more memory to lint than the limit of {megabytes} MB: {way_out}"
    except Exception as error:  # whatever a file that was made to do harm brings a parser to raise
        said = f"{path} cannot be linted, it is probably damaged: {type(error).__name__}: {error}"[:500]
    return json.dumps({"error": said})
