"""Transparency without fringes, and textures without seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import exported_once
from PIL import Image
from small_networks import small_network

from ppexport.backends.backend import open_artifact
from ppexport.device.picture import to_input, to_levels
from ppexport.errors import InputError
from ppexport.imaging.enlarging import WRAP_CONTEXT, EnlargeOptions, Run, enlarge, runs_of
from ppexport.imaging.images import Picture, Pixels, read_image, write_image
from ppexport.imaging.upscaling import upscale_array

RED, GREEN = (220, 20, 30), (0, 255, 0)
BICUBIC = EnlargeOptions(alpha="bicubic")
rng = np.random.default_rng(8)


def by_network(scale: int) -> Run:
    """Runs a whole picture through a network of one layer with real weights: any network, not a good one."""
    network = small_network(scale, layers=1)

    def run(rgb: Pixels, depth: int) -> np.ndarray:
        with torch.no_grad():
            sr = network(torch.from_numpy(to_input(rgb))).numpy()
        return to_levels(sr[0], depth).transpose(1, 2, 0)

    return run


def by_lanczos(scale: int) -> Run:
    """A filter that overshoots at edges, as good networks do."""
    return lambda rgb, depth: np.asarray(
        Image.fromarray(np.ascontiguousarray(rgb)).resize(
            (rgb.shape[1] * scale, rgb.shape[0] * scale), Image.Resampling.LANCZOS
        )
    )


@pytest.fixture(scope="module")
def by_tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a picture in blended tiles of an artifact."""
    artifact = exported_once(tmp_path_factory, small_network(layers=2), backend="onnx", size=(32, 48))
    with open_artifact(artifact) as runner:
        yield lambda rgb, depth: upscale_array(runner, rgb, depth=depth).rgb


class Noted:
    """Repeats pixels, and keeps what it was given."""

    def __init__(self, scale: int = 2) -> None:
        self.scale = scale
        self.seen: list[Pixels] = []

    def __call__(self, rgb: Pixels, depth: int) -> np.ndarray:
        self.seen.append(rgb)
        large = rgb.repeat(self.scale, 0).repeat(self.scale, 1)
        if large.dtype == np.uint8:
            return large if depth == 8 else large.astype(np.uint16) * 257
        return to_levels(large, depth)


def disc(edge: float, size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on transparent green, whose alpha falls over *edge* pixels."""
    y, x = np.mgrid[:size, :size] + 0.5
    alpha = np.clip(0.5 + (size * 0.32 - np.hypot(y - size / 2, x - size / 2)) / edge, 0, 1)
    levels = np.floor(alpha * 255 + 0.5).astype(np.uint8)
    return np.where(levels[..., None] > 0, RED, GREEN).astype(np.uint8), levels


# Alpha


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("edge", [0.01, 1, 3, 8])
@pytest.mark.parametrize("options", [EnlargeOptions(), BICUBIC])
@pytest.mark.parametrize("kind", [by_network, by_lanczos])
def test_a_red_disc_on_transparent_green_has_no_green_at_its_edge(
    tmp_path: Path, scale: int, edge: float, options: EnlargeOptions, kind: Callable[[int], Run]
) -> None:
    rgb, alpha = disc(edge)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    run = kind(scale)
    write_image(tmp_path / "b.png", enlarge(read_image(tmp_path / "a.png"), run, scale, options))
    large = read_image(tmp_path / "b.png")
    assert large.alpha is not None
    assert large.size == (28 * scale, 28 * scale)
    visible = large.alpha > 0
    # What the network makes of plain red is all that is seen.
    plain = enlarge(Picture(np.full_like(rgb, RED)), run, scale).rgb
    np.testing.assert_array_equal(large.rgb[visible], plain[visible])
    # Over black no pixel is greener than that.
    assert (large.rgb[..., 1] * (large.alpha / 255)).max() <= plain[..., 1].max()


def test_the_edge_stays_where_it_was() -> None:
    rgb, alpha = disc(1)
    for options in (EnlargeOptions(), BICUBIC):
        large = enlarge(Picture(rgb, alpha), by_lanczos(2), 2, options).alpha
        assert large is not None
        assert abs(large.mean() - alpha.mean()) < 1
        halved = large.reshape(28, 2, 28, 2).mean((1, 3))
        assert np.abs(halved - alpha).mean() < 4


def test_what_is_clear_or_opaque_stays_so() -> None:
    """A network gives no exact zeros: a haze over a whole picture would be seen on any other ground."""
    _, alpha = disc(1, 40)

    def hazy(rgb: Pixels, depth: int) -> np.ndarray:
        large = rgb.repeat(2, 0).repeat(2, 1)
        return np.where(large > 128, large - 2, large + 2).astype(np.uint8)

    large = enlarge(Picture(np.zeros((40, 40, 3), np.uint8), alpha), hazy, 2).alpha
    assert large is not None
    assert (large[:4] == 0).all()
    assert (large[36:44, 36:44] == 255).all()


@pytest.mark.parametrize("value", [0, 90, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_alpha_that_is_the_same_everywhere_costs_no_run(value: int, kind: type) -> None:
    run = Noted()
    alpha = np.full((9, 7), value, np.uint8) if kind is np.uint8 else np.full((9, 7), value / 255, np.float32)
    rgb = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    large = enlarge(Picture(rgb, alpha), run, 2)
    assert len(run.seen) == 1 == len(runs_of(Picture(rgb, alpha)))
    assert large.alpha is not None
    assert (large.alpha == value).all()


def test_alpha_is_run_as_grey_after_the_colours() -> None:
    rgb, alpha = disc(3)
    run = Noted()
    enlarge(Picture(rgb, alpha), run, 2)
    assert [seen.shape for seen in run.seen] == [(28, 28, 3)] * 2
    assert runs_of(Picture(rgb, alpha)) == [(28, 28)] * 2
    np.testing.assert_array_equal(run.seen[1], alpha[..., None].repeat(3, axis=2))
    assert (run.seen[0] == RED).all()
    run = Noted()
    large = enlarge(Picture(rgb, alpha), run, 2, BICUBIC)
    assert len(run.seen) == 1 == len(runs_of(Picture(rgb, alpha), BICUBIC))
    expected = Image.fromarray(alpha).resize((56, 56), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(large.alpha, np.asarray(expected))


@pytest.mark.parametrize("options", [EnlargeOptions(), BICUBIC])
def test_alpha_of_16_bits(options: EnlargeOptions) -> None:
    y, x = np.mgrid[:20, :30]
    alpha = ((x * 20 + y) / 700).astype(np.float32)
    large = enlarge(Picture(np.zeros((20, 30, 3), np.float32), alpha), Noted(), 2, options, depth=16).alpha
    assert large is not None
    assert large.dtype == np.uint16
    assert len(np.unique(large)) > 256
    assert np.abs(large / 65535 - alpha.repeat(2, 0).repeat(2, 1)).max() < 0.04


@pytest.mark.parametrize(("options", "message"), [({"alpha": "none"}, "network, bicubic"), ({"wrap": "z"}, "x, y, xy")])
def test_a_choice_that_does_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EnlargeOptions(**options)


# Wrapping around


def texture(height: int, width: int) -> np.ndarray:
    """Soft noise without a seam: each frequency fits a whole number of times."""
    spectrum = np.fft.fft2(rng.standard_normal((height, width, 3)), axes=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    noise = np.fft.ifft2(spectrum * np.exp(-(((radius - 0.12) / 0.1) ** 2))[..., None], axes=(0, 1)).real
    return np.clip(128 + 50 * np.tanh(2 * noise / noise.std()), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 56), (20, 17), (3, 100)])
@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
def test_what_lies_at_the_opposite_edge_is_seen_beyond_each(size: tuple[int, int], wrap: str) -> None:
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    run = Noted(3)
    large = enlarge(Picture(rgb), run, 3, EnlargeOptions(wrap=wrap))
    np.testing.assert_array_equal(large.rgb, rgb.repeat(3, 0).repeat(3, 1))
    (seen,) = run.seen
    assert [seen.shape[:2]] == runs_of(Picture(rgb), EnlargeOptions(wrap=wrap))
    above, left = WRAP_CONTEXT * ("y" in wrap), WRAP_CONTEXT * ("x" in wrap)
    expected = np.pad(rgb, ((above, above), (left, left), (0, 0)), mode="wrap")
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("size", [(40, 56), (96, 80), (24, 20)])
def test_no_seam_is_left(by_tiles: Run, size: tuple[int, int]) -> None:
    """Rolled by half, what was the seam lies in the middle: nothing bends more sharply there than elsewhere."""
    large = enlarge(Picture(texture(*size)), by_tiles, 2, EnlargeOptions(wrap="xy")).rgb.astype(float)
    rolled = np.roll(large, size, axis=(0, 1))
    for axis in (0, 1):
        bend = np.abs(np.diff(rolled, 2, axis=axis)).mean((1 - axis, 2))
        middle = size[axis] - 1
        assert bend[middle - 1 : middle + 1].max() < 1.2 * np.quantile(np.delete(bend, [middle - 1, middle]), 0.9)


def test_where_a_texture_is_cut_makes_no_difference(by_tiles: Run) -> None:
    rgb = texture(48, 64)
    seams = np.zeros((96, 128), bool)
    seams[np.arange(-4, 4)] = seams[np.arange(44, 52)] = True
    seams[:, np.arange(-4, 4)] = seams[:, np.arange(60, 68)] = True

    def difference(options: EnlargeOptions) -> np.ndarray:
        here = enlarge(Picture(rgb), by_tiles, 2, options).rgb.astype(float)
        moved = enlarge(Picture(np.roll(rgb, (24, 32), (0, 1))), by_tiles, 2, options).rgb.astype(float)
        return np.abs(here - np.roll(moved, (-48, -64), (0, 1))).mean(2)

    wrapped, plain = difference(EnlargeOptions(wrap="xy")), difference(EnlargeOptions())
    assert wrapped[seams].mean() <= wrapped[~seams].mean() * 1.25 + 0.05
    assert plain[seams].mean() > wrapped[seams].mean() * 2


def test_alpha_wraps_around_as_well() -> None:
    alpha = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    rgb = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    run = Noted()
    large = enlarge(Picture(rgb, alpha), run, 2, EnlargeOptions(wrap="x"))
    assert [seen.shape[:2] for seen in run.seen] == [(20, 30 + 2 * WRAP_CONTEXT)] * 2
    np.testing.assert_array_equal(large.alpha, alpha.repeat(2, 0).repeat(2, 1))
    bicubic = enlarge(Picture(rgb, alpha), run, 2, EnlargeOptions("bicubic", "xy")).alpha
    tiled = Image.fromarray(np.tile(alpha, (3, 3))).resize((180, 120), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(bicubic, np.asarray(tiled)[40:80, 60:120])
