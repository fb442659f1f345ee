"""`ppexport lint`: what in an ONNX file would fail, run slowly, or be needlessly large on an edge runtime.

Works on any ONNX model, ours or not, without running it and without any runtime installed: the rules know the oldest
versions that this project supports. Needs the `export` extra (onnx); never torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ppexport.backends.onnx.reading.build import build_view
from ppexport.backends.onnx.reading.model_file import read_model
from ppexport.backends.onnx.reading.view import GraphView, TensorType, element_name
from ppexport.backends.onnx.rules import ALL_RUNTIMES, RULES, Finding, Runtime, Severity
from ppexport.backends.onnx.rules.constants import large_constants
from ppexport.errors import InputError

CAPACITIES = re.compile(r"[1-9]\d{0,8}(,[1-9]\d{0,8})+")
"""Several capacities, as the builder writes them."""
_ORDER = {severity: number for number, severity in enumerate(Severity)}


@dataclass(frozen=True)
class Facts:
    """What the model is, apart from what is wrong with it."""

    file: str
    """File name."""
    producer: str
    """The exporter and its version, as the file says."""
    ir_version: int
    opsets: dict[str, int]
    """{operator domain: version}; "" is the standard one."""
    file_bytes: int
    external_files: dict[str, int]
    """{file name: bytes} of external data beside the model."""
    initializer_bytes: int
    """All stored constants, in the file or beside it."""
    large_constant_bytes: int
    """Those of them that the rule `large-constant` objects to."""
    nodes: int
    """With local functions expanded, and the nodes inside control flow."""
    operators: dict[str, int]
    """{operator: count}, the most frequent first."""
    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]
    symbols: dict[str, int]
    """Lengths at which symbolic axes were checked."""


@dataclass(frozen=True)
class LintReport:
    """Findings, errors first, and facts."""

    findings: tuple[Finding, ...]
    facts: Facts
    runtimes: tuple[Runtime, ...]
    """The runtimes that were asked about; findings that concern none of them are left out."""

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
        facts = vars(self.facts) | {
            "inputs": [_tensor_dict(name, kind) for name, kind in self.facts.inputs.items()],
            "outputs": [_tensor_dict(name, kind) for name, kind in self.facts.outputs.items()],
        }
        return {
            "ok": self.ok,
            "counts": {severity.value: count for severity, count in self.counts.items()},
            "runtimes": {runtime.value: runtime.oldest for runtime in self.runtimes},
            "findings": [finding.to_dict() for finding in self.findings],
            "facts": facts,
        }


def lint_model(
    path: str | PathLike[str],
    *,
    symbols: Mapping[str, int] | None = None,
    runtimes: Collection[Runtime] = ALL_RUNTIMES,
) -> LintReport:
    """Check the ONNX model at *path* against every rule that concerns *runtimes*.

    *symbols* gives lengths to symbolic axes that are meant to be symbolic: the model is then checked as if they were
    fixed. A capacity set of this project says so itself and is checked at its largest capacity. Reads the model and
    external data beside it, and nothing else.

    Raises InputError for a file that is missing, too large, no ONNX model, damaged or lacking its external data, and
    for a symbol that no input has.
    """
    lengths = dict(symbols or {})
    if any(length < 1 for length in lengths.values()):
        raise InputError("the length of a symbolic axis is at least 1")
    source = read_model(Path(path))
    view = build_view(source, {**_own_symbols(source.proto), **lengths})
    wanted = tuple(runtime for runtime in Runtime if runtime in runtimes)
    found = [finding for rule in RULES for finding in rule.check(view) if set(finding.runtimes) & set(wanted)]
    found.sort(key=lambda finding: _ORDER[finding.severity])
    return LintReport(tuple(found), _facts(view), wanted)


def _own_symbols(model: ModelProto) -> dict[str, int]:
    """The length of `slots` that the metadata of a capacity set gives, if *model* is one."""
    said = {entry.key: entry.value for entry in model.metadata_props}.get("ppexport.capacities", "")
    if not CAPACITIES.fullmatch(said):
        return {}
    return {"slots": max(int(number) for number in said.split(","))}


def describe_rules() -> dict[str, str]:
    """{rule: its documentation}, for people: what it forbids, where, why, and the way out."""
    return {rule.id: "\n".join(line.strip() for line in (rule.__doc__ or "").splitlines()).strip() for rule in RULES}


def _facts(view: GraphView) -> Facts:
    model = view.model
    return Facts(
        file=view.source.path.name,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        ir_version=model.ir_version,
        opsets={str(entry.domain): int(entry.version) for entry in model.opset_import},
        file_bytes=view.source.file_bytes,
        external_files=dict(view.source.external),
        initializer_bytes=sum(constant.bytes for constant in view.constants.values()),
        large_constant_bytes=sum(constant.bytes for constant in large_constants(view)),
        nodes=view.operators.total(),
        operators=dict(view.operators.most_common()),
        inputs=dict(view.inputs),
        outputs=dict(view.outputs),
        symbols=dict(view.symbols),
    )


def _tensor_dict(name: str, kind: TensorType) -> dict[str, Any]:
    return {
        "name": name,
        "type": None if kind.element is None else element_name(kind.element),
        "shape": None if kind.shape is None else list(kind.shape),
    }
