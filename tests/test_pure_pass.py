"""Pure-Pass in NumPy, in PyTorch and in the twin: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shared import examples

from ppexport.device import mask as host
from ppexport.device.mask import ATD_LAYOUT
from ppexport.device.picture import to_input
from ppexport.networks import pure_pass
from ppexport.networks.card import PurePassOptions
from ppexport.networks.network import pad
from ppexport.twin.static_pure_pass import StaticPurePass

options = st.tuples(st.integers(2, 16), st.sampled_from(host.WINDOWS), st.booleans())
shapes = st.tuples(st.integers(1, 50), st.integers(1, 50))


def pictures(shape):
    # Few levels, so that uniform windows and exact greys occur.
    return st.one_of(
        arrays(np.uint8, (*shape, 3), elements=st.sampled_from([0, 23, 127, 128, 230, 255])),
        arrays(np.uint8, (*shape, 1)).map(lambda grey: grey.repeat(3, axis=2)),
        st.tuples(*[st.integers(0, 255)] * 3).map(lambda c: np.full((*shape, 3), c, np.uint8)),
        arrays(np.float32, (*shape, 3), elements=st.floats(-0.5, 1.5, width=32)),
    )


@given(options, shapes.flatmap(pictures))
@examples(150)
def test_three_implementations_agree(chosen, rgb):
    colors, window, csmf = chosen
    labels = host.pixel_labels(rgb, colors)
    pure = host.pure_mask(rgb, colors, window, csmf)
    padded = pad(torch.from_numpy(to_input(rgb)), ATD_LAYOUT)
    assert np.array_equal(pure_pass.pixel_labels(padded, colors).numpy()[0], labels)
    assert np.array_equal(pure_pass.pure_mask(padded, colors, window, csmf).numpy()[0], pure)
    twin = StaticPurePass(PurePassOptions(colors=colors, window=window, csmf=csmf), *labels.shape)
    with torch.no_grad():
        assert np.array_equal(twin.labels(padded).numpy()[0, 0], labels)
        assert np.array_equal(twin(padded).numpy(), pure.ravel())


def slow_labels(rgb, colors):
    """Straight from the definition, pixel by pixel, in Python integers."""
    centers = host.color_centers(colors).tolist()

    def score(p, c):
        return 2 * sum(a * b for a, b in zip(p, c, strict=True)) - sum(b * b for b in c)

    flat = [max(range(colors), key=lambda k: (score(p, centers[k]), -k)) for p in rgb.reshape(-1, 3).tolist()]
    return np.array(flat, np.uint8).reshape(rgb.shape[:2])


@given(st.integers(2, 16), arrays(np.uint8, (16, 16, 3)))
@examples(30)
def test_labels_follow_the_definition(colors, rgb):
    assert np.array_equal(host.pixel_labels(rgb, colors), slow_labels(rgb, colors))


def test_exact_greys_take_the_lowest_of_equal_labels():
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(host.pixel_labels(greys), slow_labels(greys, 8))


def test_csmf_adds_windows_of_the_shifted_grid_only():
    rgb = np.full((32, 32, 3), (40, 90, 200), np.uint8)
    rgb[:4] = rgb[12:] = rgb[:, :4] = rgb[:, 12:] = np.random.default_rng(0).integers(0, 256, 3)
    rgb[0, 0], rgb[20, 20], rgb[3, 12], rgb[12, 3] = (200, 40, 30), (200, 40, 30), (9, 250, 3), (9, 250, 3)
    grid, fused = host.pure_mask(rgb, csmf=False), host.pure_mask(rgb, csmf=True)
    assert fused[4:12, 4:12].all()
    assert not grid[4:8, 4:8].any()
    assert (fused | grid == fused).all()


def test_no_shifted_window_in_an_image_of_one_window():
    rgb = np.full((16, 16, 3), 7, np.uint8)
    rgb[0, 0] = (0, 0, 255)
    assert not host.pure_mask(rgb, window=16, csmf=True).any()


@pytest.mark.parametrize(("colors", "window"), [(1, 8), (17, 8), (8, 3), (8, 32), (8, 0)])
def test_options_outside_the_exact_range_are_refused(colors, window):
    with pytest.raises(ValueError, match="Pure-Pass"):
        host.pure_mask(np.zeros((16, 16, 3), np.uint8), colors, window)
    with pytest.raises(ValueError, match="colors|window"):
        PurePassOptions(colors=colors, window=window)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_bad_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="pixel_labels takes"):
        host.pixel_labels(bad)


def test_nan_has_no_label():
    with pytest.raises(ValueError, match="NaN"):
        host.pixel_labels(np.full((4, 4, 3), np.nan, np.float32))
