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
from collections.abc import Mapping
from dataclasses import replace

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


def compare_columns(reference: Column, other: Column, inputs: list[ParityInput], gate: Gate) -> Pair:
    """Compare two columns.

    Args:
        reference: what is right.
        other: what is judged.
        inputs: what to compare; both columns have a sample of each.
        gate: what every input, and the task metric over all, must meet.
    """
    return Pair(reference.name, other.name, gate, [_compare(reference, other, item, gate) for item in inputs])


def _compare(reference: Column, other: Column, item: ParityInput, gate: Gate) -> Comparison:
    first, second = reference.samples[item.name], other.samples[item.name]
    errors = measure(first.sr, second.sr)
    row = Comparison(item.name, errors, errors.within(gate), capacity=second.capacity)
    if not row.passed:
        row.reason = f"{errors.psnr:.1f} dB, largest error {errors.max_abs:.1e}"
    same = None
    if first.categories is not None and second.categories is not None:
        same = _compare_routing(row, reference, other, item, gate)
    elif first.categories is not None or second.categories is not None:
        row.fail("only one of the two tells its categories")
    row.equal_labels = _share_equal(first.labels, second.labels)
    row.equal_mask = _share_equal(first.pure, second.pure)
    if first.impure != second.impure or row.masks_differ:
        row.fail(f"the masks differ: {first.impure} and {second.impure} impure tokens")
    # Whatever the same routing would give: what runs is what is judged.
    if not (np.isfinite(first.sr).all() and np.isfinite(second.sr).all()):
        row.fail("the picture holds NaN or infinite values")
    scale = first.sr.shape[2] // item.lr.shape[2]
    if item.hr is not None and min(item.hr.shape[:2]) > 2 * scale:
        row.task, row.task_ssim = _against_truth((first, second), item.hr, scale)
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
    row: Comparison, reference: Column, other: Column, item: ParityInput, gate: Gate
) -> tuple[Sample, Sample] | None:
    """Fill *row* with flips; where there are any, decide by the same routing in both whether they are excused.

    Returns both samples as computed with the same routing, None where no category flipped or there is no way to.
    """
    first, second = reference.samples[item.name], other.samples[item.name]
    own = present(first.categories, "the reference's categories")
    impure = np.ones(own.shape[1], bool) if first.pure is None else ~first.pure
    flips = _flipped(own, second.categories, impure)
    row.flips, row.impure = [int(count) for count in flips.sum(axis=1)], int(impure.sum())
    row.agreement = [1 - count / max(row.impure, 1) for count in row.flips]
    if not flips.any():
        return None
    if first.gaps is None or not (other.injects or reference.injects):
        row.fail(f"{sum(row.flips)} categories flipped, and they cannot be injected here")
        return None
    # Flips of a copy in another runtime excuse a picture that is as near as the copy's, and no other.
    copy = other.copies.get(item.name)
    copied = -math.inf if copy is None else measure(first.sr, copy).psnr
    injected = own
    if other.injects:
        second = other.sample(item, own)
    else:
        injected = present(second.categories, "the other's categories")
        first = reference.sample(item, injected)
    row.injected = measure(first.sr, second.sr)
    # With the same routing in all earlier layers, what still flips is explained by no earlier flip.
    unexplained = _flipped(first.categories, second.categories, impure)
    gaps = present(first.gaps, "the reference's gaps")[:, impure]
    surest, limit = float(gaps[unexplained].max(initial=0.0)), gate.near_tie
    row.surest = surest
    ties = counted(int(unexplained.sum()), "near tie")
    accepted = f"{ties} (gap below {limit:g}) regrouped tokens; equal once injected"
    if gate.flips_count:
        share = sum(row.flips) / unexplained.size
        accepted = f"{share:.1%} of the categories flipped, the surest by {surest:.1e}"
    elif gate.near_tie > NEAR_TIE and (chosen := reference.choose_again(item, injected, other)) is not None:
        # Rounding made the numbers that were chosen from. A choice that the reference makes otherwise from the very
        # same numbers still has to be a near tie of fp32.
        row.tokens_db, row.dictionary_db = chosen.tokens_db, chosen.dictionary_db
        unexcused = _flipped(chosen.categories, second.categories, impure)
        surest, limit = float(chosen.gaps[:, impure][unexcused].max(initial=0.0)), gate.choice_tie
        rounded, ties = counted(int(unexplained.sum()), "rounded choice"), counted(int(unexcused.sum()), "near tie")
        accepted = f"{rounded}, {ties}; equal once injected"
    # Written so that NaN fails.
    if not surest < limit:
        row.fail(f"a category flipped although the reference was sure of it by {surest:.1e}")
    elif row.tokens_db is not None and not row.tokens_db >= gate.psnr:
        row.fail(f"the tokens of a layer are off ({row.tokens_db:.1f} dB) even with the reference's categories")
    elif not row.injected.within(gate):
        row.fail("the picture differs even with the reference's categories")
    elif not row.errors.within(gate) and not row.errors.psnr >= copied - FLIP_MARGIN:
        row.reason += f"; its copy, whose flips were examined, has {copied:.1f} dB"
    else:
        row.passed, row.reason = True, accepted
    return first, second


def _against_truth(samples: tuple[Sample, Sample], hr: Pixels, scale: int) -> tuple[Two, Two | None]:
    """PSNR-Y and, where they are large enough for it, SSIM-Y of both pictures against *hr*."""
    first, second = (to_uint8(np.nan_to_num(sample.sr)) for sample in samples)
    quality = (psnr_y(first, hr, scale), psnr_y(second, hr, scale))
    if min(hr.shape[:2]) - 2 * scale < TAPS:
        return quality, None
    return quality, (ssim_y(first, hr, scale), ssim_y(second, hr, scale))


def compare_pictures(
    reference: Column,
    other: Column,
    inputs: list[ParityInput],
    gate: Gate,
    flipped: Mapping[str, float] | None = None,
) -> Pair:
    """Compare with a column that tells no categories, such as an engine's, by pictures and counts.

    In fp16 near ties fall either way on every run of synthetic inputs that are full of them, such as noise, and nothing
    can tell that from a mistake: such inputs are reported, and photographs are judged. In fp32 near ties are few: an
    input that has one fails with a reason that says so. A network without routing has no near ties.

    Args:
        reference, other, inputs, gate: as of `compare_columns`.
        flipped: {input: dB} of inputs that passed, with this PSNR as they ran, in a run that could examine their flips.
            Here they may be `FLIP_MARGIN` dB further off, where that is below the gate.
    """
    bare = {
        name: replace(sample, categories=None, gaps=None, pure=None, labels=None)
        for name, sample in reference.samples.items()
    }
    pair = compare_columns(Column(reference.name, bare), other, inputs, gate)
    for row, item in zip(pair.rows, inputs, strict=True):
        own = reference.samples[item.name]
        same_mask, finite = own.impure == other.samples[item.name].impure, math.isfinite(row.errors.max_abs)
        if row.passed or not (same_mask and finite) or own.categories is None:
            continue
        before = (flipped or {}).get(row.name, math.inf)
        if gate.near_tie > NEAR_TIE and item.hr is None:
            row.passed, row.reason = True, f"not judged, {other.name} does not tell its near ties ({row.reason})"
        elif row.errors.psnr >= before - FLIP_MARGIN:
            row.passed = True
            row.reason += (
                f"; {other.name} does not tell its flips, and the saved run, whose flips passed, has {before:.1f} dB"
            )
        elif gate.near_tie <= NEAR_TIE and own.gaps is not None:
            impure = slice(None) if own.pure is None else ~own.pure
            ties = int((own.gaps[:, impure] < NEAR_TIE).sum())
            if ties:
                row.reason += f"; {other.name} does not tell whether one of the {ties} near ties of this input flipped"
    return pair
