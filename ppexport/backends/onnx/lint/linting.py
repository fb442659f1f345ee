"""`lint_model`, what lint rules find, and the report. Needs no onnx: only the child process does.

Whatever a damaged or hostile file makes onnx do in the child process ends with one sentence: the child has a limit of
time and, on Linux, of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from ppexport.errors import InputError
from ppexport.files import module_command

if TYPE_CHECKING:
    from ppexport.backends.onnx.graph_view import GraphView, Node

CHILD = module_command("ppexport.backends.onnx.lint.lint_child")
SECONDS = 120.0
"""What the child may take; the files of this project take about 2 s, most of it imports."""
MEGABYTES, COPIES = 2048, 6
"""Memory of the child: a fixed part, and a multiple of the file, which onnx copies on its way through C++."""


class Severity(str, Enum):
    """How bad a finding is."""

    ERROR = "error"
    """Some supported runtime refuses the model, runs it wrongly, or runs it absurdly slowly."""
    WARNING = "warning"
    """It works on the oldest supported runtimes, but costs something or is one step from not working."""
    NOTE = "note"
    """Worth knowing when something else goes wrong."""


class Runtime(str, Enum):
    """The runtimes that artifacts are made for."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    COREML = "coreml"
    OPENVINO = "openvino"
    QNN = "qnn"


COMPILERS = (Runtime.TENSORRT, Runtime.COREML)
"""Those that fix every shape and type when they build."""
OLDEST = {
    Runtime.ONNXRUNTIME: "ONNX Runtime 1.15",
    Runtime.TENSORRT: "TensorRT 10.3",  # JetPack 6
    Runtime.COREML: "Core ML of iOS 16",
    Runtime.OPENVINO: "OpenVINO 2025.0",
    Runtime.QNN: "Snapdragon 8 Gen 2",
}
"""The oldest supported versions, for people to read."""


@dataclass(frozen=True)
class Finding:
    """One thing that a rule objects to."""

    severity: Severity
    rule: str
    message: str
    """What is wrong and why, one or two sentences."""
    way_out: str
    runtimes: tuple[Runtime, ...]
    """Those concerned."""
    node: str | None = None
    op: str | None = None
    module: str | None = None
    """Dotted path of the PyTorch module; "" is the network itself, None is unknown or does not apply."""
    tensor: str | None = None


@dataclass(frozen=True)
class Rule:
    """A lint rule; the docstring of its function says what it objects to and why, for the oldest supported versions."""

    name: str
    way_out: str
    """What to do about a finding."""
    runtimes: tuple[Runtime, ...]
    """Those concerned, where a finding does not say otherwise."""
    check: Callable[[GraphView], Iterator[Finding]]
    """Yields what `found` returns."""

    def findings(self, graph: GraphView) -> Iterator[Finding]:
        """Yield what *graph* does wrong."""
        for finding in self.check(graph):
            concerned = finding.runtimes or self.runtimes
            yield replace(finding, rule=self.name, way_out=self.way_out, runtimes=concerned)


def rule(name: str, way_out: str, *runtimes: Runtime) -> Callable[[Callable[[GraphView], Iterator[Finding]]], Rule]:
    """Make a `Rule` of a function; without *runtimes* it concerns all."""
    return partial(Rule, name, way_out, runtimes or tuple(Runtime))


def found(
    message: str,
    node: Node | None = None,
    *,
    severity: Severity = Severity.ERROR,
    tensor: str | None = None,
    module: str | None = None,
    runtimes: tuple[Runtime, ...] = (),
) -> Finding:
    """A finding at *node*, if there is one, to which its `Rule` adds the rest; *module* overrules the node's."""
    if node is not None and module is None:
        module = node.module
    op, label = (node.op, node.label) if node else (None, None)
    return Finding(severity, "", message, "", runtimes, label, op, module, tensor)


@dataclass(frozen=True)
class LintReport:
    """What is wrong with a model, errors first, and what it is."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]
    """As JSON types: file (its name), producer, ir_version, opsets, file_bytes, external_files ({name: bytes}),
    initializer_bytes (all constants, in the file or beside it), large_constant_bytes (those that `large-constant`
    objects to), nodes (functions expanded, bodies included), operators (counts, the most frequent first), inputs and
    outputs (name, type, shape, in which None is unknown), symbols (lengths at which symbolic axes were checked).
    """

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
            "runtimes": {runtime.value: oldest for runtime, oldest in OLDEST.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "facts": self.facts,
        }


def lint_model(path: str | os.PathLike[str], *, symbols: Mapping[str, int] | None = None) -> LintReport:
    """Check the ONNX model at *path* against every rule, in a child process.

    The child reads the model and external data beside it, and nothing else.

    Args:
        path: Any ONNX file.
        symbols: Lengths, from 1, of symbolic axes that are meant to be symbolic; the model is checked at them.

    Returns:
        The findings, errors first, and facts.

    Raises:
        InputError: The file is missing, too large, no ONNX model, damaged or lacks its external data; it takes more
            time or memory than the limit; or no input has a symbol of *symbols*.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except (OSError, ValueError):  # the child says what is wrong with it
        size = 0
    megabytes = MEGABYTES + COPIES * size // 2**20
    request = {"path": str(path), "symbols": dict(symbols or {}), "megabytes": megabytes}
    try:
        done = subprocess.run(
            CHILD,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            # Every thread reserves memory, and nothing here is worth a second one.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{path} takes more time to lint than the limit of {SECONDS:.0f} s: simplify it, or have it call its local "
            "functions less often"
        ) from None
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise InputError(
            f"{path} ended the process that reads it ({last[0][:200]}): it is damaged or made to do harm, or it needs "
            f"more memory than the limit of {megabytes} MB; export it again, with its weights beside it"
        )
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise InputError(answer["error"])
    return TypeAdapter(LintReport).validate_python(answer)
