"""Animations: every frame as a viewer shows it, its time, and how often all are shown."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence, features

from ppexport.errors import ImageError
from ppexport.imaging.animations import write_animation
from ppexport.imaging.enlarging import EnlargeOptions, enlarge
from ppexport.imaging.gif_writer import gif_frame
from ppexport.imaging.images import Picture, WriteOptions, check_output, peek, read_image, read_levels, write_image

rng = np.random.default_rng(24)
AVIF = pytest.param(".avif", marks=pytest.mark.skipif(not features.check("avif"), reason="needs AVIF in Pillow"))
PLAIN = WriteOptions()
TIMES = [40, 70, 110, 200]


def drawing(number: int, clear: bool, size: tuple[int, int] = (24, 36)) -> Image.Image:
    """A disc of few colours that walks over a plain or transparent ground."""
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y - 12, x - 8 - 5 * number) < 7
    rgb = np.where(disc[..., None], (220, 60 + 20 * number, 30), (20, 40, 160)).astype(np.uint8)
    alpha = np.where(disc, 255, 0 if clear else 255).astype(np.uint8)
    return Image.fromarray(np.dstack([rgb, alpha]))


def make(path: Path, clear: bool = False, **options: Any) -> Path:
    frames = [drawing(number, clear) for number in range(4)]
    options = {"duration": TIMES, "loop": 0, "save_all": True, "append_images": frames[1:], **options}
    if path.suffix == ".webp":
        options |= {"lossless": True, "exact": True}
    if path.suffix == ".avif":
        del options["loop"]
        options |= {"quality": 100, "subsampling": "4:4:4"}
    frames[0].save(path, **options)
    return path


def repeated(rgb: np.ndarray, depth: int) -> np.ndarray:
    return rgb.repeat(2, 0).repeat(2, 1)


def enlarged(picture: Picture, target: Any, options: WriteOptions = PLAIN, **named: Any) -> tuple[str, ...]:
    assert picture.frames is not None
    frames = (enlarge(frame, repeated, 2) for frame in picture.frames)
    return write_animation(target, picture, frames, options, **named)


def shown(path: Path) -> list[np.ndarray]:
    """Every frame as a viewer shows it, over grey."""
    found = []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            over = Image.new("RGBA", image.size, (128, 128, 128, 255))
            over.alpha_composite(frame.convert("RGBA"))
            found.append(np.asarray(over)[..., :3].astype(int))
    return found


def times(path: Path) -> list[float]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            found.append(image.info["duration"])
    return found


SUFFIXES = [".gif", ".webp", ".png", AVIF]


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_what_is_written_looks_the_same(tmp_path: Path, source: str, target: str, clear: bool) -> None:
    before = make(tmp_path / f"a{source}", clear)
    picture = read_image(before)
    assert picture.frames is not None
    assert (len(picture.frames), peek(before).frames) == (4, 4)
    after = tmp_path / f"b{target}"
    enlarged(picture, after)
    assert times(after) == TIMES
    pairs = zip(shown(before), shown(after), strict=True)
    # AVIF is lossy.
    slack = 12 if ".avif" in (source, target) else 0
    for small, large in pairs:
        difference = np.abs(large - small.repeat(2, 0).repeat(2, 1))
        assert np.quantile(difference, 0.98 if slack else 1) <= slack


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_disposal_of_a_gif(tmp_path: Path, disposal: int) -> None:
    """Parts of pictures on what is left of those before, as GIFs are made by hand."""
    frames = []
    for number in range(4):
        frame = Image.new("P", (20, 10), 0)
        frame.putpalette([0, 0, 0, 250, 30, 30, 30, 250, 30, 30, 30, 250, 200, 200, 200])
        frame.paste(number + 1, (5 * number, 2, 5 * number + 4, 8))
        frame.info["transparency"] = 0
        frames.append(frame)
    frames[0].save(
        tmp_path / "a.gif",
        save_all=True,
        append_images=frames[1:],
        disposal=disposal,
        transparency=0,
        duration=50,
        loop=0,
    )
    enlarged(read_image(tmp_path / "a.gif"), tmp_path / "b.gif")
    for small, large in zip(shown(tmp_path / "a.gif"), shown(tmp_path / "b.gif"), strict=True):
        np.testing.assert_array_equal(large, small.repeat(2, 0).repeat(2, 1))


def test_a_gif_whose_parts_leave_gaps(tmp_path: Path) -> None:
    """Where nothing is drawn, or what was drawn is gone, browsers show what is behind the picture."""
    table = [0, 0, 0, 250, 30, 30, 30, 250, 30, 30, 30, 250, 200, 200, 200]
    parts = [(2, 2, 10, 6, 2, 2), (8, 1, 6, 6, 3, 1), (14, 4, 6, 6, 4, 3), (0, 0, 4, 4, 3, 0)]
    data = b"GIF89a" + struct.pack("<HHBBB", 20, 10, 0xF7, 1, 0) + bytes(table).ljust(768, b"\0")
    canvas, expected = np.zeros((10, 20, 4), np.uint8), []
    for x, y, width, height, colour, disposal in parts:
        part = Image.new("P", (width, height), colour)
        part.putpalette(table)
        block = gif_frame(part)
        data += b"!\xf9\x04" + struct.pack("<BHBB", disposal << 2, 5, 0, 0)
        data += block[:1] + struct.pack("<HH", x, y) + block[5:]
        before = canvas.copy()
        canvas[y : y + height, x : x + width] = [*table[3 * colour : 3 * colour + 3], 255]
        expected.append(canvas.copy())
        if disposal == 2:
            canvas[y : y + height, x : x + width] = 0
        elif disposal == 3:
            canvas = before
    (tmp_path / "a.gif").write_bytes(data + b";")
    enlarged(read_image(tmp_path / "a.gif"), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        for frame, wanted in zip(ImageSequence.Iterator(image), expected, strict=True):
            found, wanted = np.asarray(frame.convert("RGBA")), wanted.repeat(2, 0).repeat(2, 1)
            np.testing.assert_array_equal(found[..., 3], wanted[..., 3])
            np.testing.assert_array_equal(found[wanted[..., 3] > 0], wanted[wanted[..., 3] > 0])


@pytest.mark.parametrize(("dispose", "blend"), [(0, 0), (1, 1), (2, 1), (0, 1), (1, 0)])
def test_disposal_and_blending_of_an_apng(tmp_path: Path, dispose: int, blend: int) -> None:
    make(tmp_path / "a.png", clear=True, disposal=dispose, blend=blend)
    enlarged(read_image(tmp_path / "a.png"), tmp_path / "b.png")
    assert times(tmp_path / "b.png") == times(tmp_path / "a.png")
    for small, large in zip(shown(tmp_path / "a.png"), shown(tmp_path / "b.png"), strict=True):
        np.testing.assert_array_equal(large, small.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_another_library_shows_the_same(tmp_path: Path, suffix: str) -> None:
    av = pytest.importorskip("av")
    enlarged(read_image(make(tmp_path / "a.webp", clear=True)), tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / f"b{suffix}"), format="gif" if suffix == ".gif" else "apng") as container:
        frames = [frame.to_ndarray(format="rgba").astype(int) for frame in container.decode(video=0)]
    for frame, expected in zip(frames, shown(tmp_path / "a.webp"), strict=True):
        over = np.where(frame[..., 3:] > 0, frame[..., :3], 128)
        np.testing.assert_array_equal(over, expected.repeat(2, 0).repeat(2, 1))


def test_the_picture_of_an_apng_for_old_viewers_is_no_frame(tmp_path: Path) -> None:
    first = Image.new("RGBA", (36, 24), (1, 2, 3, 255))
    frames = [drawing(number, False) for number in range(3)]
    first.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=TIMES[:3])
    picture = read_image(tmp_path / "a.png")
    assert picture.frames is not None
    assert len(picture.frames) == 3
    enlarged(picture, tmp_path / "b.png")
    for frame, large in zip(frames, shown(tmp_path / "b.png"), strict=True):
        np.testing.assert_array_equal(large, np.asarray(frame)[..., :3].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("target", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("source", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("plays", [0, 1, 5])
def test_how_often_it_is_shown(tmp_path: Path, source: str, target: str, plays: int) -> None:
    # A GIF counts repetitions after the first time, and one without the number is shown once.
    option = {"loop": plays} if source != ".gif" else {"loop": plays - 1 if plays > 1 else None if plays else 0}
    make(tmp_path / f"a{source}", **option)
    picture = read_image(tmp_path / f"a{source}")
    assert picture.frames is not None
    assert picture.frames.plays == plays
    enlarged(picture, tmp_path / f"b{target}")
    again = read_image(tmp_path / f"b{target}")
    assert again.frames is not None
    assert again.frames.plays == plays


def test_times_that_a_gif_cannot_hold_do_not_add_up_to_another_length(tmp_path: Path) -> None:
    frames = [drawing(number % 7, False) for number in range(30)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=33, lossless=True)
    enlarged(read_image(tmp_path / "a.webp"), tmp_path / "b.gif")
    assert set(times(tmp_path / "b.gif")) == {30, 40}
    assert sum(times(tmp_path / "b.gif")) == 990


def test_a_gif_of_many_colours_and_soft_edges(tmp_path: Path) -> None:
    y, x = np.mgrid[:40, :60]
    alpha = np.clip((18 - np.hypot(y - 20, x - 30)) * 40, 0, 255).astype(np.uint8)
    frames = [
        Image.fromarray(np.dstack([x * 4, y * 6, np.full_like(x, 60 * number), alpha]).astype(np.uint8))
        for number in range(3)
    ]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=50)
    (lost,) = enlarged(read_image(tmp_path / "a.png"), tmp_path / "b.gif")
    assert lost.endswith("GIF holds 256 colours for each frame, and no half transparency")
    with Image.open(tmp_path / "b.gif") as image:
        for number, frame in enumerate(ImageSequence.Iterator(image)):
            found = np.asarray(frame.convert("RGBA")).astype(int)
            np.testing.assert_array_equal(found[..., 3], np.where(alpha >= 128, 255, 0).repeat(2, 0).repeat(2, 1))
            seen = found[..., 3] > 0
            wanted = np.asarray(frames[number])[..., :3].repeat(2, 0).repeat(2, 1).astype(int)
            assert np.abs(found[..., :3] - wanted)[seen].mean() < 4


@pytest.mark.parametrize("target", [".jpg", ".tif", ".bmp"])
def test_a_format_of_one_picture_is_refused_with_the_way_out(tmp_path: Path, target: str) -> None:
    path = make(tmp_path / "a.gif")
    with pytest.raises(
        ImageError, match="of 4 frames and .* holds one: use .png, .webp, .gif or .avif, or --first-frame"
    ):
        check_output(tmp_path / f"b{target}", read_image(path))
    first = read_image(path, first_frame=True)
    assert first.frames is None
    write_image(tmp_path / f"b{target}", first)
    assert peek(path, first_frame=True).frames == 1
    with pytest.raises(ImageError, match="is an animation of 4 frames: save one as a PNG"):
        read_levels(path)


def test_options_hold_for_every_frame(tmp_path: Path) -> None:
    picture = read_image(make(tmp_path / "a.webp"))
    enlarged(picture, tmp_path / "b.webp")
    enlarged(picture, tmp_path / "c.webp", WriteOptions(quality=30))
    assert (tmp_path / "c.webp").read_bytes().count(b"VP8 ") >= 4
    assert (tmp_path / "b.webp").read_bytes().count(b"VP8L") >= 4
    with pytest.raises(ImageError, match="PNG has no quality"):
        enlarged(picture, tmp_path / "b.png", WriteOptions(quality=30))


def test_streams(tmp_path: Path) -> None:
    source, target = io.BytesIO(make(tmp_path / "a.gif").read_bytes()), io.BytesIO()
    enlarged(read_image(source), target, suffix=".png")
    (tmp_path / "b.png").write_bytes(target.getvalue())
    assert len(shown(tmp_path / "b.png")) == 4


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_a_truncated_animation_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    picture = read_image(path)
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match=f"a{suffix} is (truncated|damaged)"):
        enlarged(picture, tmp_path / "b.png")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_error_of_a_frame_comes_out_as_it_was_raised(tmp_path: Path) -> None:
    picture = read_image(make(tmp_path / "a.gif"))

    def frames() -> Iterator[Picture]:
        assert picture.frames is not None
        for number, frame in enumerate(picture.frames):
            if number == 2:
                raise KeyError("the runner")
            yield enlarge(frame, repeated, 2)

    (tmp_path / "b.webp").write_bytes(b"the old file")
    with pytest.raises(KeyError, match="the runner"):
        write_animation(tmp_path / "b.webp", picture, frames())
    assert (tmp_path / "b.webp").read_bytes() == b"the old file"


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", AVIF])
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, suffix: str) -> None:
    def frames(count: int) -> Iterator[Image.Image]:
        for number in range(count):
            yield drawing(number % 6, False, (120, 160))

    alive, most = 0, 0

    class Counted(np.ndarray):
        def __array_finalize__(self, other: object) -> None:
            nonlocal alive, most
            if self.shape == (240, 320, 3):
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            if self.shape == (240, 320, 3):
                alive -= 1

    first, *others = frames(30)
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=20, lossless=True)
    picture = read_image(tmp_path / "a.webp")
    assert picture.frames is not None
    produced = (
        Picture(np.ascontiguousarray(repeated(frame.rgb, 8)).view(Counted), milliseconds=frame.milliseconds)
        for frame in picture.frames
    )
    write_animation(tmp_path / f"b{suffix}", picture, produced)
    assert peek(tmp_path / f"b{suffix}").frames == 30
    assert most <= 4


def test_alpha_of_frames_goes_its_own_way(tmp_path: Path) -> None:
    picture = read_image(make(tmp_path / "a.png", clear=True))
    assert picture.frames is not None
    runs: list[tuple[int, ...]] = []

    def run(rgb: np.ndarray, depth: int) -> np.ndarray:
        runs.append(rgb.shape)
        return repeated(rgb, depth)

    for frame in picture.frames:
        enlarge(frame, run, 2, EnlargeOptions(alpha="bicubic"))
    assert len(runs) == 4
