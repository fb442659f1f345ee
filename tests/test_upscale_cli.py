"""`ppexport upscale` as a shell calls it: many pictures, exit codes, and what is left after an interruption."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sshd_profiles import write_enlarger
from typer.testing import CliRunner

from ppexport.cli import app

rng = np.random.default_rng(5)


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that repeats pixels in tiles of 32x48. Never changed by a test."""
    return write_enlarger(tmp_path_factory.mktemp("artifact") / "enlarger")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three pictures in the current folder, one of them deeper."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "sub/c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return Path("photos")


def upscale(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["upscale", *map(str, arguments)])


def written(folder: str = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_folder_with_its_subfolders(enlarger: Path, photos: Path) -> None:
    done = upscale(enlarger, photos, "-o", "out", "--recursive", "--json", "told.json")
    assert done.exit_code == 0, done.output
    assert "3 pictures to enlarge in 12 runs, one for each tile of 48x32" in done.output
    assert "3 pictures enlarged, " in done.output
    assert written() == ["a_x2.png", "b_x2.jpg", "sub/c_x2.webp"]
    with Image.open("out/sub/c_x2.webp") as image:
        assert image.size == (120, 80)
    told = json.loads(Path("told.json").read_text())
    assert [told[key] for key in ("done", "skipped", "failed", "not_begun", "tiles")] == [3, 0, 0, 0, 12]
    assert told["overhead"] == pytest.approx(told["seconds_total"] / told["seconds_runtime"] - 1)
    first = next(file for file in told["files"] if file["input"] == "photos/a.png")
    assert (first["output"], first["state"], first["tiles"]) == ("out/a_x2.png", "done", 4)
    assert first["sr_size"] == [80, 120]


def test_a_bad_picture_is_named_at_the_end_and_the_exit_code_is_1(enlarger: Path, photos: Path) -> None:
    (photos / "bad.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "none.png").write_bytes(b"")
    done = upscale(enlarger, photos, "missing.png", "-o", "out", "--json", "told.json")
    assert done.exit_code == 1, done.output
    output = " ".join(done.output.split())
    for sentence in ("bad.png is truncated", "none.png is empty", "missing.png does not exist"):
        assert sentence in output
    assert output.endswith("2 pictures enlarged, 3 failed")
    assert json.loads(Path("told.json").read_text())["overhead"] is None
    files = {Path(file["input"]).name: file for file in json.loads(Path("told.json").read_text())["files"]}
    assert files["bad.png"]["state"] == "failed"
    assert "is truncated" in files["bad.png"]["reason"]
    # The same command continues.
    (photos / "bad.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "none.png").unlink()
    assert "a_x2.png exists already, like 1 other result" in str(upscale(enlarger, photos, "-o", "out").exception)
    done = upscale(enlarger, photos, "-o", "out", "--existing", "skip")
    assert done.exit_code == 0, done.output
    assert "1 picture enlarged, 2 skipped, " in done.output
    done = upscale(enlarger, photos, "-o", "out", "--existing", "skip")
    assert done.exit_code == 0
    assert "0 pictures enlarged, 3 skipped" in done.output


def test_a_quality_is_for_those_formats_that_have_one(enlarger: Path, photos: Path) -> None:
    done = upscale(enlarger, photos, "-o", "out", "--recursive", "--quality", "10")
    assert done.exit_code == 0, done.output
    assert "note: PNG has no quality: 1 picture written without --quality" in done.output
    assert "3 pictures enlarged" in done.output
    best = upscale(enlarger, photos, "-o", "best", "--recursive", "--quality", "100")
    assert best.exit_code == 0
    for name, smaller in (("a_x2.png", False), ("b_x2.jpg", True), ("sub/c_x2.webp", True)):
        assert (Path("out", name).stat().st_size < Path("best", name).stat().st_size) is smaller
    # What a file cannot promise is not promised.
    done = upscale(enlarger, photos, "-o", "exact", "--recursive", "--lossless")
    assert done.exit_code == 1
    assert "JPEG is always lossy here" in " ".join(done.output.split())
    assert written("exact") == ["a_x2.png", "sub/c_x2.webp"]


def test_where_nothing_can_be_begun_the_exit_code_is_2(enlarger: Path, photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ppexport.backends.backend.open_artifact", lambda *_, **__: pytest.fail("was opened"))
    (photos / "b.png").write_bytes(b"nonsense")
    done = upscale(enlarger, "missing.png", "*.gif", photos / "b.png", "-o", "out")
    assert done.exit_code == 2
    assert "0 pictures enlarged, 3 failed" in done.output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/a.png"], "name one picture and the picture to write, or a folder for the results with --out"),
        (["photos/a.png", "photos/b.jpg", "x.png"], "a folder for the results with --out"),
        (["photos/a.png", "x.png", "--recursive"], "--recursive and --name need a folder"),
        (["photos/a.png", "x.png", "--name", "{stem}"], "--recursive and --name need a folder"),
        (["photos/a.png", "photos/a.png"], "is the input itself, which is never replaced"),
        (["photos/a.png", "photos/../photos/a.png"], "is the input itself"),
        (["photos", "x"], "photos is a folder: name the folder for its results with --out, as in --out x"),
        (["photos/a.png", "photos"], "photos is a folder: write --out photos, or name a file in it"),
        (["photos", "-o", "x", "--name", "{stem}"], "without a picture's extension"),
        (["photos", "-o", "photos"], "lies in the input folder"),
        (["photos", "-o", "out", "--name", "{other}"], "its fields are"),
        (["photos", "-o", "out", "--name", "{stem!r:>9}"], "has a field {stem!r:>9} that is none"),
        (["photos", "-o", "out", "--name", "x.png"], "would both be written to"),
        (["photos", "-o", "photos/a.png"], "is a file, and the results need a folder"),
        (["-", "-o", "out"], "- is one picture on standard input"),
        (["photos", "-o", "-"], "for standard output write - in the place of OUT"),
        (["", "-o", "out"], "an input has no name"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(enlarger: Path, photos: Path, arguments: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    done = upscale(enlarger, *arguments)
    assert message in str(done.exception)
    assert done.exception.exit_code == 2
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    assert not Path("out").exists()


def test_one_picture_and_what_is_there_already(enlarger: Path, photos: Path) -> None:
    Path("x.png").write_bytes(b"earlier")
    done = upscale(enlarger, photos / "a.png", "x.png", "--existing", "refuse")
    assert "x.png exists already" in str(done.exception)
    done = upscale(enlarger, photos / "a.png", "x.png", "--existing", "skip", "--json", "-")
    assert done.exit_code == 0
    assert Path("x.png").read_bytes() == b"earlier"
    assert upscale(enlarger, photos / "a.png", "x.png").exit_code == 0
    assert Image.open("x.png").size == (120, 80)


def test_a_name_that_begins_with_a_hyphen(enlarger: Path, photos: Path) -> None:
    (photos / "a.png").rename("-x.png")
    done = upscale(enlarger, "-x.png", "out.png")
    assert "-x.png is read as an option: write ./-x.png for the file" in str(done.exception)
    assert upscale(enlarger, "./-x.png", "out.png").exit_code == 0
    assert upscale(enlarger, "-o", "out", "--", "-x.png").exit_code == 0
    assert upscale(enlarger, "*.png", "-o", "pattern").exit_code == 0
    assert written() == ["-x_x2.png"]
    assert upscale(enlarger, "-y.png", "out.png").exit_code == 2


def test_too_few_slots_are_told_with_the_file(enlarger: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppexport.device.runner import Runner

    run = Runner.run_unchecked
    monkeypatch.setattr(Runner, "run_unchecked", lambda *given: run(*given)._replace(impure_tokens=9999))
    done = upscale(enlarger, photos / "a.png", "-o", "out")
    assert done.exit_code == 1
    assert "out/a_x2.png: 4 of 4 tiles have more impure tokens than the artifact has slots" in done.output
    assert written() == ["a_x2.png"]


def piped(content: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """`ppexport upscale` with *content* on standard input."""
    command = [sys.executable, "-m", "ppexport", "upscale", *map(str, arguments)]
    return subprocess.run(command, input=content, capture_output=True, check=False)


def test_standard_input_and_output(enlarger: Path, photos: Path) -> None:
    content = (photos / "b.jpg").read_bytes()
    done = piped(content, enlarger, "-", "-", "--json", "told.json")
    assert done.returncode == 0, done.stderr
    assert b"standard input: 60x40 pixels are 4 runs" in done.stderr
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("PNG", (120, 80))
    assert json.loads(Path("told.json").read_text())["output"] == "-"
    done = piped(b"", enlarger, photos / "a.png", "-", "--format", "webp")
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == "WEBP"
    assert piped(content, enlarger, "-", "x.png").returncode == 0
    assert Image.open("x.png").size == (120, 80)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", ["-", "-"], "standard input is empty"),
        (b"nonsense", ["-", "-"], "standard input is not a"),
        (b"\x89PNG\r\n\x1a\n", ["-", "x.png"], "standard input is"),
        (b"", ["photos/a.png", "-", "--json", "-"], "cannot both go to standard output"),
        (b"", ["photos/a.png", "-", "--format", "xyz"], "--format xyz"),
        (b"", ["photos/a.png", "x.png", "--format", "png"], "the name of OUT says its format"),
        (b"", ["photos/a.png", "x.png", "--quality", "50"], "has no quality"),
        (b"", ["photos/a.png", "x.png", "--alpha", "none"], "--alpha is one of network, bicubic, not none"),
        (b"", ["photos/a.png", "x.png", "--wrap", "z"], "--wrap is one of x, y, xy, not z"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_sentence(
    enlarger: Path, photos: Path, content: bytes, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        buffer = io.BytesIO(content)

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("ppexport.cli.pictures.sys", SimpleNamespace(stdin=Stream(), stdout=Stream()))
    done = upscale(enlarger, *arguments)
    assert message in str(done.exception)
    assert done.exception.exit_code == 2
    assert not Path("x.png").exists()


def test_terminals_neither_give_nor_take_pictures(
    enlarger: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = SimpleNamespace(isatty=lambda: True, buffer=io.BytesIO())
    monkeypatch.setattr("ppexport.cli.pictures.sys", SimpleNamespace(stdin=terminal, stdout=terminal))
    assert "standard output is a terminal" in str(upscale(enlarger, photos / "a.png", "-").exception)
    assert "standard input is a terminal" in str(upscale(enlarger, "-", "x.png").exception)


def test_options_of_reading_and_writing_reach_every_picture(enlarger: Path, photos: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    rgba = Image.fromarray(rng.integers(0, 256, (40, 60, 4), dtype=np.uint8))
    rgba.save(photos / "d.png", exif=exif)
    for name, options in (
        ("few", ["--alpha", "bicubic"]), ("many", []), ("plain", ["--strip-metadata"]), ("wrapped", ["--wrap", "xy"]),
        ("jpeg", ["--format", "jpg", "--quality", "30"]), ("lossy", ["--format", ".webp", "--quality", "30"]),
    ):  # fmt: skip
        done = upscale(enlarger, photos / ("a.png" if name == "jpeg" else "d.png"), "-o", name, *options)
        assert done.exit_code == 0, done.output
        assert f"1 picture enlarged, {0} failed" not in done.output
    assert "1 picture to enlarge in 8 runs" in upscale(enlarger, photos / "d.png", "-o", "again").output
    assert written("jpeg") == ["a_x2.jpg"]
    assert written("lossy") == ["d_x2.webp"]
    assert Path("jpeg/a_x2.jpg").stat().st_size < Path("many/d_x2.png").stat().st_size / 2
    for name in ("few", "many", "plain", "wrapped"):
        with Image.open(Path(name) / "d_x2.png") as image:
            assert image.getexif().get(0x010E) == (None if name == "plain" else "a description")
    # The network repeats the alpha, as it does the colours.
    repeated = np.asarray(rgba)[..., 3].repeat(2, axis=0).repeat(2, axis=1)
    for name, equal in (("few", False), ("many", True)):
        with Image.open(Path(name) / "d_x2.png") as image:
            assert np.array_equal(np.asarray(image)[..., 3], repeated) == equal


def test_an_animation(enlarger: Path, photos: Path) -> None:
    frames = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(photos / "moves.webp", save_all=True, append_images=frames[1:], duration=80, lossless=True)
    done = upscale(enlarger, photos / "moves.webp", "-o", "out", "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tiles"] == 12
    with Image.open("out/moves_x2.webp") as image:
        assert image.n_frames == 3
    done = upscale(enlarger, photos / "moves.webp", "-o", "out", "--format", "jpg")
    assert done.exit_code == 1
    assert "--first-frame" in done.output
    done = upscale(enlarger, photos / "moves.webp", "-o", "out", "--format", "jpg", "--first-frame")
    assert done.exit_code == 0, done.output
    assert written() == ["moves_x2.jpg", "moves_x2.webp"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_ends_with_130_and_says_how_to_continue(enlarger: Path, photos: Path) -> None:
    # Enough work for half a minute, if it were not interrupted.
    for number in range(60):
        Image.new("RGB", (500, 500)).save(photos / f"large{number:02}.png")
    command = [sys.executable, "-m", "ppexport", "upscale", enlarger, "photos", "-o", "out", "--json", "told.json"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        end = time.monotonic() + 60
        while not list(Path("out").glob("large*")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("interrupted: the same command continues with --existing skip\n")
    assert "Traceback" not in errors
    told = json.loads(Path("told.json").read_text())
    assert told["done"] >= 1
    assert told["not_begun"] >= 1
    assert written() == sorted(Path(file["output"]).name for file in told["files"] if file["state"] == "done")
    for name in written():
        with Image.open(Path("out") / name) as image:
            image.load()


def test_ctrl_c_during_one_picture(enlarger: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ppexport.imaging.upscaling.upscale_source", interrupted)
    done = upscale(enlarger, photos / "a.png", "x.png")
    assert done.exit_code == 130
    assert "interrupted: the same command makes x.png from the beginning" in done.output
    assert not Path("x.png").exists()


def test_the_help_says_what_is_left_to_it() -> None:
    said = " ".join(upscale("--help").output.replace("│", " ").split())
    assert "at most one for each processor; one for each physical core if left out" in said
    assert "{stem}_x{scale}{suffix} if left out" in said
    assert "photos -o enlarged --recursive --existing skip" in said
