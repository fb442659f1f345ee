"""Bicubic resizing: bit for bit what the data sets were made with."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from shared import FREE_IMAGES, evaluation_pairs, examples

from ppexport.device.picture import psnr_y
from ppexport.imaging.bicubic import crop_to_multiple, enlarge_bicubic, resize_bicubic

pixels = arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def digest(image):
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def chelsea():
    return read(FREE_IMAGES / "chelsea.png")


@pytest.mark.parametrize(
    ("scale", "shape", "expected"),
    [
        (2, (150, 225, 3), "2d407611207a5798a3431791eb76968999dc5d967bb296d2f0545a9a1d14dd6f"),
        (3, (100, 150, 3), "8e942a360240efc80477eca99927c4518551cc97246fa4a09d4ba0902449200a"),
        (4, (75, 112, 3), "1631e28458b15891e83ea5c6fdc5f1f04df416c11b9f8d7e7febc34c240cbabc"),
    ],
)
def test_shrinking_a_free_picture_gives_the_known_pixels(chelsea, scale, shape, expected):
    lr = resize_bicubic(chelsea, scale)
    assert lr.shape == shape
    assert lr.dtype == np.uint8
    assert digest(lr) == expected


def test_enlarging_a_free_picture_gives_the_known_pixels(chelsea):
    assert (
        digest(enlarge_bicubic(chelsea[:60, :80], 3))
        == "08de8139b05a43836f50c4fd017d372be54768e4239e5980394e5385a7de0de4"
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["set5", "set14"])
def test_every_lr_of_the_test_sets_comes_out_bit_for_bit(name, scale):
    pairs = evaluation_pairs(name, scale)
    assert len(pairs) == {"set5": 5, "set14": 14}[name]
    wrong = [hr.name for hr, lr in pairs if not np.array_equal(resize_bicubic(read(hr), scale), read(lr))]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "scale", "published"), [("set5", 2, 33.66), ("set14", 2, 30.24), ("set5", 4, 28.42), ("set14", 4, 26.00)]
)
def test_enlarging_gives_the_published_baselines(name, scale, published):
    values = [
        psnr_y(enlarge_bicubic(read(lr), scale), read(hr), crop=scale) for hr, lr in evaluation_pairs(name, scale)
    ]
    assert np.mean(values) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pillow_agrees_inside_within_a_level(chelsea, scale):
    # Pillow has the same kernel; it rounds its weights and treats edges in another way.
    hr = crop_to_multiple(chelsea, scale)
    lr = resize_bicubic(hr, scale).astype(int)
    other = np.asarray(Image.fromarray(hr).resize((lr.shape[1], lr.shape[0]), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(lr - other)[3:-3, 3:-3].max() <= 1


def test_grey_is_a_channel_of_its_own(chelsea):
    grey = np.ascontiguousarray(chelsea[..., 1])
    assert np.array_equal(resize_bicubic(grey, 3), resize_bicubic(chelsea, 3)[..., 1])
    assert np.array_equal(enlarge_bicubic(grey, 2), enlarge_bicubic(chelsea, 2)[..., 1])


def test_the_input_is_left_alone(chelsea):
    before = chelsea.copy()
    resize_bicubic(chelsea, 2)
    assert np.array_equal(chelsea, before)


def test_sides_that_are_no_multiples_are_cropped():
    image = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    assert crop_to_multiple(image, 4).shape == (20, 28, 3)
    assert np.array_equal(resize_bicubic(image, 4), resize_bicubic(image[:20, :28], 4))


@given(pixels)
@examples(30)
def test_scale_one_changes_nothing(image):
    assert np.array_equal(resize_bicubic(image, 1), image)
    assert np.array_equal(enlarge_bicubic(image, 1), image)


@given(st.integers(0, 255), st.integers(1, 5), st.integers(5, 24), st.integers(5, 24))
@examples(30)
def test_one_colour_stays_one_colour(value, scale, height, width):
    image = np.full((height, width), value, np.uint8)
    assert (resize_bicubic(image, scale) == value).all()
    assert (enlarge_bicubic(image, scale) == value).all()


@pytest.mark.parametrize(
    ("image", "scale"),
    [
        (np.zeros((8, 8, 3), np.float32), 2),
        (np.zeros((8,), np.uint8), 2),
        (np.zeros((0, 8, 3), np.uint8), 2),
        (np.zeros((8, 8, 3), np.uint8), 0),
        (np.zeros((8, 8, 3), np.uint8), 1.5),
        (np.zeros((1, 8, 3), np.uint8), 2),
    ],
)
def test_what_cannot_be_resized_is_refused(image, scale):
    with pytest.raises(ValueError, match=r"bicubic resizing takes|whole number|smaller than one"):
        resize_bicubic(image, scale)
