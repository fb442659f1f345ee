"""Lints a file that this process has made, or any ONNX file in the child process that `linting` starts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppexport.backends import lint_report
from ppexport.backends.lint_report import LintReport, Severity
from ppexport.backends.onnx.graph_view import GraphView, TensorType, element_name
from ppexport.backends.onnx.lint import rules_operators, rules_ranges, rules_storage, rules_tensors
from ppexport.backends.onnx.lint.linting import OLDEST
from ppexport.backends.onnx.model_file import read_model
from ppexport.errors import InputError

RULES = (*rules_operators.RULES, *rules_tensors.RULES, *rules_ranges.RULES, *rules_storage.RULES)
"""In the order in which findings of equal severity are reported."""
CAPACITIES = re.compile(r"[1-9]\d{0,8}(,[1-9]\d{0,8})+")
"""Several capacities, as the builder writes them."""


def lint_here(path: Path, symbols: Mapping[str, int] | None = None) -> LintReport:
    """As `lint_model`, in this process and without its limits."""
    lengths = dict(symbols or {})
    if any(length < 1 for length in lengths.values()):
        raise InputError("the length of a symbolic axis is at least 1")
    source = read_model(path)
    said = {entry.key: entry.value for entry in source.proto.metadata_props}.get("ppexport.capacities", "")
    if CAPACITIES.fullmatch(said):  # a capacity set is checked at its largest capacity
        lengths = {"slots": max(int(number) for number in said.split(",")), **lengths}
    view = GraphView(source, lengths)
    findings = [finding for rule in RULES for finding in rule.findings(view)]
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    model = view.model
    facts = {
        "file": path.name,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {entry.domain: entry.version for entry in model.opset_import},
        "file_bytes": source.file_bytes,
        "external_files": source.external,
        "initializer_bytes": sum(constant.bytes for constant in view.constants.values()),
        "large_constant_bytes": sum(item[0].bytes for item in rules_storage.large_constants(view)),
        "nodes": view.operators.total(),
        "operators": dict(view.operators.most_common()),
        "inputs": [_port(name, kind) for name, kind in view.inputs.items()],
        "outputs": [_port(name, kind) for name, kind in view.outputs.items()],
        "symbols": lengths,
    }
    oldest = {runtime.value: version for runtime, version in OLDEST.items()}
    return LintReport(tuple(findings), facts, oldest)


def _port(name: str, kind: TensorType) -> dict[str, Any]:
    element = None if kind.element is None else element_name(kind.element)
    return {"name": name, "type": element, "shape": None if kind.shape is None else list(kind.shape)}


WAY_OUT = (
    "keep its weights beside it (onnx.save with save_as_external_data=True), or have it call its local functions less "
    "often"
)
"""For a file that needs too much memory."""


def answer(path: str, symbols: Mapping[str, int], megabytes: int) -> str:
    """As `lint_report.answer`."""
    return lint_report.answer(lint_here, path, symbols, megabytes, WAY_OUT)


if __name__ == "__main__":
    print(answer(**json.load(sys.stdin)))
