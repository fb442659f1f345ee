"""What came of comparing two columns of a parity run: figures of every input, and what follows from all of them.

Every figure of quality is measured as the artifact runs. Where flips were examined, it is also measured with the same
routing, by injecting the reference's categories, and stands under a name of its own, `..._same_routing`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import NEAR_TIE, Gate
from ppexport.device.picture import TAPS, psnr, ssim
from ppexport.files import finite

Pictures = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of reference and other, (1, 3, H, W)."""


@dataclass(frozen=True)
class Errors:
    """How far one picture is from another."""

    psnr: float
    max_abs: float
    p999: float
    ssim: float | None
    at: tuple[int, int] | None = None
    """(row, column) of the largest error, SR pixels; None where the picture is not finite."""

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
    """One input of one pair."""

    name: str
    errors: Errors
    passed: bool
    reason: str = ""
    """Why it failed, or why flips were accepted."""
    equal_labels: float | None = None
    """Share of equal Pure-Pass labels, which must be 1; None where a column does not tell."""
    equal_mask: float | None = None
    """Share of equal mask pixels, which must be 1."""
    capacity: int | None = None
    """Slots that the other one ran with."""
    impure: int = 0
    """Impure tokens of the reference."""
    flips: list[int] | None = None
    """Impure tokens of every layer whose category differs; None where a column does not tell."""
    agreement: list[float] | None = None
    """Share of equal categories among the impure tokens of every layer."""
    tokens_db: float | None = None
    """Of `ChosenAgain`, where flips made it necessary to look; so is the next."""
    dictionary_db: float | None = None
    surest: float | None = None
    """The lead in the reference's own numbers of the surest flip that no earlier flip explains."""
    injected: Errors | None = None
    """Errors after the reference's categories were injected, where flips made that necessary."""
    judged: Pictures | None = field(default=None, repr=False)
    """The pictures of reference and other with the same categories, where flips made that necessary."""
    task: tuple[float, float] | None = None
    """PSNR-Y against ground truth of reference and other, as they run."""
    task_same_routing: tuple[float, float] | None = None
    """The same with the same categories in both; None where flips could not be examined, or no category is told."""
    task_ssim: tuple[float, float] | None = None
    """SSIM-Y against ground truth of reference and other, as they run; None for pictures too small for it."""
    task_ssim_same_routing: tuple[float, float] | None = None
    """The same with the same categories in both."""

    @property
    def masks_differ(self) -> bool:
        """Whether a label or a mask pixel differs."""
        return bool({self.equal_labels, self.equal_mask} - {None, 1.0})

    def fail(self, reason: str) -> None:
        """Let this input fail."""
        self.passed, self.reason = False, reason


@dataclass
class Pair:
    """All inputs of two columns."""

    reference: str
    other: str
    gate: Gate
    rows: list[Comparison] = field(default_factory=list)
    first_bad_layer: str = ""

    def _changes(self, field: str) -> list[tuple[Comparison, float]] | None:
        """Every row that is measured against ground truth and how much *field* changes; None where one is not told."""
        found = []
        for row in self.rows:
            if getattr(row, field.removesuffix("_same_routing")) is None:
                continue
            pair = getattr(row, field)
            if pair is None:
                return None
            # Both may be infinite.
            found.append((row, 0.0 if pair[0] == pair[1] else pair[1] - pair[0]))
        return found or None

    def _mean_change(self, field: str) -> float | None:
        changes = self._changes(field)
        return None if changes is None else float(np.mean([change for _, change in changes]))

    @property
    def psnr_y_change(self) -> float | None:
        """Mean PSNR-Y of the other as it runs minus that of the reference; None where no input has a ground truth."""
        return self._mean_change("task")

    @property
    def psnr_y_change_same_routing(self) -> float | None:
        """The same with the same categories in both; None where an input's cannot be told."""
        return self._mean_change("task_same_routing")

    @property
    def ssim_y_change(self) -> float | None:
        """Mean SSIM-Y of the other as it runs minus that of the reference, which no gate judges."""
        return self._mean_change("task_ssim")

    @property
    def ssim_y_change_same_routing(self) -> float | None:
        """The same with the same categories in both."""
        return self._mean_change("task_ssim_same_routing")

    @property
    def failed_tasks(self) -> list[str]:
        """The fields of a row whose mean change of PSNR-Y is beyond the gate.

        Half precision must meet the gate both as it runs and with the same routing, int8 as it runs. In fp32 only near
        ties flip, and those are judged with the same routing, unless no category is told.
        """
        fields = ["task", "task_same_routing"]
        if self.gate.flips_count:
            fields = ["task"]
        elif self.gate.near_tie <= NEAR_TIE and self.psnr_y_change_same_routing is not None:
            fields = ["task_same_routing"]
        changes = [(field, self._mean_change(field)) for field in fields]
        # Written so that NaN fails.
        return [field for field, change in changes if change is not None and not abs(change) <= self.gate.task_change]

    @property
    def passed(self) -> bool:
        """Whether every input and the task metric meet the gate."""
        return not self.failed_tasks and all(row.passed for row in self.rows)

    @property
    def fails_only_as_it_runs(self) -> bool:
        """Whether it is only the task metric, and that only with the artifact's own categories, that fails."""
        return self.failed_tasks[:1] == ["task"] and all(row.passed for row in self.rows)

    @property
    def agreement(self) -> list[float] | None:
        """Share of equal categories in every layer, over the impure tokens of all inputs; None where none is told."""
        told = [(row.flips, row.impure) for row in self.rows if row.flips is not None and row.impure]
        total = sum(impure for _, impure in told)
        return [1 - sum(layer) / total for layer in zip(*(flips for flips, _ in told), strict=True)] or None

    @property
    def worst(self) -> Comparison:
        """The failed input of the lowest PSNR, or the lowest of all; if the task metric fails, what moved it."""
        failed = self.failed_tasks
        changes = self._changes(failed[0]) if failed else None
        if changes is not None and all(row.passed for row in self.rows):
            down = sum(change for _, change in changes) < 0
            return min(changes, key=lambda found: found[1] if down else -found[1])[0]
        return min(self.rows, key=lambda row: (row.passed, row.errors.psnr))

    @property
    def place(self) -> str:
        """Where in the picture the worst input is off, for people."""
        at = self.worst.errors.at
        return "" if at is None else f", most at row {at[0]}, column {at[1]} of the result"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinite figures become null."""
        named = ("psnr_y_change", "psnr_y_change_same_routing", "ssim_y_change", "ssim_y_change_same_routing", "passed")
        data = {
            **asdict(self),
            **{name: getattr(self, name) for name in named},
            "worst": self.worst.name,
            "agreement": self.agreement,
        }
        for row in data["rows"]:
            del row["judged"]
        return finite(data)  # type: ignore[no-any-return]
