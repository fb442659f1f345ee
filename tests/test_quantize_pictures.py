"""Pictures to calibrate on: crops that repeat, and warnings where they are poor ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from shared import FREE_IMAGES, evaluation_pairs

from ppexport.errors import ImageError, InputError
from ppexport.quantize.crops import (
    cut_crops,
    images_hash,
    known_evaluation_pictures,
    read_sources,
    used_pictures,
    warnings_about,
)


def said_of(folder, crops=32, scale=2) -> str:
    sources = read_sources(folder)
    return " | ".join(warnings_about(folder, sources, cut_crops(sources, (32, 32), scale, crops)))


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def test_the_bundled_photographs_raise_no_warning():
    assert said_of(FREE_IMAGES) == ""


def test_crops_repeat_and_differ_by_purpose():
    sources = read_sources(FREE_IMAGES)
    first, again = (cut_crops(sources, (16, 24), 2, 12) for _ in range(2))
    assert [c.name for c in first] == [c.name for c in again]
    assert len({c.name for c in first}) == 12
    assert {c.name.split("+")[0] for c in first[:5]} == {s.path.name for s in sources}
    assert all(c.lr.shape == (1, 3, 16, 24) and c.hr.shape == (32, 48, 3) for c in first)
    assert [c.name for c in cut_crops(sources, (16, 24), 2, 12, "search")] != [c.name for c in first]


def test_a_folder_is_never_whole_in_memory(tmp_path):
    pixels = np.zeros((700, 1000, 3), np.uint8)
    for number in range(12):
        pixels[0, 0] = number
        save(tmp_path, f"{number}.png", pixels)
    tracemalloc.start()
    try:
        sources = read_sources(tmp_path)
        crops = cut_crops(sources, (16, 24), 2, 24)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len({crop.source for crop in crops}) == 12
    assert peak < 6 * pixels.nbytes


def test_a_picture_that_changes_is_an_error(tmp_path):
    save(tmp_path, "a.png", np.zeros((90, 100, 3), np.uint8))
    sources = read_sources(tmp_path)
    save(tmp_path, "a.png", np.ones((90, 100, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png was changed while it was used"):
        cut_crops(sources, (16, 24), 2, 2)


def test_evaluation_sets_are_known_by_their_pixels_and_by_their_folder(tmp_path):
    pairs = evaluation_pairs("set5", 2)
    for number, (hr, _) in enumerate(pairs):
        with Image.open(hr) as image:
            image.convert("RGB").save(tmp_path / f"holiday_{number}.png")
    assert "evaluation set (Set5)" in said_of(tmp_path)
    assert len(known_evaluation_pictures()) > 30


@pytest.mark.parametrize("name", ["Set14", "urban100", "B100", "BSDS100", "Set5_HR", "DIV2K_valid_HR"])
def test_evaluation_sets_are_known_by_the_name_of_their_folder(name, tmp_path):
    (tmp_path / name).mkdir()
    for photo in FREE_IMAGES.glob("*.png"):
        (tmp_path / name / photo.name).write_bytes(photo.read_bytes())
    assert f"evaluation set ({name})" in said_of(tmp_path / name)


def test_pictures_that_are_not_used_are_told_and_not_listed(tmp_path):
    for number, side in enumerate((40, 64, 100, 120)):
        with Image.open(FREE_IMAGES / "chelsea.png") as image:
            image.crop((0, 0, side, side)).save(tmp_path / f"{number}.png")
    sources = read_sources(tmp_path)
    crops = cut_crops(sources, (32, 32), 2, 2)
    assert "2 of 4 pictures are not used: smaller than a crop, or more than crops" in said_of(tmp_path, crops=2)
    assert "1 of 4 pictures are not used" in said_of(tmp_path, crops=32)
    assert "only 3 different pictures" in said_of(tmp_path, crops=32)
    used = used_pictures(sources, crops)
    assert [picture["name"] for picture in used] == ["1.png", "2.png"]
    assert images_hash(used) == images_hash([*reversed(used)]) != images_hash(used[:1])


def test_too_few_all_alike_narrow_and_grey(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(100, 120, (200, 200, 1), np.uint8).repeat(3, axis=2)
    for number in range(3):
        save(tmp_path / "one", f"{number}.png", grey)
    said = said_of(tmp_path / "one", crops=8)
    for expected in ("only 1 different pictures", "only 8 crops", "look alike", "98 % lie between", "are grey"):
        assert expected in said


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_sources(tmp_path / "none")
    with pytest.raises(InputError, match="holds no PNG, JPEG, WebP, .* pictures"):
        read_sources(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    with pytest.raises(ImageError, match=r"broken\.png"):
        read_sources(tmp_path)
    save(tmp_path / "small", "a.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(InputError, match="none of the 1 pictures is as large as a crop, 64x64 pixels"):
        cut_crops(read_sources(tmp_path / "small"), (32, 32), 2, 4)
