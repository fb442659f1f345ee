"""PSNR and SSIM against scikit-image, and the properties they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from shared import FREE_IMAGES, examples

from ppexport.device.picture import luma, psnr, psnr_y, ssim, ssim_y

pixels = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))
grey = arrays(np.uint8, (13, 15))


@pytest.fixture(scope="module")
def pair():
    with Image.open(FREE_IMAGES / "coffee.png") as image:
        clean = np.asarray(image.convert("RGB"))[100:260, 200:390]
    noise = np.random.default_rng(1).normal(0, 8, clean.shape)
    return clean, np.clip(np.round(clean + noise), 0, 255).astype(np.uint8)


def test_luma_of_known_colours():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(colours)[0] == pytest.approx([16.0, 235.0, 81.481, 144.553, 40.966])


@given(pixels)
@examples(50)
def test_luma_stays_in_studio_range(image):
    y = luma(image)
    assert y.dtype == np.float64
    assert y.min() >= 16
    assert y.max() <= 235 + 1e-9


def test_grey_is_its_own_luma():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(luma(image), image)


def test_psnr_agrees_with_scikit_image(pair):
    from skimage.metrics import peak_signal_noise_ratio

    a, b = pair
    assert psnr(a, b, 255) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-10)
    x, y = luma(a)[2:-2, 2:-2], luma(b)[2:-2, 2:-2]
    assert psnr_y(a, b, crop=2) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-10)


@pytest.mark.parametrize("crop", [0, 2, 4])
def test_ssim_agrees_with_scikit_image(pair, crop):
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    a, b = pair
    inner = slice(crop, -crop or None)
    x, y = luma(a)[inner, inner], luma(b)[inner, inner]
    assert ssim_y(a, b, crop) == pytest.approx(structural_similarity(x, y, **options), abs=1e-10)
    colour = structural_similarity(a.astype(float), b.astype(float), channel_axis=2, **options)
    assert ssim(a, b, 255) == pytest.approx(colour, abs=1e-10)


def test_a_known_psnr():
    a = np.zeros((4, 4))
    assert psnr(a, a + 1, peak=255) == pytest.approx(20 * math.log10(255))
    assert psnr(a, a + 0.1, peak=1) == pytest.approx(20)


@given(pixels)
@examples(30)
def test_equal_images_have_infinite_psnr(image):
    assert psnr(image, image, 255) == math.inf
    assert psnr_y(image, image, 0) == math.inf


@given(grey, grey)
@examples(50)
def test_ssim_is_symmetric_and_at_most_one(a, b):
    value = ssim(a, b, 255)
    assert value == pytest.approx(ssim(b, a, 255), abs=1e-12)
    assert -1 - 1e-9 <= value <= 1 + 1e-9
    assert ssim(a, a, 255) == pytest.approx(1)


@given(grey, grey)
@examples(50)
def test_psnr_is_symmetric_and_indifferent_to_the_scale_of_values(a, b):
    assert psnr(a, b, 255) == psnr(b, a, 255)
    if not np.array_equal(a, b):
        assert psnr(a / 255, b / 255, 1) == pytest.approx(psnr(a, b, 255))


def test_more_noise_is_worse(pair):
    clean, noisy = pair
    noisier = np.clip(clean + 3.0 * (noisy.astype(float) - clean), 0, 255).round().astype(np.uint8)
    assert psnr_y(clean, noisier, 2) < psnr_y(clean, noisy, 2)
    assert ssim_y(clean, noisier, 2) < ssim_y(clean, noisy, 2)


def image(*shape):
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(image(4, 4), image(4, 5), 255), "same shape"),
        (lambda: psnr(image(0, 4), image(0, 4), 255), "nothing to compare"),
        (lambda: psnr(image(4, 4), image(4, 4), 0), "peak"),
        (lambda: psnr_y(image(9, 9, 3), image(9, 8, 3), 2), "same shape"),
        (lambda: psnr_y(image(9, 9, 3), image(9, 9), 2), "same shape"),
        (lambda: psnr_y(image(4, 9, 3), image(4, 9, 3), 2), "nothing left"),
        (lambda: psnr_y(image(9, 9, 3), image(9, 9, 3), -1), "0 pixels or more"),
        (lambda: psnr_y(image(9, 9, 4), image(9, 9, 4), 0), "luma takes"),
        (lambda: luma(np.zeros((4, 4, 3))), "luma takes"),
        (lambda: ssim(image(10, 30), image(10, 30), 255), "at least 11x11"),
        (lambda: ssim_y(image(14, 30, 3), image(14, 30, 3), 2), "at least 11x11"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
