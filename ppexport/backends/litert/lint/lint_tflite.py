"""Lints a LiteRT file, in the child process that `lint_tflite` starts.

The parser of the runtime's package is generated code, which believes what a file says of its own lengths.
"""

from __future__ import annotations

import json
import stat
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ppexport.backends import lint_report
from ppexport.backends.lint_report import Finding, LintReport, Severity, lint_in_child
from ppexport.backends.litert.lint.file_view import Tensor, read_graphs
from ppexport.backends.litert.lint.half_range import BEYOND_HALF
from ppexport.backends.litert.lint.rules_gpu import RULES
from ppexport.backends.litert.tflite import text
from ppexport.errors import InputError, first_line, require
from ppexport.files import module_command

CHILD = module_command("ppexport.backends.litert.lint.lint_tflite")
MEGABYTES, COPIES = 2048, 6
"""Memory of the child: a fixed part, and a multiple of the file."""
LARGEST = (1 << 31) - 1
"""Bytes that a flatbuffer can have."""
GPU = "litert-gpu"
OLDEST = {GPU: "the GPU accelerator of LiteRT 2.3"}


def lint_tflite(path: Path) -> LintReport:
    """Check the LiteRT file *path* against every rule, in a child process.

    Raises:
        InputError: the file is missing, too large, no regular or no LiteRT file, or damaged.
        UnavailableError: ai-edge-litert, whose parser is used, is not installed.
    """
    require("ai_edge_litert", "litert-run")
    try:
        entry = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    size = entry.st_size
    # A pipe would be waited for, and a device has no end.
    if not stat.S_ISREG(entry.st_mode):
        raise InputError(f"{path} is a folder, pipe or device, not a LiteRT file (.tflite)")
    if size > LARGEST:
        raise InputError(f"{path} has {size} bytes, and a LiteRT file has {LARGEST} at most")
    return lint_in_child(path, CHILD, MEGABYTES + COPIES * size // 2**20, "export it again, it is probably damaged")


def lint_here(path: Path, symbols: Mapping[str, int]) -> LintReport:
    """As `lint_tflite`, in this process and without its limits; a file has no *symbols*."""
    content = path.read_bytes()
    graphs, model = read_graphs(content, path.name)
    findings = []
    for graph in graphs:
        where = f" (signature {graph.name})" if len(graphs) > 1 else ""
        for rule in (*RULES, BEYOND_HALF):
            for said in rule.check(graph):
                severity, message, op = said
                place = op.label, op.kind, op.module
                findings.append(Finding(severity, rule.name, message + where, rule.way_out, (GPU,), *place))
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    kinds = Counter(op.kind for graph in graphs for op in graph.operators)
    facts = {
        "file": path.name,
        "producer": text(model.description),
        "file_bytes": len(content),
        "nodes": kinds.total(),
        "operators": dict(kinds.most_common()),
        "signatures": [graph.name for graph in graphs],
        "inputs": _ports(graphs[0].inputs),
        "outputs": _ports(graphs[0].outputs),
    }
    return LintReport(tuple(findings), facts, OLDEST)


def _ports(tensors: Mapping[str, Tensor]) -> list[dict[str, object]]:
    return [{"name": name, "type": port.kind, "shape": list(port.shape)} for name, port in tensors.items()]


if __name__ == "__main__":
    print(lint_report.answer(lint_here, **json.load(sys.stdin)))
