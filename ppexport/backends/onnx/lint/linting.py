"""`lint_model`, and what a lint rule for ONNX models is. Needs no onnx: only the child process does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.lint_report import Finding, LintReport, Severity, lint_in_child
from ppexport.files import module_command

if TYPE_CHECKING:
    from ppexport.backends.onnx.graph_view import GraphView, Node

CHILD = module_command("ppexport.backends.onnx.lint.lint_child")
MEGABYTES, COPIES = 2048, 6
"""Memory of the child: a fixed part, and a multiple of the file, which onnx copies on its way through C++."""


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
    way_out = "simplify it, or have it call its local functions less often"
    return lint_in_child(path, CHILD, megabytes, way_out, symbols)
