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
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ppexport.backends.coreml.program import Function, Operation, Package
from ppexport.backends.coreml.specification import module_of
from ppexport.errors import ArtifactError, InputError

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


class Reason(str, Enum):
    """Why an operation leaves the Neural Engine."""

    FP32 = "fp32"
    INTEGER = "integer"
    GATHER = "data-dependent gather"
    NO_KERNEL = "no kernel"


@dataclass(frozen=True)
class Leaving:
    """An operation that leaves the Neural Engine."""

    name: str
    operation: str
    module: str | None
    """Dotted path of the PyTorch module, None where the name does not tell."""
    reason: Reason


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
        return dict(Counter(item.reason.value for item in self.leaving).most_common())

    @property
    def modules(self) -> dict[str, int]:
        """Operations that leave, by module, the most first."""
        return dict(Counter("unknown" if i.module is None else i.module for i in self.leaving).most_common())

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        leaving = [{**vars(item), "reason": item.reason.value} for item in self.leaving]
        return {**vars(self), "leaving": leaving, "reasons": self.reasons, "modules": self.modules}


def _reason_of(op: Operation, kinds: dict[str, str], constant: set[str]) -> Reason | None:
    """Why *op* leaves, None if it stays. *kinds* are the element types of all results, *constant* those known."""
    if op.type in NO_KERNEL:
        return Reason.NO_KERNEL
    if op.type in GATHERS and not constant.issuperset(op.reads("indices")):
        return Reason.GATHER
    # Indices are integers without being computed with; constants as parameters are no data.
    data = [name for key in op.inputs if key != "indices" for name in op.reads(key) if name not in constant]
    touched = {kinds.get(name, "") for name in (*data, *(port.name for port in op.outputs))}
    if "fp32" in touched:
        return Reason.FP32
    whole = op.type not in QUANTISES and any("int" in kind for kind in touched)
    return Reason.INTEGER if whole else None


def _count_crossings(steps: list[Operation], leaving: set[str]) -> int:
    """Changes of side in a schedule of *steps* that changes only where nothing more can run on its side.

    Raises ArtifactError for operations that wait for each other.
    """
    makers = {port.name: op.name for op in steps for port in op.outputs}
    needs = {op.name: {makers[n] for n in op.reads() if n in makers} for op in steps}
    pending, done, crossings, away, idle = list(steps), set[str](), -1, False, False
    while pending:
        crossings += 1
        before = len(pending)
        progress = True
        while progress:
            rest = []
            for op in pending:
                side = op.type in FREE or (op.name in leaving) == away
                if side and needs[op.name] <= done:
                    done.add(op.name)
                else:
                    rest.append(op)
            progress = len(rest) < len(pending)
            pending = rest
        if len(pending) == before:
            # Nothing could run on the side it started from.
            if idle:
                waiting = ", ".join(repr(op.name) for op in pending[:3])
                raise ArtifactError(f"the package is damaged: its operations wait for each other ({waiting})")
            crossings -= 1
            idle = True
        away = not away
    return max(crossings, 0)


def place(function: Function) -> PlacementReport:
    """Where the operations of *function* may run."""
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
            leaving.append(Leaving(op.name, op.type, module_of(op.name, op.reads()), reason))
    crossings = _count_crossings(steps, {item.name for item in leaving})
    return PlacementReport(function.name, len(steps), known, tuple(leaving), crossings)


def place_package(package: Package, function: str | None = None) -> PlacementReport:
    """Where the operations of one function of *package* may run; None is its default.

    Raises InputError for a function that it lacks.
    """
    name = package.default if function is None else function
    if name not in package.functions:
        raise InputError(f"the package has functions {', '.join(package.functions)}, not {name!r}")
    return place(package.functions[name])
