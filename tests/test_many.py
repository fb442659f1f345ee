"""Many pictures through one runner: what becomes of each, whatever fails, and that the runtime does not wait."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_upscale import Repeat, enlarged, noise

from ppexport.device.runner import Prepared, Result
from ppexport.imaging import many
from ppexport.imaging.many import Batch
from ppexport.imaging.outputs import Existing, Plan, output_name, plan_run
from ppexport.imaging.tile_queue import AbandonedError, TileQueue
from ppexport.imaging.upscaling import Settings, upscale_array

SECONDS = 60
"""No test waits so long unless it fails."""
TILE = (64, 48)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of one to four tiles each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        height, width = (112 if number % 2 else 60, 80 if number % 3 else 40)
        Image.fromarray(noise(height, width)).save(folder / f"{number}.png")
    return folder


def planned(*inputs: Path, existing: Existing = Existing.refuse, recursive: bool = False) -> Plan:
    out = inputs[0].parent / "out"
    return plan_run(
        list(map(str, inputs)), out, lambda path: output_name("{stem}.png", path, 2, ""), existing, recursive
    )


def silent(done: int, total: int) -> None:
    """No progress is shown."""


def states(batch: Batch) -> dict[str, str]:
    return {outcome.source.name: outcome.state for outcome in batch.outcomes}


def result(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_picture_is_what_it_would_be_alone(photos: Path) -> None:
    batch = Batch(planned(photos), TILE)
    runner = Repeat(TILE)
    batch.run(runner, silent)
    assert set(states(batch).values()) == {"done"}
    for path in photos.iterdir():
        np.testing.assert_array_equal(result(photos.parent / "out" / path.name), enlarged(result(path), 2))
    reports = {outcome.source.name: outcome.report for outcome in batch.outcomes}
    assert sum(len(report.tiles) for report in reports.values()) == len(runner.seen) == batch.tiles
    assert reports["1.png"].sr_size == (224, 160)
    assert len(reports["1.png"].tiles) == 4


def test_a_bad_picture_does_not_end_the_run(photos: Path) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:-500])
    (photos / "3.png").write_bytes(b"nonsense")
    (photos / "4.png").write_bytes(b"")
    (photos / "big.png").write_bytes((photos / "1.png").read_bytes())
    batch = Batch(planned(photos), TILE, Settings(max_pixels=112 * 80 - 1))
    assert states(batch) | {"2.png": "not begun"} == {
        "0.png": "not begun", "1.png": "failed", "2.png": "not begun", "3.png": "failed", "4.png": "failed",
        "5.png": "failed", "big.png": "failed",
    }  # fmt: skip
    batch.run(Repeat(TILE), silent)
    assert states(batch)["0.png"] == "done"
    assert states(batch)["2.png"] == "failed"
    why = {outcome.source.name: outcome.reason for outcome in batch.outcomes}
    assert "is truncated" in str(why["2.png"])
    assert "--max-pixels" in str(why["big.png"])
    assert sorted(os.listdir(photos.parent / "out")) == ["0.png"]


def test_a_picture_that_the_runner_spoils_fails_alone(photos: Path) -> None:
    runner = Repeat(TILE)

    def spoil(run: int, result: Result) -> Result:
        return result._replace(sr=result.sr * np.float32(np.nan)) if run == 2 else result

    runner.change = spoil
    batch = Batch(planned(photos), TILE)
    batch.run(runner, silent)
    found = [outcome for outcome in batch.outcomes if outcome.state != "done"]
    assert len(found) == 1
    assert "repeat returned NaN or infinite values for the tile at" in str(found[0].reason)
    assert len(os.listdir(photos.parent / "out")) == 5


def test_what_is_there_is_skipped_also_when_it_comes_during_the_run(photos: Path) -> None:
    out = photos.parent / "out"
    out.mkdir()
    (out / "0.png").write_bytes(b"earlier")
    batch = Batch(planned(photos, existing=Existing.skip), TILE)
    assert states(batch)["0.png"] == "skipped"
    (out / "1.png").write_bytes(b"another run")
    batch.run(Repeat(TILE), silent)
    assert [name for name, state in states(batch).items() if state == "skipped"] == ["0.png", "1.png"]
    assert (out / "0.png").read_bytes() == b"earlier"
    assert (out / "1.png").read_bytes() == b"another run"


def test_what_comes_during_the_run_is_not_replaced_either(photos: Path) -> None:
    batch = Batch(planned(photos), TILE)
    (photos.parent / "out").mkdir()
    (photos.parent / "out" / "1.png").write_bytes(b"another run")
    batch.run(Repeat(TILE), silent)
    assert [name for name, state in states(batch).items() if state == "failed"] == ["1.png"]
    assert (photos.parent / "out" / "1.png").read_bytes() == b"another run"


def test_structure_is_made_for_what_is_written_alone(photos: Path) -> None:
    for name in ("sub/deep/a.png", "bad/b.png"):
        (photos / name).parent.mkdir(parents=True)
        (photos / name).write_bytes((photos / "0.png").read_bytes()[: -500 if "bad" in name else None])
    batch = Batch(planned(photos, recursive=True), TILE)
    batch.run(Repeat(TILE), silent)
    assert (photos.parent / "out" / "sub" / "deep" / "a.png").is_file()
    assert not (photos.parent / "out" / "bad").exists()


def test_a_full_disk_ends_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    batch = Batch(planned(photos), TILE)
    batch.run(Repeat(TILE), silent)
    failed = [outcome for outcome in batch.outcomes if outcome.state == "failed"]
    # Those that were being enlarged when the first one could not be written.
    assert 1 <= len(failed) <= many.AT_ONCE
    assert list(states(batch).values()).count("not begun") == 6 - len(failed)
    assert all("No space left on device (the disk at /" in str(outcome.reason) for outcome in failed)
    assert os.listdir(photos.parent / "out") == []


@pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to a thread")
def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_else(photos: Path) -> None:
    runner = Repeat(TILE)

    def interrupt(run: int, result: Result) -> Result:
        if run == 8:
            signal.raise_signal(signal.SIGINT)
        return result

    runner.change = interrupt
    batch = Batch(planned(photos), TILE)
    with pytest.raises(KeyboardInterrupt):
        batch.run(runner, silent)
    found = states(batch)
    done = sorted(name for name, state in found.items() if state == "done")
    assert done
    assert sorted(os.listdir(photos.parent / "out")) == done
    assert set(found.values()) == {"done", "not begun"}
    for name in done:
        np.testing.assert_array_equal(result(photos.parent / "out" / name), enlarged(result(photos / name), 2))
    # The same with --existing skip does the rest.
    again = Batch(planned(photos, existing=Existing.skip), TILE)
    again.run(Repeat(TILE), silent)
    assert sorted(states(again).values()) == ["done"] * (6 - len(done)) + ["skipped"] * len(done)


@pytest.mark.parametrize("error", [RuntimeError("the device is gone"), KeyboardInterrupt()])
def test_what_is_no_picture_s_fault_ends_the_run_as_it_was_raised(photos: Path, error: BaseException) -> None:
    def gone(run: int, result: Result) -> Result:
        raise error

    runner = Repeat(TILE)
    runner.change = gone
    with pytest.raises(type(error)) as caught:
        Batch(planned(photos), TILE).run(runner, silent)
    assert caught.value is error


def test_a_mistake_of_ours_in_another_thread_comes_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("read")

    monkeypatch.setattr(many, "read_source", broken)
    with pytest.raises(ZeroDivisionError, match="read"):
        Batch(planned(photos), TILE).run(Repeat(TILE), silent)


def test_one_progress_counts_the_tiles_of_all_pictures_in_the_callers_thread(photos: Path) -> None:
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:-500])
    batch = Batch(planned(photos), TILE)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((done, total))

    batch.run(Repeat(TILE), progress)
    ran = sum(len(outcome.report.tiles) for outcome in batch.outcomes if outcome.report)
    assert ran < batch.tiles
    assert seen[0] == (0, batch.tiles)
    assert seen[-1] == (ran, ran)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)


class Waits(Repeat):
    """Its second run lasts until the first picture was written and all others were read."""

    def __init__(self, events: list[threading.Event]) -> None:
        super().__init__(TILE)
        self.events = events

    def _run(self, prepared: Prepared) -> Result:
        if len(self.seen) == 1:
            assert all(event.wait(SECONDS) for event in self.events)
        return super()._run(prepared)


def test_while_one_picture_runs_the_next_is_read_and_the_last_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(many.AT_ONCE + 1):
        Image.fromarray(noise(64, 48)).save(folder / f"{number}.png")
    all_read, one_written = threading.Event(), threading.Event()
    read, write, seen = many.read_source, many.write_enlarged, set[str]()

    def noted_read(source: Path, *arguments: Any, **options: Any) -> Any:
        done = read(source, *arguments, **options)
        seen.add(source.name)
        if len(seen) > many.AT_ONCE:
            all_read.set()
        return done

    def noted_write(*arguments: Any) -> Any:
        done = write(*arguments)
        one_written.set()
        return done

    monkeypatch.setattr(many, "read_source", noted_read)
    monkeypatch.setattr(many, "write_enlarged", noted_write)
    batch = Batch(planned(folder), TILE)
    batch.run(Waits([one_written, all_read]), silent)
    assert set(states(batch).values()) == {"done"}


def test_large_pictures_are_alone_and_none_is_overtaken(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "ROOM", 4 * (60 * 40 + 60 * 80))
    held, most, order = [0], [0], []
    lock, write, read = threading.Lock(), many.write_enlarged, many.read_source

    def noted_read(source: Path, *arguments: Any, **options: Any) -> Any:
        picture = read(source, *arguments, **options)
        with lock:
            order.append(source.name)
            held[0] += picture.picture.size[0] * picture.picture.size[1]
            most[0] = max(most[0], held[0])
        return picture

    def noted_write(source: Any, *arguments: Any) -> Any:
        done = write(source, *arguments)
        with lock:
            held[0] -= source.picture.size[0] * source.picture.size[1]
        return done

    monkeypatch.setattr(many, "read_source", noted_read)
    monkeypatch.setattr(many, "write_enlarged", noted_write)
    Batch(planned(photos), TILE).run(Repeat(TILE), silent)
    # The largest picture has more than the room.
    assert most[0] <= 112 * 80
    assert len(order) == 6
    assert order.index("1.png") < order.index("4.png")


def test_a_queue_gives_every_thread_its_own_result() -> None:
    runner = Repeat(TILE)
    queue = TileQueue(runner)
    arrays = [noise(100 + 10 * number, 70) for number in range(5)]
    found: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        found[number] = queue.begin(arrays[number]).result().rgb
        if len(found) == len(arrays):
            queue.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    ran = []
    queue.run(lambda: ran.append(1))
    for thread in threads:
        thread.join(SECONDS)
    assert len(ran) == len(runner.seen)
    for number, rgb in enumerate(arrays):
        np.testing.assert_array_equal(found[number], upscale_array(Repeat(TILE), rgb).rgb)


def test_an_abandoned_queue_lets_nobody_wait() -> None:
    queue = TileQueue(Repeat(TILE))
    queue.abandon()
    with pytest.raises(AbandonedError):
        queue.begin(noise(10, 10))
    queue.run(lambda: None)


def test_too_little_memory_beside_the_tiles_is_one_picture_s_fault_too(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ppexport.imaging.upscaling.enlarge", full)
    batch = Batch(planned(photos), TILE)
    batch.run(Repeat(TILE), silent)
    assert set(states(batch).values()) == {"failed"}
    assert all("does not fit into memory, 2 times as large" in str(outcome.reason) for outcome in batch.outcomes)


def test_a_picture_that_is_found_twice_is_written_twice(photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "sub" / "a.png").write_bytes((photos / "0.png").read_bytes())
    batch = Batch(planned(photos, photos / "sub", recursive=True), TILE)
    assert [outcome.state for outcome in batch.outcomes] == ["not begun"] * 8
    batch.run(Repeat(TILE), silent)
    assert [outcome.state for outcome in batch.outcomes] == ["done"] * 8
    out = photos.parent / "out"
    assert (out / "a.png").read_bytes() == (out / "sub" / "a.png").read_bytes()


def test_too_little_memory_is_one_picture_s_fault(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ppexport.imaging.passes.cut", full)
    batch = Batch(planned(photos), TILE)
    batch.run(Repeat(TILE), silent)
    assert set(states(batch).values()) == {"failed"}
    assert all("do not fit into memory" in str(outcome.reason) for outcome in batch.outcomes)
