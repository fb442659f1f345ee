"""Streaming histograms: the same whatever the order and the parts, exact at the ends, honest in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppexport.quantize.histogram import BINS, HALF, SAMPLE, Histograms, sampled, widen

numbers = st.floats(-1e6, 1e6, width=32)
chunks = st.lists(arrays(np.float32, st.integers(1, 40), elements=numbers), min_size=1, max_size=6)


def recorded(parts) -> Histograms:
    found = Histograms.empty(1)
    for part in parts:
        found.add(0, part)
    return found


@given(chunks, st.randoms(use_true_random=False))
def test_order_and_parts_do_not_matter(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    once, again, whole = recorded(parts), recorded(shuffled), recorded([np.concatenate(parts)])
    for other in (again, whole):
        assert np.array_equal(once.counts, other.counts)
        assert np.array_equal(once.exponents, other.exponents)
        assert np.allclose(once.figures, other.figures, rtol=1e-9)


@given(chunks)
def test_minimum_maximum_and_count_are_exact(parts):
    found, every = recorded(parts), np.concatenate(parts)
    low, high, count = found.figures[0, :3]
    assert (low, high, count) == (every.min(), every.max(), every.size)
    assert found.counts.sum() == every.size


@given(chunks, st.sampled_from([0.5, 0.9, 0.999, 1.0]))
def test_a_percentile_holds_its_share_and_little_more(parts, share):
    found, magnitudes = recorded(parts), np.abs(np.concatenate(parts))
    limit = found.percentile(0, share)
    width = 2.0 ** (int(found.exponents[0]) - 10)
    assert (magnitudes <= limit).mean() >= share
    exact = np.sort(magnitudes)[int(np.ceil(share * magnitudes.size)) - 1]
    # A negative number on the edge of two bins counts into the lower one, one width further out.
    assert limit <= exact + 2 * width


def test_zeros_that_come_first_do_not_widen_the_bins():
    zeros, small = np.zeros(3, np.float32), np.full(2, 0.25, np.float32)
    first, last = recorded([zeros, small]), recorded([small, zeros])
    assert first.exponents[0] == last.exponents[0] == -1
    assert np.array_equal(first.counts, last.counts)


def test_widening_joins_pairs_around_zero():
    counts = np.zeros(BINS, np.int64)
    counts[[HALF - 2, HALF - 1, HALF, HALF + 1, 0, BINS - 1]] = [1, 2, 4, 8, 16, 32]
    wide = widen(counts, 1)
    assert wide[HALF - 1] == 3
    assert wide[HALF] == 12
    assert wide[HALF // 2] == 16
    assert wide[HALF + HALF // 2 - 1] == 32
    assert np.array_equal(widen(counts, 3), widen(widen(widen(counts, 1), 1), 1))


def test_what_fp16_loses_is_counted():
    found = recorded([np.array([1.0, 1e-7, 2.0**-13, 0.0, 70000.0], np.float32)])
    subnormal, power, error = found.figures[0, [5, 3, 4]]
    assert subnormal == 1
    assert power == pytest.approx(1 + 70000.0**2)
    # 1e-7 becomes 1.19e-7; what overflows is no matter of rounding, its range says so.
    assert error == pytest.approx((2.0**-23 - 1e-7) ** 2, rel=1e-3)


def test_numbers_that_are_not_finite_are_counted_apart():
    found = recorded([np.array([np.nan, np.inf, 1.0], np.float32)])
    assert found.figures[0, 6] == 2
    assert found.counts.sum() == 1


def test_large_tensors_are_sampled_off_every_axis_but_their_ends_are_exact():
    values = np.zeros((64, 48, 64), np.float32)
    values[3, 7, 5] = 9
    part = sampled(values.reshape(-1))
    assert SAMPLE // 2 < part.size <= SAMPLE
    assert recorded([values]).figures[0, 1] == 9
    rows = sampled(np.arange(64 * 48 * 64, dtype=np.float32)) % 48
    assert len(np.unique(rows)) == 48
