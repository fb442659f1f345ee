"""Whether a machine keeps up: with pretended times, and once for real."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import exported_once
from PIL import Image
from small_networks import small_network
from test_cli import fails, run

from ppexport.device.artifact import read_artifact
from ppexport.errors import InputError
from ppexport.imaging.deadline import Deadline
from ppexport.imaging.tiles import plan_grid
from ppexport.profile import real_time


class Pretend:
    """A `FrameUpscaler` that takes 10 ms for every tile, and with a deadline as long as that."""

    sizes: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, runner: Any, size: tuple[int, int], deadline: Deadline | None = None, *, reuse: bool) -> None:
        assert not reuse
        self.tiles = len(plan_grid(size, runner.size))
        self.deadline = deadline
        self.sizes.append(size)

    def run(self, frames: Any, done: Any) -> None:
        for i, frame in enumerate(frames):
            over = 0 if self.deadline is None else self.tiles
            seconds = 0.01 * self.tiles if over == 0 else self.deadline.budget  # type: ignore[union-attr]
            # The first run of a session is slow.
            done(frame, SimpleNamespace(seconds=seconds + (i == 0), tiles=self.tiles, over_capacity=over))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(real_time, "FrameUpscaler", Pretend)
    monkeypatch.setattr(Deadline, "calibrate", lambda self, runner: None)
    manifest = SimpleNamespace(capacities=[256, 512])
    runner = SimpleNamespace(size=(64, 64), scale=2, artifact=SimpleNamespace(manifest=manifest))
    monkeypatch.setattr(real_time, "open_target", lambda target: runner)
    Pretend.sizes = []
    return runner


@pytest.mark.parametrize(
    ("fps", "size"), [(101, None), (99, (64, 64)), (49, (64, 112)), (24, (112, 112)), (0.0001, (4096, 4096))]
)
def test_the_largest_size_is_found_by_halves(pretended: Any, fps: float, size: tuple[int, int] | None) -> None:
    shape = (64, 112) if size == (64, 112) else (64, 64)
    photo = np.zeros((*shape, 3), np.uint8)
    assert real_time.largest_size(pretended, photo, fps) == size
    assert len(Pretend.sizes) <= 18


def test_small_tiles_hold_one_frame(pretended: Any) -> None:
    pretended.size = (16, 16)
    assert real_time.largest_size(pretended, np.zeros((32, 32, 3), np.uint8), 1) == (16, 16)


def test_frames_are_timed_with_all_slots_and_with_fewer(pretended: Any, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (112, 64), (i, 0, 0)).save(tmp_path / f"{i}.png")
    target = SimpleNamespace(name="onnxruntime", artifact="a/x2_64")
    job = SimpleNamespace(targets=[target], images=tmp_path, fps=60.0)
    found = real_time.measure_real_time(job)  # type: ignore[arg-type]
    assert found["exact"] == {"frames": 33, "in_time": 0, "p90_ms": pytest.approx(20)}
    assert found["deadline"]["in_time"] == 33
    assert (found["deadline"]["tiles_over"], found["deadline"]["frames_over"]) == (66, 33)
    assert (found["lr_size"], found["tiles"], found["largest"]) == ([64, 112], 2, [32, 64])
    (sentence,) = real_time.answers([found], 60)["sentences"]
    assert sentence == (
        "x2_64 x2 at 60 fps: 0 of 33 frames of 112x64 in time, 33 of 33 with fewer slots where they must be "
        "(66 tiles in 33 frames over capacity); keeps up with frames up to 64x32 of this content (width x height)"
    )
    Image.new("RGB", (40, 32)).save(tmp_path / "9.png")
    with pytest.raises(InputError, match="9.png is 40 pixels wide and 32 high, 0.png has another size"):
        real_time.measure_real_time(job)  # type: ignore[arg-type]


def test_the_highest_scale_that_keeps_up() -> None:
    def one(scale: int, in_time: int) -> dict[str, Any]:
        met = {"frames": 10, "in_time": 10, "p90_ms": 1.0, "tiles_over": 1, "frames_over": 1}
        exact = {"frames": 10, "in_time": in_time, "p90_ms": 1.0}
        facts = {"name": "r", "artifact": f"x{scale}", "scale": scale, "lr_size": [9, 9], "tiles": 1, "largest": None}
        return {**facts, "exact": exact, "deadline": met}

    found = real_time.answers([one(2, 10), one(3, 9), one(4, 8)], 30)
    assert found["highest_scale"] == 3
    assert found["sentences"][-1] == "the highest scale that keeps up with 30 fps on these frames: x3"
    assert "keeps up with no size that was tried" in found["sentences"][0]
    assert real_time.answers([one(2, 1), one(3, 0)], 30)["sentences"][-1].endswith("on these frames: none of them")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = small_network()
    return exported_once(tmp_path_factory, network, backend="onnx", size=(32, 48), capacities=[256, 1024, 1536])


@pytest.mark.slow
def test_profile_answers_for_a_rate(artifact: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (48, 32), (9, 80, 200)).save(frames / "0.png")
    said = run(
        "profile", artifact, "--quick", "--frames", frames, "--fps", 5, "--versus", artifact, "--threads", 1,
        "-o", tmp_path / "run",
    ).stdout  # fmt: skip
    assert "the highest scale that keeps up with 5 fps on these frames: x2" in " ".join(said.split())
    found = json.loads((tmp_path / "run" / "real_time.json").read_text())
    assert (found["format"], found["fps"], len(found["artifacts"])) == ("ppexport-real_time", 5, 2)
    assert read_artifact(artifact).scale == found["artifacts"][0]["scale"]


def test_options_that_need_one_another(artifact: Path, tmp_path: Path) -> None:
    frames = tmp_path
    Image.new("RGB", (48, 32)).save(frames / "0.png")
    fails("profile", artifact, "--fps", 5, message="--fps is for --frames: name a folder of frames")
    fails("profile", artifact, "--frames", frames, "--versus", artifact, message="--versus is for --fps")
    fails("profile", artifact, "--frames", frames, "--fps", 0, message="a deadline is a number of frames a second")
