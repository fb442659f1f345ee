"""Upscaling arrays and files through a runner that repeats pixels."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from shared import examples

from ppexport.device.artifact import Artifact, Manifest
from ppexport.device.picture import to_input, to_levels
from ppexport.device.runner import Prepared, Result, Runner, SessionRunner
from ppexport.errors import ArtifactError, ImageError, InputError
from ppexport.imaging import upscaling
from ppexport.imaging.images import Pixels, read_image
from ppexport.imaging.tiles import Blender, axis_weights, cut, plan_grid
from ppexport.imaging.upscaling import Report, TileRun, upscale_array, upscale_file

if TYPE_CHECKING:
    from ppexport.device.runner import Image as Batch

rng = np.random.default_rng(3)


PURE_PASS = {"colors": 8, "window": 8, "csmf": True, "compensation": "value"}


def artifact(size: tuple[int, int], scale: int, capacities: tuple[int, ...] = (256,)) -> Artifact:
    manifest = Manifest(
        backend="fake", name="repeat", arch="pp_atd_light", options=PURE_PASS, scale=scale, size=list(size),
        precision="fp32", flavour="portable", capacities=list(capacities), mask="graph", tokens=capacities[-1],
        files={"model": ""}, weights={}, card_sha256="", licence="", created="",
    )  # fmt: skip
    return Artifact(Path("repeat"), manifest)


class Repeat(Runner):
    """Repeats pixels; `change` may alter a result, given the number of the run."""

    def __init__(self, size: tuple[int, int] = (64, 48), scale: int = 2) -> None:
        super().__init__(artifact(size, scale))
        self.seen: list[Batch] = []
        self.change: Callable[[int, Result], Result] = lambda run, result: result

    def _run(self, prepared: Prepared) -> Result:
        lr = prepared.lr
        self.seen.append(lr)
        sr = lr.repeat(self.scale, axis=2).repeat(self.scale, axis=3)
        return self.change(len(self.seen) - 1, Result(sr, 100, 256))


def enlarged(rgb: np.ndarray, scale: int) -> np.ndarray:
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def noise(height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


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


def test_progress_counts_tiles_in_order_in_the_callers_thread() -> None:
    calls: list[tuple[int, int, int]] = []
    upscale_array(Repeat(), noise(112, 80), lambda done, total: calls.append((done, total, threading.get_ident())))
    assert calls == [(n, 4, threading.get_ident()) for n in range(5)]


def test_an_error_of_progress_ends_the_run() -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyError("enough")

    runner = Repeat()
    with pytest.raises(KeyError, match="enough"):
        upscale_array(runner, noise(112, 80), stop)
    assert len(runner.seen) == 2


# Overlapping


class Uneven(Repeat):
    """Tiles that disagree where they overlap, and that no two additions in another order would blend alike."""

    def _run(self, prepared: Prepared) -> Result:
        sr = super()._run(prepared).sr
        slope = np.linspace(-0.3, 0.3, sr.shape[3], dtype=np.float32)
        return Result(sr * 1.1 + slope * sr.mean(), int(sr.sum()), prepared.capacity)


def one_after_the_other(runner: Runner, rgb: Pixels) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """What `upscale_array` computes, plainly: the whole picture in float32, no thread, no band."""
    grid, s = plan_grid((rgb.shape[0], rgb.shape[1]), runner.size), runner.scale
    height, width = (side * s for side in grid.size)
    total = np.zeros((3, height, width), np.float32)
    rows = axis_weights(tuple(y * s for y in grid.rows), grid.tile[0] * s, height)
    columns = axis_weights(tuple(x * s for x in grid.columns), grid.tile[1] * s, width)
    routing = []
    for (y, x), (wy, wx) in zip(grid, ((wy, wx) for wy in rows for wx in columns), strict=True):
        result = runner(to_input(cut(rgb, (y, x), grid.tile)))
        routing.append((result.impure_tokens, result.capacity))
        part = total[:, y * s : y * s + len(wy), x * s : x * s + len(wx)]
        part += result.sr[0, :, : len(wy), : len(wx)] * (wy[:, None] * wx)
    return to_levels(total).transpose(1, 2, 0), routing


@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.tuples(st.integers(24, 70), st.integers(24, 70)),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@examples(80)
def test_the_result_is_bit_for_bit_that_of_one_tile_after_the_other(
    size: tuple[int, int], tile: tuple[int, int], scale: int, floats: bool, seed: int
) -> None:
    values = np.random.default_rng(seed).random((*size, 3), np.float32)
    rgb = values if floats else to_levels(values)
    expected, routing = one_after_the_other(Uneven(tile, scale), rgb)
    sr, report = upscale_array(Uneven(tile, scale), rgb)
    np.testing.assert_array_equal(sr, expected)
    assert [(run.impure_tokens, run.capacity) for run in report.tiles] == routing
    assert [run.origin for run in report.tiles] == list(plan_grid(size, tile))


class Overlapping(Repeat):
    """Each run ends only once the next tile is being prepared, which never happens where the two take turns."""

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.artifact = artifact(self.size, self.scale, (128, 256, 1024, 3072))
        self.prepared = [threading.Event() for _ in range(tiles)]
        self.threads: set[int] = set()

    def prepare(self, lr: Batch, centers: Any = None) -> Prepared:
        self.threads.add(threading.get_ident())
        next(event for event in self.prepared if not event.is_set()).set()
        return super().prepare(lr, centers)

    def _run(self, prepared: Prepared) -> Result:
        following = len(self.seen) + 1
        assert following == len(self.prepared) or self.prepared[following].wait(60)
        return super()._run(prepared)._replace(capacity=prepared.capacity)


def test_tiles_are_masked_and_given_a_capacity_while_another_runs() -> None:
    rgb = noise(112, 80)
    rgb[48:, 32:] = 128
    runner = Overlapping(4)
    sr, report = upscale_array(runner, rgb)
    np.testing.assert_array_equal(sr, enlarged(rgb, 2))
    # Noise needs all slots, a flat tile the fewest.
    assert [run.capacity for run in report.tiles] == [3072, 3072, 3072, 128]
    assert len(runner.threads) == 1
    assert threading.get_ident() not in runner.threads


def test_tiles_are_blended_while_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    begun = [threading.Event() for _ in range(4)]
    add = Blender.add

    def noted(self: Blender, sr: np.ndarray) -> None:
        begun[len(added)].set()
        add(self, sr)
        added.append(threading.get_ident())

    def wait(run: int, result: Result) -> Result:
        assert run == 0 or begun[run - 1].wait(60)
        return result

    monkeypatch.setattr(Blender, "add", noted)
    runner = Repeat()
    runner.change = wait
    upscale_array(runner, noise(112, 80))
    assert len(added) == 4
    assert len({*added, threading.get_ident()}) == 2


def test_an_error_of_cutting_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rgb: Pixels, origin: tuple[int, int], tile: tuple[int, int]) -> Pixels:
        if origin == (48, 0):
            raise ZeroDivisionError("cut")
        return cut(rgb, origin, tile)

    monkeypatch.setattr("ppexport.imaging.passes.cut", broken)
    runner = Repeat()
    with pytest.raises(ZeroDivisionError, match="cut"):
        upscale_array(runner, noise(112, 80))
    assert len(runner.seen) == 2


def test_a_picture_that_the_runner_refuses_is_an_error() -> None:
    rgb = rng.random((112, 80, 3), np.float32)
    rgb[111, 0, 0] = np.nan
    runner = Repeat()
    with pytest.raises(InputError, match="the image holds NaN"):
        upscale_array(runner, rgb)
    assert len(runner.seen) == 2


@pytest.mark.parametrize("stage", ["cut", "Blender.add", "Blender.__init__"])
def test_too_little_memory_anywhere_is_one_sentence(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"ppexport.imaging.passes.{stage}", full)
    with pytest.raises(ImageError, match="80x112 pixels times 2 do not fit into memory"):
        upscale_array(Repeat(), noise(112, 80))


def test_an_error_of_the_runtime_comes_out_as_it_was_raised() -> None:
    error = RuntimeError("the device is gone")

    def fail(run: int, result: Result) -> Result:
        if run == 1:
            raise error
        return result

    runner = Repeat()
    runner.change = fail
    with pytest.raises(RuntimeError) as caught:
        upscale_array(runner, noise(112, 80))
    assert caught.value is error
    assert len(runner.seen) == 2


def test_ctrl_c_ends_the_run() -> None:
    def interrupt(run: int, result: Result) -> Result:
        if run == 1:
            signal.raise_signal(signal.SIGINT)
        return result

    runner = Repeat()
    runner.change = interrupt
    with pytest.raises(KeyboardInterrupt):
        upscale_array(runner, noise(112, 80))
    assert len(runner.seen) == 2


# The report


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
    assert report.overhead > 0


def test_the_overhead_is_a_share_of_the_inferences() -> None:
    runs = tuple(TileRun((0, x), 1, 1, seconds) for x, seconds in ((0, 1.5), (16, 0.5)))
    report = Report((64, 80), (128, 160), (64, 64), runs, 2.1)
    assert report.overhead == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(bad: float) -> None:
    def spoil(run: int, result: Result) -> Result:
        result.sr[0, 1, 5, 5] = bad if run == 2 else 0
        return result

    runner = Repeat()
    runner.change = spoil
    with pytest.raises(ArtifactError, match=r"repeat returned NaN or infinite values for the tile at \(48, 0\)"):
        upscale_array(runner, noise(112, 80))


@pytest.mark.parametrize(
    ("precision", "facts", "way"),
    [
        ("fp32", {"calibrates": True}, "the weights are damaged or too large for fp32"),
        ("fp16", {"calibrates": True}, "exceed 65504.*: export it as fp32, or calibrate the model"),
        ("w8", {}, "exceed 65504, the largest of fp16: export it as fp32$"),
        (
            "int8",
            {"has_fp32": False},
            "exceed 65504, the largest of fp16, and what runs it has nothing wider: export it for",
        ),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_runner_names_itself_and_the_way_out(precision: str, facts: dict[str, bool], way: str, bad: float) -> None:
    runner = Repeat((8, 8))
    vars(runner).update(facts)
    manifest = dataclasses.replace(runner.artifact.manifest, precision=precision)
    runner.artifact = dataclasses.replace(runner.artifact, manifest=manifest)
    runner.change = lambda run, result: result._replace(sr=result.sr * np.float32(bad))
    prepared = runner.prepare(np.ones((1, 3, 8, 8), np.float32))
    with pytest.raises(ArtifactError, match=f"^repeat returned NaN or infinite values: .*{way}"):
        runner.run(prepared)
    assert not np.isfinite(runner.run_unchecked(prepared).sr).any()


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({}, "sr"),
        ({"sr": np.zeros((1, 3, 16, 16)), "impure_tokens": np.zeros(0)}, "impure_tokens"),
        ({"impure_tokens": np.zeros(1)}, "sr"),
    ],
)
def test_a_foreign_model_without_our_outputs_is_an_error(found: dict[str, Any], name: str) -> None:
    class Foreign:
        facts: ClassVar = {"ppexport.capacities": "256", "ppexport.card_sha256": ""}

        def run(self, inputs: Any) -> dict[str, Any]:
            return found

    runner = SessionRunner(artifact((8, 8), 2), Foreign())
    with pytest.raises(ArtifactError, match=f"computes no {name}"):
        runner(np.zeros((1, 3, 8, 8), np.float32))


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
    visible = enlarged(alpha[..., None], 2)[..., 0] > 0
    np.testing.assert_array_equal(picture.rgb[visible], enlarged(rgb, 2)[visible])
    # It goes through the runner as well.
    np.testing.assert_array_equal(picture.alpha, enlarged(alpha, 2))
    assert isinstance(report, Report)
    assert (report.lr_size, report.sr_size, len(report.tiles)) == ((100, 70), (200, 140), 8)


def test_the_total_of_a_file_holds_reading_and_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("read_image", "write_image"):
        real = getattr(upscaling, name)

        def slow(*arguments: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            time.sleep(0.1)
            return real(*arguments, **options)

        monkeypatch.setattr(upscaling, name, slow)
    report = upscale_file(Repeat(), source(tmp_path, noise(100, 70)), tmp_path / "sr.png")
    assert 0.2 + report.seconds_runtime < report.seconds_total


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


def test_gamma_and_resolution_are_kept(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4, "big"))
    lr = source(tmp_path, noise(9, 9), pnginfo=info, dpi=(300, 300))
    upscale_file(Repeat(), lr, tmp_path / "sr.png")
    with Image.open(tmp_path / "sr.png") as image:
        assert image.info["gamma"] == 1.0
        assert round(image.info["dpi"][0]) == 300
    runner = Repeat()
    with pytest.raises(ImageError, match="gAMA chunk"):
        upscale_file(runner, lr, tmp_path / "sr.jpg")
    assert runner.seen == []


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
        assert image.getexif()[0x0112] == 1
        np.testing.assert_array_equal(np.asarray(image), enlarged(np.rot90(rgb, -1), 2))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sr.jp2", "extension is one of"),
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


@pytest.mark.parametrize("name", ["lr.jpg", "lr.png", "lr.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_of_a_picture_smaller_than_a_tile(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lr.jpg": {"quality": 95}, "lr.png": {}, "lr.webp": {"lossless": True, "exact": True}}[name]
    lr = source(tmp_path, noise(5, 9), name, exif=exif.tobytes(), **options)
    with Image.open(lr) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape[:2] == ((5, 9) if orientation < 5 else (9, 5))
    runner = Repeat((16, 24))
    report = upscale_file(runner, lr, tmp_path / "sr.png")
    assert report.sr_size == (upright.shape[0] * 2, upright.shape[1] * 2)
    with Image.open(tmp_path / "sr.png") as image:
        assert image.getexif().get(0x0112) == 1
        np.testing.assert_array_equal(np.asarray(image), enlarged(upright, 2))


def test_a_picture_too_wide_for_jpeg_is_known_before_the_first_run(tmp_path: Path) -> None:
    rgb = noise(2, 33_000)
    lr = source(tmp_path, rgb)
    runner = Repeat((2, 9_000))
    with pytest.raises(ImageError, match=r"JPEG sides end at 65500 pixels, the result has 66000x4: use \.png"):
        upscale_file(runner, lr, tmp_path / "sr.jpg")
    assert runner.seen == []
    upscale_file(runner, source(tmp_path, rgb, "lr.jpg", quality=95), tmp_path / "sr.png")
    assert read_image(tmp_path / "sr.png").size == (4, 66_000)
    upscale_file(runner, source(tmp_path, rgb[:, :32_750]), tmp_path / "sr.jpg")
    assert read_image(tmp_path / "sr.jpg").size == (4, 65_500)
