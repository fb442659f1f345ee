"""Colour profiles: kept where they fit, colours in CMYK and Lab converted, and what is assumed said."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from ppexport.imaging.images import Picture, read_image, write_image

y, x = np.mgrid[:32, :48]
RGB = np.dstack([x * 5, y * 7, (x + y) * 3]).astype(np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.avif"])
def test_a_profile_of_rgb_is_kept(tmp_path: Path, name: str) -> None:
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("needs AVIF in Pillow")
    assert write_image(tmp_path / name, Picture(RGB, icc=SRGB)) == ()
    back = read_image(tmp_path / name)
    assert (back.icc, back.notes) == (SRGB, ())


@pytest.mark.parametrize("name", ["a.bmp", "a.ppm"])
def test_a_format_without_profiles_says_so(tmp_path: Path, name: str) -> None:
    (lost,) = write_image(tmp_path / name, Picture(RGB, icc=SRGB))
    assert lost.endswith("cannot hold the picture's colour profile")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_grey_picture_keeps_a_grey_profile(tmp_path: Path, name: str) -> None:
    picture = Picture(RGB[..., :1].repeat(3, axis=2), grey=True, icc=GREY)
    assert write_image(tmp_path / name, picture) == ()
    back = read_image(tmp_path / name)
    assert (back.grey, back.icc, back.notes) == (True, GREY, ())
    (lost,) = write_image(tmp_path / "a.webp", picture)
    assert lost.endswith("WebP cannot hold the picture's grey colour profile")


@pytest.mark.parametrize(
    ("profile", "mode", "sentence"),
    [
        (GREY, "RGB", "its colour profile is one of grey colours and the picture is RGB: the profile was left out"),
        (SRGB, "L", "its colour profile is one of RGB colours and the picture is grey: the profile was left out"),
        (LAB, "RGB", "its colour profile is one of Lab colours and the picture is RGB: the profile was left out"),
        (SRGB[:16] + b"CMYK" + SRGB[20:], "RGB", "its colour profile is one of CMYK colours and the picture is RGB"),
        (b"junk" * 50, "RGB", "its colour profile is damaged and was left out"),
    ],
)
def test_a_profile_of_the_wrong_kind_is_left_out_with_a_warning(
    tmp_path: Path, profile: bytes, mode: str, sentence: str
) -> None:
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png", icc_profile=profile)
    picture = read_image(tmp_path / "a.png")
    assert picture.icc is None
    assert len(picture.notes) == 1
    assert picture.notes[0].startswith(sentence)


def press(c: float, m: float, y: float, k: float) -> tuple[float, float, float]:
    """sRGB of the inks of a made-up press, which are not ideal."""
    return (1 - 0.9 * c) * (1 - k), (1 - 0.8 * m) * (1 - k), (1 - 0.85 * y) * (1 - k)


def cmyk_profile() -> bytes:
    """A profile of version 2 for that press: tables of 5 steps from inks to Lab, and from Lab to black ink alone."""
    steps = 5
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    inks = list(itertools.product(np.linspace(0, 1, steps), repeat=4))
    colours = np.array([[press(*ink) for ink in inks]])
    lab = ImageCms.applyTransform(Image.fromarray((colours * 255).round().astype(np.uint8)), to_lab)
    assert lab is not None
    table = np.asarray(lab).astype(np.int16).reshape(-1, 3)
    # Pillow's a and b are signed bytes; the table of 8 bits counts from -128.
    signed = np.asarray(lab).view(np.int8).astype(int).reshape(-1, 3)[:, 1:] + 128
    table = np.column_stack([table[:, 0], signed]).astype(np.uint8)

    def lut(inputs: int, outputs: int, data: bytes) -> bytes:
        identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
        ramp = bytes(range(256))
        return b"mft1\0\0\0\0" + bytes([inputs, outputs, steps, 0]) + identity + ramp * inputs + data + ramp * outputs

    a2b = lut(4, 3, table.tobytes())
    black = np.zeros((steps**3, 4), np.uint8)
    black[:, 3] = np.repeat(255 - np.arange(steps) * 255 // (steps - 1), steps**2)
    b2a = lut(3, 4, black.tobytes())
    text = b"desc\0\0\0\0" + struct.pack(">L", 5) + b"test\0" + bytes(78)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": text, b"A2B0": a2b, b"A2B1": a2b, b"B2A0": b2a, b"B2A1": b2a, b"wtpt": white}
    at = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">L", len(tags)), b""
    for name, content in tags.items():
        directory += name + struct.pack(">LL", at + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = 128 + len(directory) + len(body)
    head = struct.pack(">L4sL4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + directory + body


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_goes_through_its_profile(tmp_path: Path, name: str) -> None:
    inks = np.zeros((40, 40, 4), np.uint8)
    inks[:, :10, 0], inks[:, 10:20, 1], inks[:, 20:30, 2], inks[:, 30:, 3] = 255, 255, 255, 128
    options = {"quality": 95} if name.endswith("jpg") else {}
    Image.fromarray(inks, "CMYK").save(tmp_path / name, icc_profile=cmyk_profile(), **options)
    picture = read_image(tmp_path / name)
    assert (picture.icc, picture.grey) == (None, False)
    assert picture.notes == ("its CMYK colours were converted to sRGB",)
    # The press's cyan, magenta, yellow, and half of black, not those of ideal inks.
    middle = [picture.rgb[20, at].astype(int) for at in (5, 15, 25, 35)]
    expected = [(26, 255, 255), (255, 51, 255), (255, 255, 38), (127, 127, 127)]
    assert max(np.abs(a - b).max() for a, b in zip(middle, np.array(expected), strict=True)) < 24
    write_image(tmp_path / "b.png", picture)
    assert read_image(tmp_path / "b.png").icc is None


@pytest.mark.parametrize("profile", [None, SRGB, b"junk" * 50])
def test_cmyk_without_a_profile_says_what_is_assumed(tmp_path: Path, profile: bytes | None) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a.tif", **({"icc_profile": profile} if profile else {}))
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert picture.notes[-1] == "its CMYK colours were converted as those of ideal inks, since no profile says of which"
    assert len(picture.notes) == (2 if profile else 1)


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(RGB), to_lab)
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    picture = read_image(tmp_path / "a.tif")
    assert picture.notes == ("its Lab colours were converted to sRGB",)
    assert np.abs(picture.rgb.astype(int) - RGB).mean() < 2
