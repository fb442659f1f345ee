"""Which operations of a package leave the Neural Engine, as far as that is known without a device.

Apple documents no list. What is used here is what developers measured, and it errs on the side of leaving:

    fp32          the Neural Engine computes fp16 only
    integer       arithmetic, comparisons and selections of whole numbers; a place of the largest is one
    gather        at indices that depend on the input; at constant ones it stays
    no kernel     scatter, cumsum, sort, top-k and their like

What depends on constants alone is computed when the model is loaded, and a cast runs on either side. The number of
crossings is that of a schedule that stays on one side as long as anything can run on it: Core ML, which also weighs
the cost of a crossing, may keep more on one side. Read it as a comparison of two packages, not as a promise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ppexport.backends.coreml.program import Function, Operation
from ppexport.backends.coreml.specification import decode
from ppexport.errors import ArtifactError

NO_KERNEL = frozenset(
    (
        "argsort", "cumsum", "gather_nd", "non_maximum_suppression", "non_zero", "one_hot", "range_1d", "scatter",
        "scatter_along_axis", "scatter_nd", "topk",
    )
)  # fmt: skip
GATHERS = frozenset({"gather", "gather_along_axis"})
QUANTISES = frozenset({"quantize", "dequantize"})
"""Their int8 is no arithmetic of whole numbers: Apple says that the Neural Engine computes with it (iPhone 15 Pro)."""
FREE = frozenset({"cast", "identity"})
"""Run on whichever side their data is."""


@dataclass(frozen=True)
class Leaving:
    """An operation that leaves the Neural Engine."""

    name: str
    operation: str
    module: str | None
    """Dotted path of the PyTorch module, None where the name contains none."""
    reason: str
    """fp32, integer, data-dependent gather, or no kernel."""


@dataclass(frozen=True)
class PlacementReport:
    """Where the operations of one function may run."""

    function: str
    operations: int
    """Those that depend on the input."""
    constant: int
    """Those that depend on constants alone."""
    leaving: tuple[Leaving, ...]
    crossings: int
    """Times that a run goes from the Neural Engine to the CPU or GPU, or back."""

    @property
    def reasons(self) -> dict[str, int]:
        """Operations by reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.leaving).most_common())

    @property
    def modules(self) -> dict[str, int]:
        """Operations that leave, by module, the most first."""
        return dict(Counter("unknown" if i.module is None else i.module for i in self.leaving).most_common())

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "reasons": self.reasons, "modules": self.modules}


def _reason_of(op: Operation, kinds: dict[str, str], constant: set[str]) -> str | None:
    """Why *op* leaves, None if it stays. *kinds* are the element types of all results, *constant* those known."""
    if op.type in NO_KERNEL:
        return "no kernel"
    if op.type in GATHERS and not constant.issuperset(op.reads("indices")):
        return "data-dependent gather"
    # Indices are integers without being computed with; constants as parameters are no data.
    data = [name for key in op.inputs if key != "indices" for name in op.reads(key) if name not in constant]
    touched = {kinds.get(name, "") for name in (*data, *(port.name for port in op.outputs))}
    if "fp32" in touched:
        return "fp32"
    whole = op.type not in QUANTISES and any("int" in kind for kind in touched)
    return "integer" if whole else None


def _count_crossings(steps: list[Operation], leaving: set[str]) -> int:
    """Changes of side in a schedule of *steps* that changes only where nothing more can run on its side.

    Raises ArtifactError for operations that wait for each other.
    """
    makers = {port.name: op.name for op in steps for port in op.outputs}
    needs = {op.name: {makers[n] for n in op.reads() if n in makers} for op in steps}
    pending, done, crossings, away, idle = steps, set[str](), -1, False, False
    while pending:
        rest = []
        for op in pending:
            if (op.type in FREE or (op.name in leaving) == away) and needs[op.name] <= done:
                done.add(op.name)
            else:
                rest.append(op)
        ran = len(rest) < len(pending)
        if not ran and idle:
            waiting = ", ".join(repr(op.name) for op in pending[:3])
            raise ArtifactError(f"the package is damaged: its operations wait for each other ({waiting})")
        # A schedule may start on either side: nothing may run on the first one.
        crossings += ran
        pending, away, idle = rest, not away, not ran
    return max(crossings, 0)


def place(function: Function) -> PlacementReport:
    """Where the operations of *function* may run. Raises ArtifactError for operations that wait for each other."""
    kinds = {p.name: p.type.element.name for p in function.inputs if p.type is not None}
    constant: set[str] = set()
    steps: list[Operation] = []
    leaving: list[Leaving] = []
    known = 0
    for op in function.operations:
        names = [port.name for port in op.outputs]
        kinds.update({port.name: port.type.element.name for port in op.outputs if port.type is not None})
        if all(name in constant for name in op.reads()):
            constant.update(names)
            known += op.type != "const"
            continue
        steps.append(op)
        reason = None if op.type in FREE else _reason_of(op, kinds, constant)
        if reason is not None:
            # The name of a function's output contains no module, but the names of what it reads do.
            modules = [module for module in map(decode, (op.name, *op.reads())) if module is not None]
            leaving.append(Leaving(op.name, op.type, modules[0] if modules else None, reason))
    crossings = _count_crossings(steps, {item.name for item in leaving})
    return PlacementReport(function.name, len(steps), known, tuple(leaving), crossings)
