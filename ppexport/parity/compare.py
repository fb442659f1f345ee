"""Compares two columns of a parity run: errors of the pictures, agreement of the routing, and the gates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.files import finite
from ppexport.metrics import psnr, psnr_y, ssim
from ppexport.parity.columns import Column, Sample
from ppexport.parity.inputs import ParityInput
from ppexport.picture import to_uint8

NEAR_TIE = 1e-6
"""Two categories closer than this may fall either way in fp32."""
HALF_TIE = 1e-3
"""The same in fp16, whose roundings reach the similarities through the tokens. Measured for the bundled x2 at 32x32, on
all inputs: of the flips that no earlier flip explains, the surest led by 2.1e-4."""


@dataclass(frozen=True)
class Gate:
    """What a pair of columns must meet on every input."""

    psnr: float
    """Least PSNR between the outputs, in dB, peak 1."""
    max_abs: float = math.inf
    """Largest absolute error."""
    task_change: float = math.inf
    """Largest change of the mean PSNR-Y against ground truth, in dB."""
    near_tie: float = NEAR_TIE
    """Two categories closer than this may fall either way."""
    flips_count: bool = False
    """Whether PSNR-Y is judged with the flips the other one made, instead of with the reference's categories."""


TWIN_GATE = Gate(psnr=110.0, max_abs=2e-5)
INT8_GATE = Gate(psnr=0.0, task_change=0.10, near_tie=math.inf, flips_count=True)
"""Of int8 only the picture's quality is judged, flips and all: how far it is from fp32, and how many tokens chose
another category, is reported."""
ARTIFACT_GATES = {
    "fp32": Gate(psnr=90.0, task_change=0.001),
    "fp16": Gate(psnr=55.0, task_change=0.02, near_tie=HALF_TIE),
    "int8": INT8_GATE,
    "mixed": INT8_GATE,
}


@dataclass(frozen=True)
class Errors:
    """How far one picture is from another."""

    psnr: float
    max_abs: float
    p999: float
    ssim: float | None

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
    flips: list[int] | None = None
    """Impure tokens of every layer whose category differs; None where a column does not tell."""
    injected: Errors | None = None
    """Errors after the reference's categories were injected, where flips made that necessary."""
    injected_sr: NDArray[np.float32] | None = field(default=None, repr=False)
    """The picture with injected categories."""
    task: tuple[float, float] | None = None
    """PSNR-Y against ground truth of reference and other."""


@dataclass
class Pair:
    """All inputs of two columns."""

    reference: str
    other: str
    gate: Gate
    rows: list[Comparison] = field(default_factory=list)
    task_change: float | None = None
    """Mean PSNR-Y of the other minus that of the reference."""
    first_bad_layer: str = ""

    @property
    def passed(self) -> bool:
        """Whether every input and the task metric meet the gate."""
        return self.task_ok and all(row.passed for row in self.rows)

    @property
    def task_ok(self) -> bool:
        """Whether the task metric meets the gate."""
        return self.task_change is None or abs(self.task_change) <= self.gate.task_change

    @property
    def worst(self) -> Comparison:
        """The failed input with the lowest PSNR, or the lowest of all."""
        return min(self.rows, key=lambda row: (row.passed, row.errors.psnr))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinite figures become null."""
        data = {**asdict(self), "passed": self.passed, "worst": self.worst.name}
        for row in data["rows"]:
            del row["injected_sr"]
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
        ssim(reference[0].transpose(1, 2, 0), other[0].transpose(1, 2, 0), 1.0) if min(other.shape[2:]) > 10 else None
    )
    return Errors(psnr(reference, other, 1.0), float(difference.max()), float(np.quantile(difference, 0.999)), similar)


Rerun = Callable[[ParityInput, NDArray[np.uint8]], Sample]
"""Computes an input again with the reference's categories injected."""


def _judge_flips(
    row: Comparison, item: ParityInput, reference: Sample, other: Sample, gate: Gate, rerun: Rerun | None
) -> None:
    """Fill *row* with flips; where there are any, decide by injection whether they are near ties."""
    if reference.categories is None and other.categories is None:
        return
    if reference.categories is None or other.categories is None:
        row.passed, row.reason = False, "only one of the two tells its categories"
        return
    impure = slice(None) if reference.pure is None else ~reference.pure
    differs = (reference.categories != other.categories)[:, impure]
    row.flips = [int(count) for count in differs.sum(axis=1)]
    if not differs.any():
        return
    if rerun is None or reference.gaps is None:
        row.passed, row.reason = False, f"{sum(row.flips)} categories flipped, and they cannot be injected here"
        return
    # With the reference's routing in all earlier layers, what still flips is explained by no earlier flip.
    again = rerun(item, reference.categories)
    assert again.categories is not None
    unexplained = (reference.categories != again.categories)[:, impure]
    largest = float(reference.gaps[:, impure][unexplained].max()) if unexplained.any() else 0.0
    row.injected = measure(reference.sr, again.sr)
    row.injected_sr = again.sr
    row.passed = largest < gate.near_tie and row.injected.within(gate)
    if row.passed:
        row.reason = (
            f"{int(unexplained.sum())} near ties (gap below {gate.near_tie:g}) regrouped tokens; equal once injected"
            if math.isfinite(gate.near_tie)
            else f"{sum(row.flips) / differs.size:.1%} of the categories flipped, the surest by {largest:.1e}"
        )
    elif largest >= gate.near_tie:
        row.reason = f"a category flipped although the reference was sure of it by {largest:.1e}"
    else:
        row.reason = "the picture differs even with the reference's categories"


def _compare(item: ParityInput, reference: Sample, other: Sample, gate: Gate, rerun: Rerun | None) -> Comparison:
    errors = measure(reference.sr, other.sr)
    row = Comparison(item.name, errors, errors.within(gate))
    if not row.passed:
        row.reason = f"{errors.psnr:.1f} dB, largest error {errors.max_abs:.1e}"
    _judge_flips(row, item, reference, other, gate, rerun)
    row.capacity = other.capacity
    row.equal_labels = share_equal(reference.labels, other.labels)
    row.equal_mask = share_equal(reference.pure, other.pure)
    if reference.impure != other.impure or {row.equal_labels, row.equal_mask} - {None, 1.0}:
        row.passed, row.reason = False, f"the masks differ: {reference.impure} and {other.impure} impure tokens"
    return row


def compare_columns(
    names: tuple[str, str],
    inputs: list[ParityInput],
    reference: Column,
    other: Column,
    gate: Gate,
    scale: int,
    rerun: Rerun | None = None,
) -> Pair:
    """Compare column *other* with *reference*, input by input. *rerun* computes *other* with injected categories."""
    pair = Pair(*names, gate)
    changes = []
    for item in inputs:
        row = _compare(item, reference[item.name], other[item.name], gate, rerun)
        if item.hr is not None and min(item.hr.shape[:2]) > 2 * scale:
            # Where near ties were accepted, the picture with the reference's categories is the one to judge.
            injected = None if gate.flips_count or not row.passed else row.injected_sr
            judged = other[item.name].sr if injected is None else injected
            first, second = (psnr_y(to_uint8(sr), item.hr, scale) for sr in (reference[item.name].sr, judged))
            row.task = (first, second)
            changes.append(0.0 if first == second else second - first)
        pair.rows.append(row)
    pair.task_change = float(np.mean(changes)) if changes else None
    return pair
