"""Tiles that do not change are not run again, and deadlines."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_upscale import PURE_PASS, Repeat, Uneven, artifact, one_after_the_other

from ppexport.device.runner import Prepared, Result
from ppexport.errors import ArtifactError, InputError
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.video_tiles import FrameReport, FrameUpscaler

rng = np.random.default_rng(5)


def upscaled(runner: Any, frames: list[np.ndarray], **options: Any) -> tuple[list[np.ndarray], list[FrameReport]]:
    pictures, reports = [], []

    def done(picture: np.ndarray, report: FrameReport) -> None:
        pictures.append(picture)
        reports.append(report)

    FrameUpscaler(runner, frames[0].shape[:2], **options).run(iter(frames), done)
    return pictures, reports


def noise(height: int = 112, width: int = 80) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def changed(rgb: np.ndarray, y: int, x: int) -> np.ndarray:
    found = rgb.copy()
    found[y, x] ^= 1
    return found


@pytest.mark.parametrize("floats", [False, True])
def test_a_tile_is_run_again_where_any_of_its_pixels_changed_and_nowhere_else(floats: bool) -> None:
    # Four tiles of 64x48 in 112x80: rows 0 and 48, columns 0 and 32.
    first = noise()
    frames = [first, first.copy()]
    # Alone in one tile; in the overlap of two; of all four; one channel of the last pixel.
    for y, x in ((5, 5), (5, 40), (50, 40), (111, 79)):
        frames.append(changed(frames[-1], y, x))
    if floats:
        frames = [frame.astype(np.float32) / 255 for frame in frames]
    runner = Uneven((64, 48))
    pictures, reports = upscaled(runner, frames)
    assert [report.tiles for report in reports] == [4, 0, 1, 2, 4, 1]
    assert [report.unchanged for report in reports] == [0, 4, 3, 2, 0, 3]
    for frame, picture in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(picture, one_after_the_other(Uneven((64, 48)), frame)[0])
    assert pictures[1] is pictures[0]


def test_pixels_that_come_back_are_run_again_and_mirrored_ones_belong_to_their_tile() -> None:
    one, other = noise(60, 70), noise(60, 70)
    _, reports = upscaled(Repeat((64, 48)), [one, other, one, one])
    assert [report.tiles for report in reports] == [2, 2, 2, 0]


def test_16_bits_come_out_where_they_are_asked_for() -> None:
    frame = rng.random((40, 30, 3), np.float32)
    (picture,), _ = upscaled(Repeat((64, 48)), [frame], depth=16)
    expected = np.floor(frame * 65535 + 0.5).astype(np.uint16).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(picture, expected)


class Adaptive(Repeat):
    """Adds the first colour centre to every tile."""

    def __init__(self) -> None:
        super().__init__((64, 48))
        found = artifact(self.size, 2)
        options = {**PURE_PASS, "centres": "adaptive"}
        manifest = type(found.manifest)(**{**vars(found.manifest), "options": options, "mask": "input"})
        self.artifact = type(found)(Path("repeat"), manifest)
        self.centers: list[Any] = []

    def prepare(self, lr: Any, centers: Any = None) -> Prepared:
        self.centers.append(centers)
        return Prepared(lr, None, 256)


def test_adaptive_centres_are_the_frames_and_other_centres_run_every_tile() -> None:
    one = np.zeros((112, 80, 3), np.uint8)
    one[:, :40] = (200, 30, 30)
    other = one.copy()
    other[:40, 60:] = (10, 240, 10)
    runner = Adaptive()
    _, reports = upscaled(runner, [one, one, other])
    assert [report.tiles for report in reports] == [4, 0, 4]
    assert all(np.array_equal(centers, runner.artifact.manifest.centers(one)) for centers in runner.centers[:4])
    assert all(np.array_equal(centers, runner.artifact.manifest.centers(other)) for centers in runner.centers[4:])


def test_what_is_not_finite_names_the_tile() -> None:
    runner = Repeat((64, 48))
    runner.change = lambda run, result: result._replace(sr=result.sr * (np.nan if run == 5 else 1))
    with pytest.raises(ArtifactError, match=r"NaN or infinite values for the tile at \(0, 32\)"):
        upscaled(runner, [noise(), noise()])


def test_frames_that_wait_are_stopped_by_ctrl_c() -> None:
    stopped: list[bool] = []

    def frames() -> Iterator[np.ndarray]:
        yield noise()
        while not stopped:
            time.sleep(0.01)

    runner = Repeat((64, 48))

    def interrupt(run: int, result: Result) -> Result:
        if run == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    runner.change = interrupt
    upscaler = FrameUpscaler(runner, (112, 80))
    with pytest.raises(KeyboardInterrupt):
        upscaler.run(frames(), lambda picture, report: None, lambda: stopped.append(True))


# Deadlines


class Slots(Repeat):
    """Needs as many slots as `needed` says, and counts as impure what has none."""

    def __init__(self, needed: int) -> None:
        super().__init__((64, 48))
        self.artifact = artifact(self.size, 2, (128, 256, 1024, 3072))
        self.needed, self.capacities = needed, list[int]()

    def prepare(self, lr: Any, centers: Any = None) -> Prepared:
        return Prepared(lr, None, self.needed)

    def _run(self, prepared: Prepared) -> Result:
        self.capacities.append(prepared.capacity)
        return super()._run(prepared)._replace(impure_tokens=self.needed - 1, capacity=prepared.capacity)


def known(fps: float, times: dict[int, float]) -> Deadline:
    deadline = Deadline(fps, (128, 256, 1024, 3072))
    for capacity, seconds in times.items():
        deadline.observe(capacity, seconds)
    return deadline


def test_the_largest_capacity_that_fits_the_time_left_is_chosen() -> None:
    deadline = known(10, {128: 0.01, 256: 0.02, 1024: 0.05, 3072: 0.1})
    assert deadline.choose(3072, 1, 0.0) == 1024
    assert deadline.choose(3072, 4, 0.0) == 256
    assert deadline.choose(3072, 4, 0.05) == 128
    # Never more than is needed, and the smallest where none fits.
    assert deadline.choose(256, 1, 0.0) == 256
    assert deadline.choose(3072, 4, 0.5) == 128
    assert deadline.expected(640) == pytest.approx(0.035)
    # What is around the runs counts.
    for _ in range(40):
        deadline.ended(0.1, 0.06)
    assert deadline.choose(3072, 1, 0.0) == 256


def test_times_are_learnt() -> None:
    deadline = known(10, {128: 0.01, 3072: 0.02})
    assert deadline.choose(3072, 1, 0.0) == 3072
    for _ in range(40):
        deadline.observe(3072, 0.4)
    assert deadline.choose(3072, 1, 0.0) == 256


def test_tiles_over_capacity_are_counted_and_run_again_when_there_is_time() -> None:
    runner, frame = Slots(3072), noise()
    deadline = known(1000, dict.fromkeys((128, 256, 1024, 3072), 1.0))
    upscaler = FrameUpscaler(runner, (112, 80), deadline=deadline)
    reports: list[FrameReport] = []

    def give(frame: np.ndarray) -> None:
        upscaler.run([frame], lambda picture, report: reports.append(report))

    give(frame)
    assert runner.capacities == [128] * 4
    assert reports[-1].over_capacity == 4
    # The same frame again, still without time: nothing is gained by running it.
    give(frame)
    assert len(runner.capacities) == 4
    assert reports[-1][:3] == (0, 4, 4)
    deadline.budget = 1000.0
    give(frame)
    assert runner.capacities[4:] == [3072] * 4
    assert reports[-1][:3] == (4, 0, 0)
    give(frame)
    assert reports[-1][:3] == (0, 4, 0)
    assert deadline.frames == 4


def test_without_a_deadline_tiles_over_capacity_are_counted_in_every_frame() -> None:
    runner = Slots(4000)
    runner.artifact = artifact(runner.size, 2, (128,))
    runner.prepare = lambda lr, centers=None: Prepared(lr, None, 128)  # type: ignore[method-assign]
    frame = noise()
    _, reports = upscaled(runner, [frame, frame])
    assert [report[:3] for report in reports] == [(4, 0, 4), (0, 4, 4)]


def test_a_runner_is_calibrated_at_a_few_capacities() -> None:
    runner = Slots(3072)
    deadline = Deadline(30, runner.artifact.manifest.capacities)
    deadline.calibrate(runner)
    assert runner.capacities == [128, 128, 256, 256, 1024, 1024, 3072, 3072]
    assert deadline.expected(3072) > 0


@pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_a_rate(fps: float) -> None:
    with pytest.raises(InputError, match="a deadline is a number of frames a second above 0"):
        Deadline(fps, (128,))
