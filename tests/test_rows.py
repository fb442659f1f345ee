"""A picture that comes row by row from another thread."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import examples
from test_upscale import Repeat, enlarged, noise

from ppexport.device.runner import Result
from ppexport.errors import ArtifactError, ImageError
from ppexport.imaging import deep, upscaling, writing
from ppexport.imaging import rows as rows_module
from ppexport.imaging.images import Picture, read_image, write_image
from ppexport.imaging.rows import Rows
from ppexport.imaging.upscaling import upscale_file

BYTE = np.dtype(np.uint8)
SECONDS = 60


def done(error: BaseException | None = None) -> Future[Any]:
    """A computation that has ended."""
    future: Future[Any] = Future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 30),
    st.integers(1, 4),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 200),
)
@examples(60)
def test_whatever_the_blocks_the_reader_gets_the_picture(
    bands: list[int], block: int, width: int, kind: type, ahead: int
) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (sum(bands), width, 3)).astype(kind)
    rows = Rows(picture.shape, picture.dtype)
    before, rows_module.AHEAD = rows_module.AHEAD, ahead

    def compute() -> None:
        top = 0
        for height in bands:
            rows.put(picture[top : top + height])
            top += height
        rows.end_with(done())

    computing = threading.Thread(target=compute)
    computing.start()
    try:
        np.testing.assert_array_equal(rows[0], picture[0])
        read = [rows[top : top + block] for top in range(0, len(rows), block)]
    finally:
        computing.join(SECONDS)
        rows_module.AHEAD = before
    assert not computing.is_alive()
    np.testing.assert_array_equal(np.concatenate(read), picture)


def test_whoever_computes_faster_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "AHEAD", 30)
    rows, put = Rows((100, 1, 3), BYTE), []

    def compute() -> None:
        for number in range(100):
            rows.put(np.full((1, 1, 3), number, np.uint8))
            put.append(number)

    computing = threading.Thread(target=compute)
    computing.start()
    assert rows[0][0, 0] == 0
    for top in range(100):
        assert rows[top : top + 1][0, 0, 0] == top
        assert len(put) <= top + 30 / 3 + 2
    computing.join(SECONDS)
    assert not computing.is_alive()


def test_rows_that_were_read_are_gone_and_others_may_be_read_again() -> None:
    rows = Rows((9, 1, 3), BYTE)
    for number in range(9):
        rows.put(np.full((1, 1, 3), number, np.uint8))
    assert rows[3:5][:, 0, 0].tolist() == rows[3:5][:, 0, 0].tolist() == [3, 4]
    assert rows[5:99][:, 0, 0].tolist() == [5, 6, 7, 8]
    with pytest.raises(ValueError, match="row 3 was read already"):
        rows[3:4]
    with pytest.raises(ValueError, match="one after the other"):
        rows[5:9:2]


def test_what_stops_the_rows_is_raised_where_they_are_read() -> None:
    error, cancelled = KeyError("the tile"), Future[Any]()
    cancelled.cancel()
    for ended, kind in ((done(error), KeyError), (cancelled, CancelledError), (done(), ValueError)):
        rows = Rows((4, 1, 3), BYTE)
        rows.put(np.zeros((2, 1, 3), np.uint8))
        rows.end_with(ended)
        assert len(rows[0:2]) == 2
        with pytest.raises(kind):
            rows[2:4]
        # Nobody waits for a reader that is gone.
        for _ in range(3):
            rows.put(np.zeros((2, 1, 3), np.uint8))


def test_as_one_array() -> None:
    rows = Rows((4, 2, 3), BYTE)
    picture = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    rows.put(picture[:1])
    rows.put(picture[1:])
    np.testing.assert_array_equal(np.ascontiguousarray(rows), picture)
    assert (rows.shape, rows.dtype, rows.ndim, len(rows)) == ((4, 2, 3), BYTE, 3, 4)


# Files


@pytest.fixture
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result comes in rows, few of which are held, and nobody may ask for all of them."""
    for module in (deep, upscaling, writing):
        monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(rows_module, "AHEAD", 10_000)
    monkeypatch.setattr(Rows, "__array__", None)


@pytest.mark.usefixtures("_everything_is_large")
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", np.uint8),
        (".png", np.uint16),
        (".ppm", np.uint8),
        (".tif", np.uint8),
        (".tif", np.uint16),
        (".bmp", np.uint8),
    ],
)
def test_a_large_result_is_written_while_it_is_computed(tmp_path: Path, suffix: str, kind: type) -> None:
    rgb = noise(300, 70)
    picture = Picture(rgb if kind == np.uint8 else rgb.astype(np.float32) / 255, depth=8 * np.dtype(kind).itemsize)
    write_image(tmp_path / "lr.png", replace(picture, rgb=rgb.astype(kind) * (1 if kind == np.uint8 else 257)))
    report = upscale_file(Repeat((64, 48)), tmp_path / "lr.png", tmp_path / f"sr{suffix}")
    assert report.sr_size == (600, 140)
    assert len(report.tiles) == 12
    result = read_image(tmp_path / f"sr{suffix}")
    assert result.depth == picture.depth
    np.testing.assert_array_equal(result.rgb, enlarged(read_image(tmp_path / "lr.png").rgb, 2))


@pytest.mark.usefixtures("_everything_is_large")
@pytest.mark.parametrize("run", [0, 5, 11])
@pytest.mark.parametrize("error", [ArtifactError, RuntimeError, KeyboardInterrupt])
def test_a_large_result_that_is_not_finished_is_not_there(tmp_path: Path, run: int, error: type[BaseException]) -> None:
    def fail(number: int, result: Result) -> Result:
        if number == run:
            raise error("enough")
        return result

    write_image(tmp_path / "lr.png", Picture(noise(300, 70)))
    runner = Repeat((64, 48))
    runner.change = fail
    with pytest.raises(error):
        upscale_file(runner, tmp_path / "lr.png", tmp_path / "sr.png")
    assert os.listdir(tmp_path) == ["lr.png"]
    assert len(runner.seen) == run + 1


@pytest.mark.usefixtures("_everything_is_large")
def test_a_large_result_that_cannot_be_written_takes_no_further_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ppexport.imaging.deep.put_chunk", full)
    write_image(tmp_path / "lr.ppm", Picture(noise(3000, 70)))
    runner = Repeat((64, 48))
    with pytest.raises(ImageError, match="No space left on device"):
        upscale_file(runner, tmp_path / "lr.ppm", tmp_path / "sr.png")
    assert len(runner.seen) < 20
    assert os.listdir(tmp_path) == ["lr.ppm"]
