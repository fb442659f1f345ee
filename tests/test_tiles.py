"""Tiles: planning along an axis, blending weights, and blending a whole picture."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import examples

from ppexport.device.mask import mirror_pad
from ppexport.device.picture import to_levels
from ppexport.errors import InputError
from ppexport.imaging.tiles import OVERLAP, Blender, axis_weights, cut, plan, plan_grid

lengths = st.integers(1, 700)
tiles = st.integers(24, 140)
few = settings(max_examples=120, deadline=None)


def nearest(tile: np.ndarray, scale: int) -> np.ndarray:
    """A network that repeats pixels: uint8 (h, w, 3) -> float32 (3, h * scale, w * scale)."""
    lr = (tile.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)
    return lr.repeat(scale, axis=1).repeat(scale, axis=2)


def blend(grid, scale, tiles):
    """Upscaled *tiles* in the order of *grid* -> picture."""
    blender = Blender(grid, scale)
    for sr in tiles:
        blender.add(sr)
    return blender.picture()


def through_tiles(rgb: np.ndarray, tile: tuple[int, int], scale: int) -> np.ndarray:
    grid = plan_grid(rgb.shape[:2], tile)
    return blend(grid, scale, (nearest(cut(rgb, origin, tile), scale) for origin in grid))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(lengths, tiles)
@few
def test_a_plan_covers_the_axis_with_overlapping_tiles_at_multiples_of_16(length: int, tile: int) -> None:
    origins = plan(length, tile)
    assert origins[0] == 0
    assert all(o % 16 == 0 for o in origins)
    assert origins[-1] < length <= origins[-1] + tile
    overlaps = [a + tile - b for a, b in itertools.pairwise(origins)]
    assert all(overlap >= OVERLAP for overlap in overlaps)
    if len(origins) > 1:
        # The last tile sees no more than the padding of the network itself.
        assert origins[-1] + tile - length < 16


@given(lengths, tiles)
@few
def test_a_plan_has_no_tile_too_many(length: int, tile: int) -> None:
    origins = plan(length, tile)
    stride = (tile - OVERLAP) // 16 * 16
    if len(origins) > 1:
        assert (len(origins) - 2) * stride + tile < length


@pytest.mark.parametrize(
    ("length", "tile", "origins"),
    [
        (64, 64, (0,)),
        (1, 64, (0,)),
        (5, 7, (0,)),
        (65, 64, (0, 16)),
        (112, 64, (0, 48)),
        (113, 64, (0, 32, 64)),
        (100, 50, (0, 32, 64)),
        (200, 56, (0, 48, 96, 144)),
        (150, 55, (0, 32, 64, 96)),
        (60, 37, (0, 16, 32)),
        (40, 24, (0, 16)),
    ],
)
def test_plans(length: int, tile: int, origins: tuple[int, ...]) -> None:
    assert plan(length, tile) == origins


@pytest.mark.parametrize("tile", [1, 15, 16, 23])
def test_a_tile_too_small_to_overlap_is_an_error_unless_the_picture_fits(tile: int) -> None:
    assert plan(tile, tile) == (0,)
    with pytest.raises(InputError, match=rf"in one tile of {tile}, .*below 24 pixels .*larger --size"):
        plan(tile + 1, tile)


def test_a_narrow_tile_serves_a_picture_that_is_as_narrow() -> None:
    assert plan_grid((200, 10), (64, 10)).columns == (0,)


@given(lengths, tiles, st.integers(1, 4))
@few
def test_weights_are_positive_and_sum_to_one(length: int, tile: int, scale: int) -> None:
    origins = tuple(o * scale for o in plan(length, tile))
    total = np.zeros(length * scale)
    for origin, weight in zip(origins, axis_weights(origins, tile * scale, length * scale), strict=True):
        assert weight.dtype == np.float32
        assert (weight > 0).all()
        total[origin : origin + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=2e-7)


def test_weights_rise_without_a_step() -> None:
    first, second, _ = axis_weights((0, 48, 96), 64, 160)
    assert (first[:48] == 1).all()
    assert (second[16:48] == 1).all()
    assert (np.diff(second[:17]) > 0).all()
    # From outside the tile (0) to its inside (1) in sixteen pixels, no step is much larger than 1/16.
    assert np.abs(np.diff(np.concatenate([[0], second, [0]]))).max() < 0.11


@given(st.integers(1, 90), st.integers(1, 90), tiles, tiles, st.integers(1, 3), st.integers(0, 99))
@examples(60)
def test_pixel_repetition_by_tiles_is_exact(height: int, width: int, h: int, w: int, scale: int, seed: int) -> None:
    rgb = noise(height, width, seed)
    expected = rgb.repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(through_tiles(rgb, (h, w), scale), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (24, 24), (25, 23)])
def test_thin_pictures(height: int, width: int) -> None:
    rgb = noise(height, width)
    np.testing.assert_array_equal(through_tiles(rgb, (24, 37), 2), rgb.repeat(2, axis=0).repeat(2, axis=1))


def test_tiles_that_differ_are_mixed_by_their_weights() -> None:
    grid = plan_grid((64, 112), (64, 64))
    assert (grid.rows, grid.columns) == ((0,), (0, 48))
    out = blend(grid, 1, (np.full((3, 64, 64), level, np.float32) for level in (0.0, 1.0)))
    weight = axis_weights((0, 48), 64, 112)[1]
    np.testing.assert_array_equal(out[5, 48:, 1], to_levels(weight))
    assert (out[:, :48] == 0).all()
    assert (out[:, 64:] == 255).all()
    assert (out == out[:1, :, :1]).all()


def test_rows_are_mixed_as_columns_are() -> None:
    levels = np.random.default_rng(1).random(9, np.float32)
    grid = plan_grid((130, 130), (64, 64))
    assert len(grid) == 9
    across = blend(grid, 1, (np.full((3, 64, 64), v, np.float32) for v in levels))
    down = blend(grid, 1, (np.full((3, 64, 64), v, np.float32) for v in levels.reshape(3, 3).T.ravel()))
    assert np.abs(across.transpose(1, 0, 2).astype(int) - down).max() <= 1


def test_a_wrong_number_of_tiles_is_an_error() -> None:
    grid = plan_grid((64, 112), (64, 64))
    one = np.zeros((3, 64, 64), np.float32)
    with pytest.raises(ValueError, match="fewer than 2"):
        blend(grid, 1, [one])
    with pytest.raises(ValueError, match="more than 2"):
        blend(grid, 1, [one] * 3)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 16, 32]), st.sampled_from([0, 16, 32]))
@few
def test_a_cut_past_the_picture_is_mirrored_like_the_networks_padding(height: int, width: int, y: int, x: int) -> None:
    rgb = noise(height, width)
    np.testing.assert_array_equal(cut(rgb, (y, x), (50, 37)), mirror_pad(rgb, 100, 100)[y : y + 50, x : x + 37])


def test_rounding() -> None:
    levels = np.arange(256)
    np.testing.assert_array_equal(to_levels((levels / 255).astype(np.float32)), levels)
    values = np.array([-3, 0.49 / 255, 0.51 / 255, 254.49 / 255, 254.51 / 255, 7], np.float32)
    assert to_levels(values).tolist() == [0, 0, 1, 254, 255, 255]


def test_memory_is_a_band_and_the_result() -> None:
    height, width = 2000, 96
    grid = plan_grid((height, width), (64, 64))
    tile = np.full((3, 128, 128), 0.5, np.float32)
    tracemalloc.start()
    out = blend(grid, 2, (tile for _ in grid))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    band = 3 * 128 * width * 2 * 4
    # The whole picture in float32 would be 4 * out.nbytes.
    assert peak < out.nbytes + 4 * band + 200_000 < 2 * out.nbytes


def test_the_table_of_sizes_counts_tiles_right() -> None:
    text = (Path(__file__).parents[1] / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)x\1 \| ([\d,]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) == 4
    for side, runs, share in rows:
        tile = int(side)
        number = len(plan_grid((3000, 4000), (tile, tile)))
        assert runs == f"{number:,}"
        assert share == f"{number * tile**2 / 12e6:.2f}"
