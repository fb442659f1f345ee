"""Compares two columns of a parity run, input by input: the pictures, the masks, and the categories of every layer.

A flip, a token whose category differs, is no error by itself: the best two categories may be nearer to each other than
rounding. So an input with flips is computed once more with the same categories in both, and what still flips then, with
nothing before it that differs, has to be a near tie or a rounding, and the pictures have to be equal.

How sure the reference is of a category says little in half precision. There tokens are a little off, and the dictionary
more: each layer refines it by weights that come from an InstanceNorm of the similarities over all tokens, and where a
picture is so even that one of them hardly varies, its standard deviation, by which it is divided, is little more than
rounding (bundled x4 at 64x64, a gradient: tokens 69 dB, one row of the dictionary 17 dB). No single gap tells a
rounding from a mistake. This does: a flip is a rounding if the reference, given the artifact's tokens and dictionary,
makes the artifact's choice, to fp32, and if those tokens meet the gate (`ChosenAgain`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import NEAR_TIE, Gate
from ppexport.device.picture import TAPS, psnr_y, ssim_y, to_uint8
from ppexport.errors import counted, present
from ppexport.parity.columns import Categories, Column, Sample
from ppexport.parity.inputs import ParityInput, Pixels
from ppexport.parity.pair import Comparison, Pair, Two, measure

FLIP_MARGIN = 6.0
"""In dB, twice the error: how much further off than in the saved run, where its flips were examined and passed, an
input may be that flips otherwise on another machine. Measured for the bundled x4 in fp16 at 64x64, on the same
photographs in two ways of rounding: from 3.7 dB less to 2.4 dB more."""


@dataclass(frozen=True)
class ChosenAgain:
    """What the reference would have chosen from the numbers that the other one chose from."""

    categories: Categories
    """(layers, n)."""
    gaps: NDArray[np.float32]
    """(layers, n): lead of the best similarity over the second best."""
    tokens_db: float
    """Power of the reference's tokens over that of their error, in the worst layer."""
    dictionary_db: float
    """The same of the dictionaries."""


Rerun = Callable[[ParityInput, Categories], Sample]
"""Computes an input again with these categories injected."""


@dataclass(frozen=True)
class Means:
    """How flips can be examined."""

    rerun: Rerun | None = None
    """Computes the other one again with the reference's categories."""
    follow: Rerun | None = None
    """Computes the reference again with the other one's, where nothing can be injected into that."""
    look: Callable[[ParityInput, Categories], ChosenAgain] | None = None
    """Has the reference choose again from what the other one chose from, with these categories in both."""


NO_MEANS = Means()


def compare_columns(
    names: tuple[str, str],
    inputs: list[ParityInput],
    reference: Column,
    other: Column,
    gate: Gate,
    means: Means = NO_MEANS,
) -> Pair:
    """Compare two columns.

    Args:
        names: of the columns *reference* and *other*.
        inputs: what to compare; both columns have a sample of each.
        reference: what is right.
        other: what is judged.
        gate: what every input, and the task metric over all, must meet.
        means: for examining flips.
    """
    rows = [_compare(item, reference[item.name], other[item.name], gate, means) for item in inputs]
    return Pair(*names, gate, rows)


def _compare(item: ParityInput, reference: Sample, other: Sample, gate: Gate, means: Means) -> Comparison:
    errors = measure(reference.sr, other.sr)
    row = Comparison(item.name, errors, errors.within(gate), capacity=other.capacity)
    if not row.passed:
        row.reason = f"{errors.psnr:.1f} dB, largest error {errors.max_abs:.1e}"
    same = None
    if reference.categories is not None and other.categories is not None:
        same = _compare_routing(row, item, reference, other, gate, means)
    elif reference.categories is not None or other.categories is not None:
        row.fail("only one of the two tells its categories")
    row.equal_labels = _share_equal(reference.labels, other.labels)
    row.equal_mask = _share_equal(reference.pure, other.pure)
    if reference.impure != other.impure or row.masks_differ:
        row.fail(f"the masks differ: {reference.impure} and {other.impure} impure tokens")
    # Whatever the same routing would give: what runs is what is judged.
    if not (np.isfinite(reference.sr).all() and np.isfinite(other.sr).all()):
        row.fail("the picture holds NaN or infinite values")
    scale = reference.sr.shape[2] // item.lr.shape[2]
    if item.hr is not None and min(item.hr.shape[:2]) > 2 * scale:
        row.task, row.task_ssim = _against_truth((reference, other), item.hr, scale)
        if same is not None:
            row.task_same_routing, row.task_ssim_same_routing = _against_truth(same, item.hr, scale)
        elif row.flips is not None and not any(row.flips):
            row.task_same_routing, row.task_ssim_same_routing = row.task, row.task_ssim
    return row


def _share_equal(a: NDArray[np.generic] | None, b: NDArray[np.generic] | None) -> float | None:
    """Share of equal entries; None where both are missing, 0 where only one is."""
    if a is None or b is None or a.shape != b.shape:
        return None if a is None and b is None else 0.0
    return float((a == b).mean())


def _flipped(reference: Categories | None, other: Categories | None, impure: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(layers, impure tokens): which of them have another category."""
    a, b = present(reference, "the reference's categories"), present(other, "the other's categories")
    return np.asarray(a != b)[:, impure]


def _compare_routing(
    row: Comparison, item: ParityInput, reference: Sample, other: Sample, gate: Gate, means: Means
) -> tuple[Sample, Sample] | None:
    """Fill *row* with flips; where there are any, decide by the same routing in both whether they are excused.

    Returns *reference* and *other* as computed with the same routing, None where there are no flips or no way to.
    """
    own, others = present(reference.categories, "categories"), present(other.categories, "categories")
    impure = np.ones(own.shape[1], bool) if reference.pure is None else ~reference.pure
    flips = _flipped(own, others, impure)
    row.flips, row.impure = [int(count) for count in flips.sum(axis=1)], int(impure.sum())
    row.agreement = [1 - count / max(row.impure, 1) for count in row.flips]
    if not flips.any():
        return None
    if reference.gaps is None or (means.rerun is None and means.follow is None):
        row.fail(f"{sum(row.flips)} categories flipped, and they cannot be injected here")
        return None
    injected = own
    if means.rerun is not None:
        other = means.rerun(item, own)
    elif means.follow is not None:
        injected, reference = others, means.follow(item, others)
    _examine_flips(row, item, (reference, other), injected, impure, gate, means)
    return reference, other


def _examine_flips(
    row: Comparison,
    item: ParityInput,
    same: tuple[Sample, Sample],
    injected: Categories,
    impure: NDArray[np.bool_],
    gate: Gate,
    means: Means,
) -> None:
    """Decide whether the flips of *row* are excused, from *same*: reference and other with *injected* categories."""
    reference, other = same
    row.injected = measure(reference.sr, other.sr)
    # With the same routing in all earlier layers, what still flips is explained by no earlier flip.
    unexplained = _flipped(reference.categories, other.categories, impure)
    gaps = present(reference.gaps, "the reference's gaps")[:, impure]
    surest, limit = float(gaps[unexplained].max(initial=0.0)), gate.near_tie
    row.surest = surest
    ties = counted(int(unexplained.sum()), "near tie")
    accepted = f"{ties} (gap below {limit:g}) regrouped tokens; equal once injected"
    if gate.flips_count:
        share = sum(row.flips or []) / unexplained.size
        accepted = f"{share:.1%} of the categories flipped, the surest by {surest:.1e}"
    elif means.look is not None and gate.near_tie > NEAR_TIE:
        # Rounding made the numbers that were chosen from. A choice that the reference makes otherwise from the very
        # same numbers still has to be a near tie of fp32.
        chosen = means.look(item, injected)
        row.tokens_db, row.dictionary_db = chosen.tokens_db, chosen.dictionary_db
        unexcused = _flipped(chosen.categories, other.categories, impure)
        surest, limit = float(chosen.gaps[:, impure][unexcused].max(initial=0.0)), NEAR_TIE
        rounded, ties = counted(int(unexplained.sum()), "rounded choice"), counted(int(unexcused.sum()), "near tie")
        accepted = f"{rounded}, {ties}; equal once injected"
    # Written so that NaN fails.
    if not surest < limit:
        row.fail(f"a category flipped although the reference was sure of it by {surest:.1e}")
    elif row.tokens_db is not None and not row.tokens_db >= gate.psnr:
        row.fail(f"the tokens of a layer are off ({row.tokens_db:.1f} dB) even with the reference's categories")
    elif not row.injected.within(gate):
        row.fail("the picture differs even with the reference's categories")
    else:
        row.passed, row.reason = True, accepted


def _against_truth(samples: tuple[Sample, Sample], hr: Pixels, scale: int) -> tuple[Two, Two | None]:
    """PSNR-Y and, where they are large enough for it, SSIM-Y of both pictures against *hr*."""
    first, second = (to_uint8(np.nan_to_num(sample.sr)) for sample in samples)
    quality = (psnr_y(first, hr, scale), psnr_y(second, hr, scale))
    if min(hr.shape[:2]) - 2 * scale < TAPS:
        return quality, None
    return quality, (ssim_y(first, hr, scale), ssim_y(second, hr, scale))


def compare_pictures(
    names: tuple[str, str],
    inputs: list[ParityInput],
    reference: Column,
    other: Column,
    gate: Gate,
    flipped: Mapping[str, float] | None = None,
) -> Pair:
    """Compare with a column that tells no categories, such as an engine's, by pictures and counts.

    In fp16 near ties fall either way on every run of synthetic inputs that are full of them, such as noise, and nothing
    can tell that from a mistake: such inputs are reported, and photographs are judged. In fp32 near ties are few: an
    input that has one fails with a reason that says so. A network without routing has no near ties.

    Args:
        names, inputs, reference, other, gate: as of `compare_columns`.
        flipped: {input: dB} of inputs that passed, with this PSNR as they ran, in a run that could examine their flips.
            Here they may be `FLIP_MARGIN` dB further off, where that is below the gate.
    """
    bare = {k: replace(s, categories=None, gaps=None, pure=None, labels=None) for k, s in reference.items()}
    pair = compare_columns(names, inputs, bare, other, gate)
    for row, item in zip(pair.rows, inputs, strict=True):
        own = reference[item.name]
        same_mask, finite = own.impure == other[item.name].impure, math.isfinite(row.errors.max_abs)
        if row.passed or not (same_mask and finite) or own.categories is None:
            continue
        before = (flipped or {}).get(row.name, math.inf)
        if gate.near_tie > NEAR_TIE and item.hr is None:
            row.passed, row.reason = True, f"not judged, {names[1]} does not tell its near ties ({row.reason})"
        elif row.errors.psnr >= before - FLIP_MARGIN:
            row.passed = True
            row.reason += (
                f"; {names[1]} does not tell its flips, and the saved run, whose flips passed, has {before:.1f} dB"
            )
        elif gate.near_tie <= NEAR_TIE and own.gaps is not None:
            impure = slice(None) if own.pure is None else ~own.pure
            ties = int((own.gaps[:, impure] < NEAR_TIE).sum())
            if ties:
                row.reason += f"; {names[1]} does not tell whether one of the {ties} near ties of this input flipped"
    return pair
