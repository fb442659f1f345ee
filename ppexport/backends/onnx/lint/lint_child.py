"""Lints a file that this process has made, or any ONNX file in the child process that `linting` starts."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppexport.backends.onnx.graph_view import GraphView, TensorType, element_name
from ppexport.backends.onnx.lint import rules_operators, rules_ranges, rules_storage, rules_tensors
from ppexport.backends.onnx.lint.linting import LintReport, Severity
from ppexport.backends.onnx.model_file import read_model
from ppexport.errors import InputError, PpexportError

RULES = (*rules_operators.RULES, *rules_tensors.RULES, *rules_ranges.RULES, *rules_storage.RULES)
"""In the order in which findings of equal severity are reported."""
MAX_REPORT = 64 << 20
"""Characters of the longest report that is handed over."""
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
    return LintReport(tuple(findings), facts)


def _port(name: str, kind: TensorType) -> dict[str, Any]:
    element = None if kind.element is None else element_name(kind.element)
    return {"name": name, "type": element, "shape": None if kind.shape is None else list(kind.shape)}


def answer(path: str, symbols: Mapping[str, int], megabytes: int) -> str:
    """The report on *path* as JSON, or why there is none; from now on this process has *megabytes* of memory."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no `resource`, macOS no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    try:
        text = json.dumps(lint_here(Path(path), symbols).to_dict())
        if len(text) > MAX_REPORT:
            raise InputError(
                f"the report on {path} is longer than the limit of {MAX_REPORT >> 20} MB: it finds a fault "
                "in almost every node"
            )
        return text
    except PpexportError as error:
        said = str(error)
    except MemoryError:
        said = (
            f"{path} needs more memory to lint than the limit of {megabytes} MB: keep its weights beside it (onnx.save "
            "with save_as_external_data=True), or have it call its local functions less often"
        )
    except Exception as error:  # whatever a file that was made to do harm brings onnx to raise
        said = f"{path} cannot be linted, it is probably damaged: {type(error).__name__}: {error}"[:500]
    return json.dumps({"error": said})


if __name__ == "__main__":
    print(answer(**json.load(sys.stdin)))
