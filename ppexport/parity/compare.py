"""Compares two columns of a parity run: errors of the pictures, agreement of the routing, and the gates.

Every figure of quality is measured as the file runs. Where flips were examined, it is also measured with the same
routing, by injecting the reference's categories, and stands under a name of its own, `..._same_routing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.picture import TAPS, psnr, psnr_y, ssim, ssim_y, to_uint8
from ppexport.errors import counted
from ppexport.files import finite
from ppexport.parity.columns import Column, Sample
from ppexport.parity.gates import NEAR_TIE, Gate
from ppexport.parity.inputs import ParityInput, Pixels

Pictures = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of reference and other."""
Both = tuple[float, float]


@dataclass(frozen=True)
class Seen:
    """What the reference would have chosen from the numbers that the other one chose from (see `rechoose`)."""

    categories: NDArray[np.uint8]
    """(layers, n)."""
    gaps: NDArray[np.float32]
    """(layers, n): lead of the best similarity over the second best."""
    tokens_db: float
    """Power of the reference's tokens over that of their error, in the worst layer."""
    dictionary_db: float
    """The same of the dictionaries."""


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
    """Of `Seen`, where flips made it necessary to look; so is the next."""
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
        return self.task_ok and all(row.passed for row in self.rows)

    @property
    def task_ok(self) -> bool:
        """Whether the task metric meets the gate."""
        return not self.failed_tasks

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
        data = {
            **asdict(self),
            "psnr_y_change": self.psnr_y_change,
            "psnr_y_change_same_routing": self.psnr_y_change_same_routing,
            "ssim_y_change": self.ssim_y_change,
            "ssim_y_change_same_routing": self.ssim_y_change_same_routing,
            "passed": self.passed,
            "worst": self.worst.name,
            "agreement": self.agreement,
        }
        for row in data["rows"]:
            del row["judged"]
        return finite(data)  # type: ignore[no-any-return]


def share_equal(a: NDArray[np.generic] | None, b: NDArray[np.generic] | None) -> float | None:
    """Share of equal entries; None where both are missing, 0 where only one is."""
    if a is None or b is None or a.shape != b.shape:
        return None if a is None and b is None else 0.0
    return float((a == b).mean())


def measure(reference: NDArray[np.float32], other: NDArray[np.float32]) -> Errors:
    """Errors of *other* (1, 3, H, W) against *reference*."""
    if not np.isfinite(other).all():
        return Errors(-math.inf, math.inf, math.inf, None)
    difference = np.abs(other.astype(np.float64) - reference)
    similar = (
        ssim(reference[0].transpose(1, 2, 0), other[0].transpose(1, 2, 0), 1.0)
        if min(other.shape[2:]) >= TAPS
        else None
    )
    row, column = np.unravel_index(difference.max(axis=(0, 1)).argmax(), difference.shape[2:])
    return Errors(
        psnr(reference, other, 1.0),
        float(difference.max()),
        float(np.quantile(difference, 0.999)),
        similar,
        (int(row), int(column)),
    )


Rerun = Callable[[ParityInput, NDArray[np.uint8]], Sample]
"""Computes an input again with the reference's categories injected."""


Look = Callable[[ParityInput, NDArray[np.uint8]], Seen]
"""Looks at what the other one chose from, with the reference's categories injected."""


@dataclass(frozen=True)
class Means:
    """How flips can be examined."""

    rerun: Rerun | None = None
    """Computes the other one again with the reference's categories."""
    follow: Rerun | None = None
    """Computes the reference again with the other one's, where nothing can be injected into that."""
    look: Look | None = None
    """Tells what the other one's choices were made from, with the categories of the run that is judged."""

    def again(self, item: ParityInput, reference: Sample, other: Sample) -> tuple[Sample, Sample] | None:
        """Reference and other, computed with the same routing; None where there is no way to."""
        assert reference.categories is not None
        assert other.categories is not None
        if self.rerun is not None:
            return reference, self.rerun(item, reference.categories)
        return None if self.follow is None else (self.follow(item, other.categories), other)


NO_MEANS = Means()


def _surest(
    row: Comparison, reference: Sample, again: Sample, impure: NDArray[np.bool_], gate: Gate, seen: Seen | None
) -> tuple[int, float, float]:
    """Flips in the injected run *again* that need an excuse, by how much the reference is sure of the surest, and how
    sure it may be.

    Where *seen* tells what the choices were made from, the reference chooses again from the very same numbers, and a
    choice that differs still has to be a near tie of fp32: the rounding of those numbers is excused by itself, in so
    far as they meet the gate. Else the gap of the reference's own numbers has to do.
    """
    assert reference.categories is not None
    assert reference.gaps is not None
    assert again.categories is not None
    chosen, gaps, limit = reference.categories, reference.gaps, gate.near_tie
    if seen is not None:
        chosen, gaps, limit = seen.categories, seen.gaps, NEAR_TIE
        row.tokens_db, row.dictionary_db = seen.tokens_db, seen.dictionary_db
    differs = (chosen != again.categories)[:, impure]
    return int(differs.sum()), float(gaps[:, impure][differs].max()) if differs.any() else 0.0, limit


def _judge_flips(
    row: Comparison,
    item: ParityInput,
    reference: Sample,
    other: Sample,
    gate: Gate,
    means: Means,
) -> None:
    """Fill *row* with flips; where there are any, decide by injection whether they are near ties."""
    if reference.categories is None and other.categories is None:
        return
    if reference.categories is None or other.categories is None:
        row.passed, row.reason = False, "only one of the two tells its categories"
        return
    impure = np.ones(reference.categories.shape[1], bool) if reference.pure is None else ~reference.pure
    differs = (reference.categories != other.categories)[:, impure]
    row.flips, row.impure = [int(count) for count in differs.sum(axis=1)], int(impure.sum())
    row.agreement = [1 - count / max(row.impure, 1) for count in row.flips]
    if not differs.any():
        return
    pair = means.again(item, reference, other)
    if pair is None or reference.gaps is None:
        row.passed, row.reason = False, f"{sum(row.flips)} categories flipped, and they cannot be injected here"
        return
    # With the same routing in all earlier layers, what still flips is explained by no earlier flip.
    reference, again = pair
    assert reference.categories is not None
    assert again.categories is not None
    differs_still = (reference.categories != again.categories)[:, impure]
    unexplained = int(differs_still.sum())
    if reference.gaps is not None:
        row.surest = float(reference.gaps[:, impure][differs_still].max(initial=0.0))
    routing = reference.categories if means.rerun is not None else again.categories
    # In fp32 the gap decides: there is no rounding to be excused. In int8 nothing needs an excuse.
    rounds = gate.near_tie > NEAR_TIE and not gate.flips_count
    seen = means.look(item, routing) if means.look is not None and rounds else None
    unexcused, surest, limit = _surest(row, reference, again, impure, gate, seen)
    row.injected, row.judged = measure(reference.sr, again.sr), (reference.sr, again.sr)
    near = seen is None or seen.tokens_db >= gate.psnr
    row.passed = surest < limit and near and row.injected.within(gate)
    if row.passed and seen is not None:
        row.reason = f"{counted(unexplained, 'rounded choice')}, {counted(unexcused, 'near tie')}; equal once injected"
    elif row.passed and not gate.flips_count:
        row.reason = f"{counted(unexplained, 'near tie')} (gap below {limit:g}) regrouped tokens; equal once injected"
    elif row.passed:
        row.reason = f"{sum(row.flips) / differs.size:.1%} of the categories flipped, the surest by {surest:.1e}"
    elif surest >= limit:
        row.reason = f"a category flipped although the reference was sure of it by {surest:.1e}"
    elif not near:
        assert seen is not None
        row.reason = f"the tokens of a layer are off ({seen.tokens_db:.1f} dB) even with the reference's categories"
    else:
        row.reason = "the picture differs even with the reference's categories"


def _compare(item: ParityInput, reference: Sample, other: Sample, gate: Gate, means: Means) -> Comparison:
    errors = measure(reference.sr, other.sr)
    row = Comparison(item.name, errors, errors.within(gate))
    if not row.passed:
        row.reason = f"{errors.psnr:.1f} dB, largest error {errors.max_abs:.1e}"
    _judge_flips(row, item, reference, other, gate, means)
    row.capacity = other.capacity
    row.equal_labels = share_equal(reference.labels, other.labels)
    row.equal_mask = share_equal(reference.pure, other.pure)
    if reference.impure != other.impure or {row.equal_labels, row.equal_mask} - {None, 1.0}:
        row.passed, row.reason = False, f"the masks differ: {reference.impure} and {other.impure} impure tokens"
    # Whatever the same routing would give: what runs is what is judged.
    if not (np.isfinite(reference.sr).all() and np.isfinite(other.sr).all()):
        row.passed, row.reason = False, "the picture holds NaN or infinite values"
    return row


def _measure_task(row: Comparison, item: ParityInput, pictures: Pictures, scale: int) -> None:
    """Fill *row* with PSNR-Y and SSIM-Y of *pictures*, as both run, and of those with the same routing."""
    if item.hr is None or min(item.hr.shape[:2]) <= 2 * scale:
        return
    row.task, row.task_ssim = _against_truth(pictures, item.hr, scale)
    if row.judged is not None:
        row.task_same_routing, row.task_ssim_same_routing = _against_truth(row.judged, item.hr, scale)
    elif row.flips is not None and not any(row.flips):
        row.task_same_routing, row.task_ssim_same_routing = row.task, row.task_ssim


def _against_truth(pictures: Pictures, hr: Pixels, scale: int) -> tuple[Both, Both | None]:
    """PSNR-Y and, where they are large enough for it, SSIM-Y of both *pictures* against *hr*."""
    first, second = (to_uint8(np.nan_to_num(sr)) for sr in pictures)
    quality = (psnr_y(first, hr, scale), psnr_y(second, hr, scale))
    if min(hr.shape[:2]) - 2 * scale < TAPS:
        return quality, None
    return quality, (ssim_y(first, hr, scale), ssim_y(second, hr, scale))


def compare_columns(
    names: tuple[str, str],
    inputs: list[ParityInput],
    reference: Column,
    other: Column,
    gate: Gate,
    scale: int,
    means: Means = NO_MEANS,
) -> Pair:
    """Compare column *other* with *reference*, input by input; *means* are for examining flips."""
    pair = Pair(*names, gate)
    for item in inputs:
        row = _compare(item, reference[item.name], other[item.name], gate, means)
        _measure_task(row, item, (reference[item.name].sr, other[item.name].sr), scale)
        pair.rows.append(row)
    return pair
