"""Upscaling arrays and files through a runner that repeats pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ppexport import tiles
from ppexport.artifact import Artifact, Manifest
from ppexport.backends.base import Image as Batch
from ppexport.backends.base import Result, Runner
from ppexport.errors import ArtifactError, ImageError, InputError
from ppexport.images import read_image
from ppexport.upscale import Report, Upscaled, upscale_array, upscale_file

rng = np.random.default_rng(3)


def artifact(size: tuple[int, int], scale: int) -> Artifact:
    tokens = tiles.MULTIPLE**2
    manifest = Manifest(
        backend="fake", name="repeat", arch="pp_atd_light", options={}, scale=scale, size=list(size), precision="fp32",
        capacities=[tokens], tokens=tokens, files={"model": ""}, weights={}, card_sha256="", licence="", created="",
    )  # fmt: skip
    return Artifact(Path("repeat"), manifest)


class Repeat(Runner):
    """Repeats pixels; `change` may alter a result, given the number of the run."""

    def __init__(self, size: tuple[int, int] = (64, 48), scale: int = 2) -> None:
        super().__init__(artifact(size, scale))
        self.seen: list[Batch] = []
        self.change: Callable[[int, Result], Result] = lambda run, result: result

    def _run(self, lr: Batch) -> Result:
        self.seen.append(lr)
        sr = lr.repeat(self.scale, axis=2).repeat(self.scale, axis=3)
        return self.change(len(self.seen) - 1, Result(sr, 100, 256))


def enlarged(rgb: np.ndarray, scale: int) -> np.ndarray:
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def noise(height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


# Arrays


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (64, 48), (65, 48), (64, 49), (150, 200), (1, 300)])
def test_repeated_pixels_come_out_exactly(size: tuple[int, int], scale: int) -> None:
    rgb = noise(*size)
    sr, report = upscale_array(Repeat(scale=scale), rgb)
    assert sr.dtype == np.uint8
    np.testing.assert_array_equal(sr, enlarged(rgb, scale))
    assert (report.lr_size, report.sr_size) == (size, sr.shape[:2])


def test_8_bit_levels_are_fed_as_v_over_255() -> None:
    rgb = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    runner = Repeat((16, 16))
    upscale_array(runner, rgb)
    np.testing.assert_array_equal(runner.seen[0][0, 0].ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


def test_float_pixels_are_fed_as_they_are() -> None:
    rgb = rng.random((20, 30, 3), np.float32)
    runner = Repeat((20, 30))
    upscale_array(runner, rgb)
    np.testing.assert_array_equal(runner.seen[0][0], rgb.transpose(2, 0, 1))


def test_a_picture_that_fits_is_one_run_padded_with_mirrored_copies() -> None:
    rgb = noise(40, 30)
    runner = Repeat((64, 48))
    report = upscale_array(runner, rgb).report
    assert [run.origin for run in report.tiles] == [(0, 0)]
    np.testing.assert_array_equal(runner.seen[0][0, :, 40:, :30], runner.seen[0][0, :, 39:15:-1, :30])
    np.testing.assert_array_equal(runner.seen[0][0, :, :40, 30:], runner.seen[0][0, :, :40, 29:11:-1])


def test_tiles_hold_the_pixels_at_their_origin() -> None:
    rgb = noise(112, 80)
    runner = Repeat((64, 48))
    report = upscale_array(runner, rgb).report
    assert [run.origin for run in report.tiles] == [(y, x) for y in (0, 48) for x in (0, 32)]
    for run, lr in zip(report.tiles, runner.seen, strict=True):
        y, x = run.origin
        np.testing.assert_array_equal((lr[0] * 255).round().transpose(1, 2, 0), rgb[y : y + 64, x : x + 48])


def test_the_result_is_clamped_and_rounded_after_blending() -> None:
    runner = Repeat((16, 16))
    values = np.array([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0], np.float32)
    runner.change = lambda run, result: result._replace(sr=np.tile(values, (1, 3, 32, 8)))
    assert upscale_array(runner, noise(16, 16)).rgb[0, :4, 0].tolist() == [0, 0, 1, 255]


def test_no_border_shows_where_tiles_disagree() -> None:
    # Each tile is off by a constant of its own, alternating: the hardest case for borders.
    runner = Repeat((64, 64))
    runner.change = lambda run, result: result._replace(sr=result.sr + np.float32(0.04 if run % 2 else -0.04))
    flat = np.full((64, 160, 3), 128, np.uint8)
    sr = upscale_array(runner, flat).rgb[..., 0].astype(int)
    assert len(runner.seen) == 3
    # A hard border would be a step of 20 levels.
    assert sr.max() - sr.min() in (20, 21)
    assert np.abs(np.diff(sr, axis=1)).max() <= 2


def test_progress_counts_finished_tiles() -> None:
    calls: list[tuple[int, int]] = []
    upscale_array(Repeat(), noise(112, 80), lambda done, total: calls.append((done, total)))
    assert calls == [(n, 4) for n in range(5)]


def test_every_tile_over_capacity_is_reported() -> None:
    runner = Repeat()
    runner.change = lambda run, result: result._replace(impure_tokens=[100, 300, 256, 999][run])
    report = upscale_array(runner, noise(112, 80)).report
    assert [run.impure_tokens for run in report.tiles] == [100, 300, 256, 999]
    assert {run.capacity for run in report.tiles} == {256}
    assert [run.origin for run in report.over_capacity] == [(0, 32), (48, 32)]
    assert report.warning is not None
    assert "2 of 4 tiles" in report.warning
    assert "999 for 256, at row 48, column 32" in report.warning


def test_no_warning_without_reason() -> None:
    assert upscale_array(Repeat(), noise(112, 80)).report.warning is None


def test_seconds_in_the_runner_are_part_of_the_total() -> None:
    report = upscale_array(Repeat(), noise(112, 80)).report
    assert all(run.seconds > 0 for run in report.tiles)
    assert report.seconds_runtime == pytest.approx(sum(run.seconds for run in report.tiles))
    assert report.seconds_runtime < report.seconds_total


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(bad: float) -> None:
    def spoil(run: int, result: Result) -> Result:
        result.sr[0, 1, 5, 5] = bad if run == 2 else 0
        return result

    runner = Repeat()
    runner.change = spoil
    with pytest.raises(ArtifactError, match=r"repeat returned NaN or infinite values for the tile at \(48, 0\)"):
        upscale_array(runner, noise(112, 80))


def test_a_result_of_another_shape_is_an_error() -> None:
    runner = Repeat()
    runner.change = lambda run, result: result._replace(sr=result.sr[:, :, 1:])
    with pytest.raises(ArtifactError, match=r"returned \(1, 3, 127, 96\), expected \(1, 3, 128, 96\)"):
        upscale_array(runner, noise(10, 10))


def test_a_tile_too_small_names_the_way_out() -> None:
    runner = Repeat((64, 20))
    assert upscale_array(runner, noise(100, 20)).rgb.shape == (200, 40, 3)
    with pytest.raises(InputError, match="larger --size"):
        upscale_array(runner, noise(100, 21))


@pytest.mark.parametrize(
    ("shape", "kind"), [((4, 4), np.uint8), ((4, 4, 4), np.uint8), ((4, 4, 3), np.float64), ((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_errors(shape: tuple[int, ...], kind: type) -> None:
    with pytest.raises(ValueError, match="uint8 or float32"):
        upscale_array(Repeat(), np.zeros(shape, kind))


# Files


def source(tmp_path: Path, rgb: np.ndarray, name: str = "lr.png", **options: object) -> Path:
    Image.fromarray(rgb).save(tmp_path / name, **options)
    return tmp_path / name


def test_a_file_with_alpha(tmp_path: Path) -> None:
    rgb, alpha = noise(100, 70), rng.integers(0, 256, (100, 70), dtype=np.uint8)
    lr = source(tmp_path, np.dstack([rgb, alpha]))
    report = upscale_file(Repeat(), lr, tmp_path / "sr.png")
    picture = read_image(tmp_path / "sr.png")
    np.testing.assert_array_equal(picture.rgb, enlarged(rgb, 2))
    expected = Image.fromarray(alpha).resize((140, 200), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(picture.alpha, np.asarray(expected))
    assert isinstance(report, Report)
    assert (report.lr_size, report.sr_size, len(report.tiles)) == ((100, 70), (200, 140), 4)


def test_the_total_of_a_file_holds_reading_and_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def array(*args: Any) -> Upscaled:
        result = upscale_array(*args)
        seen.append(result.report.seconds_total)
        return result

    monkeypatch.setattr("ppexport.upscale.upscale_array", array)
    report = upscale_file(Repeat(), source(tmp_path, noise(100, 70)), tmp_path / "sr.png")
    assert report.seconds_total > seen[0]


def test_a_grey_file_stays_grey(tmp_path: Path) -> None:
    grey = noise(50, 40)[..., 0]
    upscale_file(Repeat(), source(tmp_path, grey), tmp_path / "sr.png")
    with Image.open(tmp_path / "sr.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), enlarged(grey, 2))


def test_the_colour_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    upscale_file(Repeat(), source(tmp_path, noise(9, 9), icc_profile=profile), tmp_path / "sr.png")
    assert read_image(tmp_path / "sr.png").icc == profile


def test_16_bit_grey_reaches_the_runner_in_full(tmp_path: Path) -> None:
    levels = rng.integers(0, 65536, (30, 30), dtype=np.uint16)
    runner = Repeat((30, 30))
    upscale_file(runner, source(tmp_path, levels), tmp_path / "sr.png")
    np.testing.assert_array_equal(runner.seen[0][0, 2], levels.astype(np.float32) / np.float32(65535))


def test_a_turned_photograph_comes_out_upright(tmp_path: Path) -> None:
    rgb = noise(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    upscale_file(Repeat(), source(tmp_path, rgb, exif=exif.tobytes()), tmp_path / "sr.png")
    with Image.open(tmp_path / "sr.png") as image:
        assert 0x0112 not in image.getexif()
        np.testing.assert_array_equal(np.asarray(image), enlarged(np.rot90(rgb, -1), 2))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sr.bmp", "extension is one of"),
        ("missing/sr.png", "does not exist"),
        (".", "extension|folder"),
        ("sr.jpg", "no transparency"),
    ],
)
def test_a_target_that_cannot_be_written_is_known_before_the_first_run(
    tmp_path: Path, target: str, message: str
) -> None:
    runner = Repeat()
    lr = source(tmp_path, noise(70, 70)[..., [0, 1, 2, 0]])
    with pytest.raises(ImageError, match=message):
        upscale_file(runner, lr, tmp_path / target)
    assert runner.seen == []


def test_the_size_that_a_format_must_hold_is_the_results(tmp_path: Path) -> None:
    runner = Repeat((24, 9000))
    with pytest.raises(ImageError, match="WEBP sides end at 16383 pixels, the result has 18000x2"):
        upscale_file(runner, source(tmp_path, noise(1, 9000)), tmp_path / "sr.webp")
    assert runner.seen == []


def test_max_pixels_is_passed_on(tmp_path: Path) -> None:
    lr = source(tmp_path, noise(10, 10))
    with pytest.raises(ImageError, match="--max-pixels 100"):
        upscale_file(Repeat(), lr, tmp_path / "sr.png", max_pixels=99)
    upscale_file(Repeat(), lr, tmp_path / "sr.png", max_pixels=100)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArtifactError])
def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupt(run: int, result: Result) -> Result:
        if run == 2:
            raise error
        return result

    runner = Repeat()
    runner.change = interrupt
    lr = source(tmp_path, noise(112, 80))
    target = tmp_path / "sr.png"
    target.write_bytes(b"the old file")
    with pytest.raises(error):
        upscale_file(runner, lr, target)
    assert len(runner.seen) == 3
    assert target.read_bytes() == b"the old file"
    assert sorted(os.listdir(tmp_path)) == ["lr.png", "sr.png"]


def test_an_interrupt_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = source(tmp_path, noise(40, 40))
    target = tmp_path / "sr.png"
    target.write_bytes(b"the old file")

    def interrupt(self: Image.Image, stream: IO[bytes], **options: object) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        upscale_file(Repeat(), lr, target)
    assert target.read_bytes() == b"the old file"
    assert sorted(os.listdir(tmp_path)) == ["lr.png", "sr.png"]


def test_a_file_may_be_upscaled_in_place(tmp_path: Path) -> None:
    rgb = noise(40, 40)
    path = source(tmp_path, rgb)
    upscale_file(Repeat(), path, path)
    np.testing.assert_array_equal(read_image(path).rgb, enlarged(rgb, 2))
