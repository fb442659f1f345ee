"""The result of comparing two columns of a parity run: figures of every input, and a verdict over all of them.

Every figure of quality is measured as the artifact runs. Where flips were examined, it is also measured with the same
routing, by injecting the reference's categories, and stands under a name of its own, `..._same_routing`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import NEAR_TIE, Gate
from ppexport.device.picture import TAPS, psnr, ssim
from ppexport.files import finite

Two = tuple[float, float]
"""A figure of the reference, and of the other one."""


@dataclass(frozen=True)
class Errors:
    """How far one picture is from another."""

    psnr: float
    max_abs: float
    p999: float
    ssim: float | None
    at: tuple[int, int] | None = None
    """(row, column) of the largest error, in SR pixels; None where the picture is not finite."""

    def within(self, gate: Gate) -> bool:
        """Whether the picture meets *gate*."""
        return self.psnr >= gate.psnr and self.max_abs <= gate.max_abs


def measure(reference: NDArray[np.float32], other: NDArray[np.float32]) -> Errors:
    """Errors of *other* (1, 3, H, W) against *reference*, peak 1."""
    if not np.isfinite(other).all():
        return Errors(-math.inf, math.inf, math.inf, None)
    difference = np.abs(other.astype(np.float64) - reference)
    first, second = (sr[0].transpose(1, 2, 0) for sr in (reference, other))
    row, column = np.unravel_index(difference.max(axis=(0, 1)).argmax(), difference.shape[2:])
    return Errors(
        psnr(reference, other, 1.0),
        float(difference.max()),
        float(np.quantile(difference, 0.999)),
        ssim(first, second, 1.0) if min(other.shape[2:]) >= TAPS else None,
        (int(row), int(column)),
    )


@dataclass
class Comparison:
    """One input of one pair. A field is None where it was not measured, or where a column does not report it."""

    name: str
    errors: Errors
    passed: bool
    reason: str = ""
    """Why it failed, or why flips were accepted."""
    equal_labels: float | None = None
    """Share of equal Pure-Pass labels, which must be 1."""
    equal_mask: float | None = None
    """Share of equal mask pixels, which must be 1."""
    capacity: int | None = None
    """Slots that the other one ran with."""
    impure: int = 0
    """Impure tokens of the reference."""
    flips: list[int] | None = None
    """Impure tokens of every layer whose category differs."""
    agreement: list[float] | None = None
    """Share of equal categories among the impure tokens of every layer."""
    tokens_db: float | None = None
    """This and the next are `ChosenAgain`'s, where flips had to be examined."""
    dictionary_db: float | None = None
    surest: float | None = None
    """The lead in the reference's own numbers of the surest flip that no earlier flip explains."""
    injected: Errors | None = None
    """Errors with the same categories in both, where flips had to be examined."""
    task: Two | None = None
    """PSNR-Y against ground truth, as both run."""
    task_same_routing: Two | None = None
    """The same with the same categories in both."""
    task_ssim: Two | None = None
    """SSIM-Y against ground truth, as both run; None for pictures too small for it."""
    task_ssim_same_routing: Two | None = None
    """The same with the same categories in both."""

    @property
    def masks_differ(self) -> bool:
        """Whether a label or a mask pixel differs."""
        return bool({self.equal_labels, self.equal_mask} - {None, 1.0})

    def fail(self, reason: str) -> None:
        """Let this input fail."""
        self.passed, self.reason = False, reason


CHANGES = {
    "psnr_y_change": "task",
    "psnr_y_change_same_routing": "task_same_routing",
    "ssim_y_change": "task_ssim",
    "ssim_y_change_same_routing": "task_ssim_same_routing",
}
"""{a name in the report: the field of a row whose mean change it is}."""


@dataclass
class Pair:
    """All inputs of two columns."""

    reference: str
    other: str
    gate: Gate
    rows: list[Comparison]
    first_bad_layer: str = ""

    def _changes(self, field: str) -> list[tuple[Comparison, float]]:
        """Every row with a ground truth, and the change of *field* in it; empty where one of them is not known."""
        found = []
        for row in self.rows:
            if getattr(row, field.removesuffix("_same_routing")) is None:
                continue
            figures = getattr(row, field)
            if figures is None:
                return []
            # Both may be infinite.
            found.append((row, 0.0 if figures[0] == figures[1] else figures[1] - figures[0]))
        return found

    def mean_change(self, field: str) -> float | None:
        """Mean of the other one minus the reference in *field* of a row, such as "task".

        None where no input has a ground truth, or the figure of one is not known.
        """
        changes = [change for _, change in self._changes(field)]
        return float(np.mean(changes)) if changes else None

    @property
    def failed_tasks(self) -> list[str]:
        """The fields of a row whose mean change of PSNR-Y is beyond the gate.

        Half precision must meet the gate both as it runs and with the same routing, int8 as it runs. In fp32 only near
        ties flip, and those are judged with the same routing, unless the categories are not known.
        """
        fields = ["task", "task_same_routing"]
        if self.gate.flips_count:
            fields = ["task"]
        elif self.gate.near_tie <= NEAR_TIE and self.mean_change("task_same_routing") is not None:
            fields = ["task_same_routing"]
        changes = [(field, self.mean_change(field)) for field in fields]
        # Written so that NaN fails.
        return [field for field, change in changes if change is not None and not abs(change) <= self.gate.task_change]

    @property
    def passed(self) -> bool:
        """Whether every input and the task metric meet the gate."""
        return not self.failed_tasks and all(row.passed for row in self.rows)

    @property
    def agreement(self) -> list[float] | None:
        """Share of equal categories in every layer, over the impure tokens of all inputs; None if not known."""
        known = [(row.flips, row.impure) for row in self.rows if row.flips is not None and row.impure]
        total = sum(impure for _, impure in known)
        return [1 - sum(layer) / total for layer in zip(*(flips for flips, _ in known), strict=True)] or None

    @property
    def worst(self) -> Comparison:
        """The failed input of the lowest PSNR, or the lowest of all; if only the task metric fails, what moved it."""
        failed = self.failed_tasks
        if failed and all(row.passed for row in self.rows):
            changes = self._changes(failed[0])
            down = sum(change for _, change in changes) < 0
            return min(changes, key=lambda found: found[1] if down else -found[1])[0]
        return min(self.rows, key=lambda row: (row.passed, row.errors.psnr))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinite figures become null."""
        data = {
            **asdict(self),
            **{name: self.mean_change(field) for name, field in CHANGES.items()},
            "passed": self.passed,
            "worst": self.worst.name,
            "agreement": self.agreement,
        }
        return finite(data)  # type: ignore[no-any-return]
