"""Colours of invisible pixels: none of them reaches a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_upscale import Repeat, noise

from ppexport.imaging.alpha import bleed
from ppexport.imaging.images import read_image, read_levels
from ppexport.imaging.upscaling import upscale_file
from ppexport.quantize.crops import read_sources

YELLOW = (255, 222, 60)
BLACK = (0, 0, 0)


def logo(height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """A yellow disc with a soft edge; what is invisible is black."""
    y, x = np.mgrid[:height, :width]
    alpha = np.clip(255 * (14.5 - np.hypot(y - height / 2, x - width / 2)), 0, 255).astype(np.uint8)
    return np.where(alpha[..., None] > 0, YELLOW, BLACK).astype(np.uint8), alpha


def seen(runner: Repeat) -> np.ndarray:
    """All pixels of all tiles, as 8-bit colours."""
    tiles = [(lr[0].transpose(1, 2, 0).reshape(-1, 3) * 255).round() for lr in runner.seen]
    return np.concatenate(tiles).astype(int)


@pytest.mark.parametrize("name", ["logo.png", "logo.webp"])
def test_no_hidden_colour_reaches_the_network_or_the_result(tmp_path: Path, name: str) -> None:
    rgb, alpha = logo()
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    runner = Repeat((32, 32))
    upscale_file(runner, tmp_path / name, tmp_path / "sr.png")
    # The colours are seen first, and then as many tiles of the alpha.
    del runner.seen[len(runner.seen) // 2 :]
    assert len(runner.seen) > 1
    assert (seen(runner) == YELLOW).all()
    assert (read_image(tmp_path / "sr.png").rgb == YELLOW).all()


def test_every_command_that_reads_a_picture_sees_the_same_colours(tmp_path: Path) -> None:
    rgb, alpha = logo()
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "logo.png")
    # `info`, `profile` and the crops of a calibration have one reader.
    for pixels in (read_levels(tmp_path / "logo.png"), read_sources(tmp_path)[0].read()):
        assert (pixels == YELLOW).all()


@pytest.mark.parametrize("key", [0, 7])
def test_a_transparent_grey_level_of_16_bits(tmp_path: Path, key: int) -> None:
    levels = np.full((20, 30), 60000, np.uint16)
    levels[:, :9] = key
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=key)
    bled = read_image(tmp_path / "a.png").bled
    assert bled.dtype == np.float32
    np.testing.assert_allclose(bled, 60000 / 65535, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 5), (33, 64), (50, 37)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_visible_pixels_stay_and_the_rest_lies_between_them(size: tuple[int, int], kind: type) -> None:
    rng = np.random.default_rng(size[0])
    rgb = noise(*size) if kind is np.uint8 else rng.random((*size, 3), np.float32)
    alpha = np.where(rng.random(size) < 0.9, 0, rng.integers(1, 256, size)).astype(np.uint8)
    alpha[-1, -1] = 200
    before = rgb.copy()
    found = bleed(rgb, alpha)
    visible = alpha > 0
    assert found.dtype == kind
    np.testing.assert_array_equal(rgb, before)
    np.testing.assert_array_equal(found[visible], rgb[visible])
    slack = 0 if kind is np.uint8 else 1e-6
    assert (found >= rgb[visible].min(axis=0) - slack).all()
    assert (found <= rgb[visible].max(axis=0) + slack).all()


def test_a_neighbour_counts_as_much_as_it_is_visible() -> None:
    rgb = np.array([[(200, 0, 0), BLACK, (0, 100, 0)]], np.uint8)
    assert bleed(rgb, np.array([[255, 0, 85]], np.uint8))[0, 1].tolist() == [150, 25, 0]


def test_colours_come_from_near_by() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    alpha = np.zeros((64, 64), np.uint8)
    rgb[:, :8], rgb[:, 56:] = (255, 0, 0), (0, 0, 255)
    alpha[:, :8] = alpha[:, 56:] = 255
    found = bleed(rgb, alpha)
    assert (found[:, :24] == (255, 0, 0)).all()
    assert (found[:, 40:] == (0, 0, 255)).all()


@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_a_picture_without_hidden_pixels_or_of_nothing_else_is_unchanged(alpha: int) -> None:
    rgb = noise(9, 9)
    assert bleed(rgb, np.full((9, 9), alpha, np.uint8)) is rgb
