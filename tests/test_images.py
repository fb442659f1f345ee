"""Reading and writing pictures: real files made by Pillow or by hand."""

from __future__ import annotations

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ppexport.errors import ImageError
from ppexport.imaging.images import Picture, beyond_srgb, check_output, read_image, write_image

rng = np.random.default_rng(7)
GREY = rng.integers(0, 256, (11, 17), dtype=np.uint8)
RGB = rng.integers(0, 256, (11, 17, 3), dtype=np.uint8)
ALPHA = rng.integers(0, 256, (11, 17), dtype=np.uint8)
ALPHA[:3] = 0
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, depth: int, colour_type: int, rows: list[bytes], *chunks: tuple[bytes, bytes], **size: int) -> Path:
    """A PNG of *rows* of packed samples, made by hand."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    width = size.get("width", len(rows[0]) * 8 // depth // channels)
    header = struct.pack(">IIBBBBB", width, size.get("height", len(rows)), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    blocks = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in blocks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# Reading: every kind of pixel


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.webp", {"lossless": True})])
def test_8_bit_rgb(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    picture = read_image(save(tmp_path / name, Image.fromarray(RGB), **options))
    assert picture.rgb.dtype == np.uint8
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert (picture.alpha, picture.grey, picture.icc, picture.size) == (None, False, None, (11, 17))


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB))
    np.testing.assert_array_equal(read_image(path).rgb, np.asarray(Image.open(path)))


def test_the_content_tells_the_format_not_the_extension(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), format="WEBP", lossless=True)
    np.testing.assert_array_equal(read_image(path).rgb, RGB)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_grey(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, Image.fromarray(GREY))
    picture = read_image(path)
    assert picture.grey
    np.testing.assert_array_equal(picture.rgb, np.asarray(Image.open(path))[..., None].repeat(3, axis=2))


def test_1_bit(tmp_path: Path) -> None:
    picture = read_image(save(tmp_path / "a.png", Image.fromarray(GREY > 99)))
    assert picture.grey
    assert picture.rgb.dtype == np.uint8
    np.testing.assert_array_equal(picture.rgb[..., 1], np.where(GREY > 99, 255, 0))


def test_16_bit_grey_keeps_its_precision(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read_image(save(tmp_path / "a.png", Image.fromarray(levels)))
    assert picture.grey
    assert picture.rgb.dtype == np.float32
    np.testing.assert_array_equal(picture.rgb[..., 2], levels.astype(np.float32) / np.float32(65535))
    assert len(np.unique(picture.rgb)) == 65536


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    picture = read_image(save(tmp_path / "a.png", image))
    assert picture.alpha is None
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(RGB).quantize(16)
    picture = read_image(save(tmp_path / "a.png", image, transparency=transparency))
    table = np.full(256, 255)
    if isinstance(transparency, int):
        table[transparency] = 0
    else:
        table[: len(transparency)] = list(transparency)
    assert picture.transparent
    np.testing.assert_array_equal(picture.alpha, table[np.asarray(image)])
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("name", "mode"), [("a.png", "LA"), ("a.png", "RGBA"), ("a.webp", "RGBA")])
def test_alpha(tmp_path: Path, name: str, mode: str) -> None:
    image = Image.fromarray(GREY if mode == "LA" else RGB)
    image.putalpha(Image.fromarray(ALPHA))
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    picture = read_image(save(tmp_path / name, image, **options))
    assert picture.grey == (mode == "LA")
    assert picture.transparent
    np.testing.assert_array_equal(picture.alpha, ALPHA)
    np.testing.assert_array_equal(picture.rgb, GREY[..., None].repeat(3, axis=2) if mode == "LA" else RGB)


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x50", 1, [255, 0, 255, 0, 255, 255, 255, 255]),
        (1, b"\x50", 0, [0, 255, 0, 255, 0, 0, 0, 0]),
        (2, b"\x1b", 2, [255, 255, 0, 255]),
        (4, b"\x3c", 12, [255, 0]),
        (8, b"\x07\x08", 7, [0, 255]),
        (16, b"\x01\x02\x01\x03", 0x0103, [255, 0]),
    ],
)
def test_a_transparent_grey_level_at_every_depth(
    tmp_path: Path, depth: int, row: bytes, key: int, expected: list[int]
) -> None:
    picture = read_image(png(tmp_path / "a.png", depth, 0, [row], (b"tRNS", struct.pack(">H", key))))
    assert picture.alpha is not None
    assert (picture.alpha * (255 // picture.alpha.max())).tolist() == [expected]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour(tmp_path: Path, depth: int) -> None:
    key = np.array([200, 10, 3]) * (257 if depth == 16 else 1)
    pixels = np.stack([key, key[::-1]]).astype(">u2" if depth == 16 else ">u1")
    picture = read_image(png(tmp_path / "a.png", depth, 2, [pixels.tobytes()], (b"tRNS", struct.pack(">HHH", *key))))
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[0, 1.0 if depth == 16 else 255]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB).convert("CMYK"), quality=95)
    picture = read_image(path)
    np.testing.assert_array_equal(picture.rgb, np.asarray(Image.open(path).convert("RGB")))


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""What every orientation of EXIF asks for."""


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image = Image.fromarray(RGB)
    if not name.endswith("jpg"):
        image.putalpha(Image.fromarray(ALPHA))
    path = save(tmp_path / name, image, exif=exif.tobytes(), **options)
    picture = read_image(path)
    with Image.open(path) as stored:
        upright = UPRIGHT[orientation](np.asarray(stored))
    np.testing.assert_array_equal(picture.rgb, upright[..., :3])
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, upright[..., 3])
    # Written and read again, it is not turned a second time.
    write_image(tmp_path / "again.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "again.png").rgb, picture.rgb)


def test_unreadable_exif_is_no_reason_to_lose_the_picture(tmp_path: Path) -> None:
    for junk in (b"II*\0\xff\xff\xff\xff", b"garbage", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9):
        path = save(tmp_path / "a.jpg", Image.fromarray(RGB), exif=b"Exif\0\0" + junk)
        assert read_image(path).size == (11, 17)


def test_a_picture_that_cannot_be_turned_for_want_of_memory_is_not_read_lying(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ppexport.imaging.decoding._turned", full)
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(ImageError, match="does not fit into memory"):
        read_image(save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif))


def test_the_first_picture_of_a_multi_picture_jpeg_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(GREY)
    path = save(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert Image.open(path).n_frames == 2
    np.testing.assert_array_equal(read_image(path).rgb, np.asarray(Image.open(path)))


# Reading: what is refused


def text_file(path: Path) -> None:
    path.write_text("not a picture at all, only text")


def icon(path: Path) -> None:
    Image.fromarray(GREY).save(path, format="ICO")


def pages(path: Path) -> None:
    Image.fromarray(RGB).save(path, format="TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)])


def cut_off(kind: str, share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        stream = io.BytesIO()
        Image.fromarray(RGB).save(stream, kind)
        path.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * share)])

    return make


def flipped_bits(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def lying_webp(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "WEBP", lossless=True)
    data = bytearray(stream.getvalue())
    data[20:40] = bytes(20)
    path.write_bytes(data)


def huge_text(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * 5_000_000, zip=True)
    Image.fromarray(RGB).save(path, format="PNG", pnginfo=info)


def bomb(path: Path) -> None:
    png(path, 8, 2, [b"\0" * 3], width=100_000, height=100_000)


def no_width(path: Path) -> None:
    png(path, 8, 2, [b"\0" * 3], width=0, height=5)


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda path: None, "does not exist"),
    ("folder", Path.mkdir, "is a folder"),
    ("pipe", os.mkfifo, "is not a plain file"),
    ("empty", Path.touch, "is empty"),
    ("text", text_file, "is not a PNG, JPEG, WebP, TIFF, BMP, PPM, GIF, AVIF or HEIC picture"),
    ("icon", icon, "is not a PNG, JPEG, WebP, .* or HEIC picture"),
    ("pages", pages, "is a TIFF of several pages: --first-frame takes the first of them"),
    ("cut png", cut_off("PNG", 0.6), "is truncated: it ends after"),
    ("cut jpeg", cut_off("JPEG", 0.95), "is truncated: it ends after"),
    ("cut jpeg header", cut_off("JPEG", 0.2), "is truncated: it ends after"),
    ("cut webp", cut_off("WEBP", 0.6), "is truncated: it ends after"),
    ("damaged png", flipped_bits, "is damaged and cannot be decoded"),
    ("damaged webp", lying_webp, "is damaged and cannot be decoded"),
    ("huge text", huge_text, "metadata of unreasonable size"),
    ("bomb", bomb, r"100000x100000 = 10,000,000,000 pixels, .* limit of 89,478,485: .*--max-pixels 10000000000"),
    ("no width", no_width, "no pixels|damaged"),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(
    tmp_path: Path, make: Callable[[Path], object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.png"
    make(path)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")


def test_the_limit_of_pixels_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    assert read_image(path, max_pixels=11 * 17).size == (11, 17)
    # Nothing is decoded beyond the limit.
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"17x11 = 187 pixels, more than the limit of 186: .*--max-pixels 187"):
        read_image(path, max_pixels=11 * 17 - 1)


def test_pillows_own_limit_does_not_get_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(path).size == (11, 17)


def test_pillows_warnings_stay_inside(tmp_path: Path) -> None:
    # An animation of no frames makes Pillow warn.
    path = png(tmp_path / "a.png", 8, 2, [b"abc"], (b"acTL", struct.pack(">II", 0, 0)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(path).load()
        assert caught
        caught.clear()
        assert read_image(path).size == (1, 1)
    assert not caught


# Writing


@pytest.mark.parametrize("name", ["a.png", "a.webp", "A.PNG"])
@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("grey", [False, True])
def test_lossless_formats_return_what_was_written(tmp_path: Path, name: str, alpha: np.ndarray, grey: bool) -> None:
    rgb = GREY[..., None].repeat(3, axis=2) if grey else RGB
    write_image(tmp_path / name, Picture(rgb, alpha, grey))
    back = read_image(tmp_path / name)
    np.testing.assert_array_equal(back.rgb, rgb)
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(back.alpha, alpha)
    # WebP has no grey.
    assert back.grey == (grey and name != "a.webp")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.tif", "a.ppm", "a.gif"])
@pytest.mark.parametrize("missing", [1, 600])
def test_a_file_that_becomes_too_large_is_not_there(tmp_path: Path, name: str, missing: int) -> None:
    import resource

    picture = Picture(rng.integers(0, 256, (80, 60, 3), dtype=np.uint8))
    write_image(tmp_path / name, picture)
    whole = (tmp_path / name).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a disk that fills up, the system takes a part of what is written to it, and refuses what comes then.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - missing, limits[1]))
    try:
        with pytest.raises(ImageError, match="cannot be written: File too large"):
            write_image(tmp_path / name, picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == whole


def test_grey_is_written_as_luma(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", Picture(RGB, grey=True))
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(tmp_path / "a.png").rgb[..., 0] - luma).max() <= 0.51


def test_jpeg_is_close_and_keeps_full_colour_resolution(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64]
    rgb = np.stack([x * 3, y * 3, 255 - x * 2], axis=2).astype(np.uint8)
    write_image(tmp_path / "a.jpg", Picture(rgb))
    assert np.abs(read_image(tmp_path / "a.jpg").rgb.astype(int) - rgb).mean() < 1.5
    with Image.open(tmp_path / "a.jpg") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_an_opaque_alpha_does_not_keep_a_picture_from_jpeg(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", Picture(RGB, np.full_like(ALPHA, 255)))
    assert read_image(tmp_path / "a.jpg").alpha is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_the_colour_profile_is_kept(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "source.png", Image.fromarray(RGB), icc_profile=SRGB)
    write_image(tmp_path / name, read_image(source))
    assert read_image(tmp_path / name).icc == SRGB


def test_a_profile_of_another_colour_space_is_not_written(tmp_path: Path) -> None:
    profile = SRGB[:16] + b"CMYK" + SRGB[20:]
    source = save(tmp_path / "a.jpg", Image.fromarray(RGB).convert("CMYK"), icc_profile=profile)
    picture = read_image(source)
    assert picture.icc is None
    assert any("CMYK" in note for note in picture.notes)
    write_image(tmp_path / "b.png", picture)
    assert read_image(tmp_path / "b.png").icc is None


GAMMA_1 = (b"gAMA", struct.pack(">I", 100_000))
WINDOWS_GAMMA = (b"gAMA", struct.pack(">I", 45_455))
SRGB_POINTS = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
ADOBE_POINTS = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))
PERCEPTUAL = (b"sRGB", b"\0")
PQ = (b"cICP", bytes((9, 16, 0, 1)))
PROFILE = (b"iCCP", b"x\0\0" + zlib.compress(SRGB))
RESOLUTION = (b"pHYs", struct.pack(">IIB", 11811, 5906, 1))


def chunks_of(path: Path) -> dict[bytes, bytes]:
    """{kind: content} of every chunk before the pixels."""
    data, at, found = path.read_bytes(), 8, {}
    while (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = struct.unpack(">I", data[at : at + 4])[0]
        assert kind not in found
        found[kind] = data[at + 8 : at + 8 + length]
        at += length + 12
    return found


@pytest.mark.parametrize(
    "chunks",
    [(GAMMA_1,), (WINDOWS_GAMMA, ADOBE_POINTS), (PERCEPTUAL, WINDOWS_GAMMA, SRGB_POINTS), (PQ, GAMMA_1), (RESOLUTION,)],
)
@pytest.mark.parametrize(("colour_type", "row"), [(0, b"\x50\x60"), (2, b"abcdef"), (4, b"abcd"), (6, b"abcdefgh")])
def test_what_a_png_says_of_its_colours_and_resolution_is_kept(
    tmp_path: Path, chunks: tuple[tuple[bytes, bytes], ...], colour_type: int, row: bytes
) -> None:
    source = png(tmp_path / "a.png", 8, colour_type, [row], *chunks)
    write_image(tmp_path / "b.png", read_image(source))
    assert {k: v for k, v in chunks_of(tmp_path / "b.png").items() if k != b"IHDR"} == dict(chunks)


def test_beside_a_profile_gamma_stays_and_the_srgb_chunk_cannot(tmp_path: Path) -> None:
    source = png(tmp_path / "a.png", 8, 2, [b"abc"], PROFILE, GAMMA_1, PERCEPTUAL)
    write_image(tmp_path / "b.png", read_image(source))
    found = chunks_of(tmp_path / "b.png")
    assert found[b"gAMA"] == GAMMA_1[1]
    assert b"sRGB" not in found
    assert read_image(tmp_path / "b.png").icc == SRGB


@pytest.mark.parametrize("chunk", [(b"gAMA", bytes(5)), (b"cHRM", bytes(33)), (b"sRGB", b"\0\0"), (b"cICP", b"\1")])
def test_a_chunk_of_a_wrong_length_is_left_out(tmp_path: Path, chunk: tuple[bytes, bytes]) -> None:
    picture = read_image(png(tmp_path / "a.png", 8, 2, [b"abc"], chunk, WINDOWS_GAMMA))
    assert picture.chunks == (WINDOWS_GAMMA,)


@pytest.mark.parametrize("name", ["b.jpg", "b.webp"])
@pytest.mark.parametrize(
    ("chunks", "named"),
    [
        ((GAMMA_1,), "gAMA"),
        ((WINDOWS_GAMMA, ADOBE_POINTS), "cHRM"),
        ((PQ, PERCEPTUAL), "cICP"),
        ((PROFILE, PQ), "cICP"),
        ((PROFILE, GAMMA_1), None),
        ((PERCEPTUAL, GAMMA_1), None),
        ((WINDOWS_GAMMA, SRGB_POINTS), None),
        (((b"cICP", bytes((1, 13, 0, 1))), GAMMA_1), None),
        (((b"gAMA", bytes(4)),), None),
    ],
)
def test_colours_that_a_format_cannot_hold_are_an_error(
    tmp_path: Path, name: str, chunks: tuple[tuple[bytes, bytes], ...], named: str | None
) -> None:
    picture = read_image(png(tmp_path / "a.png", 8, 2, [b"abc"], *chunks))
    assert beyond_srgb(picture) == named
    if named is None:
        write_image(tmp_path / name, picture)
    else:
        with pytest.raises(ImageError, match=rf"{name}: the picture's {named} chunk .* use \.png"):
            write_image(tmp_path / name, picture)


@pytest.mark.parametrize("source", ["a.png", "a.jpg"])
@pytest.mark.parametrize("target", ["b.png", "b.jpg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_dots_per_inch_are_kept_and_turned(tmp_path: Path, source: str, target: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / source, Image.fromarray(RGB), dpi=(300, 150), exif=exif.tobytes())
    write_image(tmp_path / target, read_image(path))
    with Image.open(tmp_path / target) as image:
        found = tuple(round(float(v)) for v in image.info["dpi"])
    assert found == ((300, 150) if orientation == 1 else (150, 300))


@pytest.mark.parametrize("dots", [(0, 0, 1), (1, 1, 1), (2**32 - 1, 2**32 - 1, 1), (3, 2, 0)])
def test_a_resolution_of_nonsense_is_left_out(tmp_path: Path, dots: tuple[int, int, int]) -> None:
    picture = read_image(png(tmp_path / "a.png", 8, 2, [b"abc"], (b"pHYs", struct.pack(">IIB", *dots))))
    assert picture.dpi is None


def blank(size: tuple[int, int], transparent: bool = False) -> Picture:
    """A picture of *size* (H, W) that takes no memory."""
    return Picture(
        np.broadcast_to(np.uint8(0), (*size, 3)), np.broadcast_to(np.uint8(0), size) if transparent else None
    )


CHECKS: list[tuple[str, tuple[int, int], bool, str]] = [
    ("a.jp2", (9, 9), False, r"extension is one of .png, .jpg, .webp, .tif, .bmp, .ppm, .gif, .avif, .heic$"),
    ("a", (9, 9), False, r"extension is one of .png, .jpg, .webp, .tif, .bmp, .ppm, .gif, .avif, .heic$"),
    ("a.bmp", (9, 9), True, r"BMP has no transparency.*use .png or .webp"),
    ("a.tif", (40_000, 40_000), False, r"TIFF files end at 4 GB, the result has 4.8 GB: use .png"),
    ("missing/a.png", (9, 9), False, r"folder .*missing does not exist"),
    ("file/a.png", (9, 9), False, r"folder .*file does not exist"),
    ("folder.png", (9, 9), False, "is a folder"),
    ("pipe.png", (9, 9), False, "exists and is not a file that may be overwritten"),
    ("x" * 300 + ".png", (9, 9), False, "cannot be written: File name too long"),
    ("a.jpg", (9, 9), True, r"JPEG has no transparency.*use .png or .webp"),
    ("a.jpeg", (9, 65501), False, r"JPEG sides end at 65500 pixels, the result has 65501x9: use .png"),
    ("a.webp", (16384, 9), False, r"WEBP sides end at 16383 pixels, the result has 9x16384: use .png"),
]


@pytest.mark.parametrize(("name", "size", "transparent", "message"), CHECKS)
def test_an_output_that_cannot_be_written_is_known_before(
    tmp_path: Path, name: str, size: tuple[int, int], transparent: bool, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=message):
        check_output(tmp_path / name, blank(size, transparent))


@pytest.mark.parametrize(
    ("name", "size", "transparent"),
    [("a.jpg", (65500, 9), False), ("a.webp", (9, 16383), True), ("a.png", (9, 99999), True)],
)
def test_an_output_that_can_be_written(tmp_path: Path, name: str, size: tuple[int, int], transparent: bool) -> None:
    check_output(tmp_path / name, blank(size, transparent))
    assert os.listdir(tmp_path) == []


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise OSError(30, "Read-only file system")

    # Permission bits would not stop a test that runs as root.
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(ImageError, match=r"a\.png cannot be written: Read-only file system"):
        check_output(tmp_path / "a.png", blank((9, 9)))


def test_jpeg_sizes_up_to_the_limit_can_really_be_written(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", Picture(np.zeros((1, 65500, 3), np.uint8)))
    assert read_image(tmp_path / "a.jpg").size == (1, 65500)


def fill_disk(self: Image.Image, stream: io.BufferedWriter, **options: object) -> None:
    stream.write(b"half a picture")
    stream.flush()
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / name
    target.write_bytes(b"the old file")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fill_disk)
        with pytest.raises(ImageError, match=rf"{name} cannot be written: No space left on device"):
            write_image(target, Picture(RGB))
    assert target.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == [name]
    write_image(target, Picture(RGB))
    assert read_image(target).size == (11, 17)


def test_a_stream_that_takes_a_part_gets_the_rest_or_fails() -> None:
    class Part(io.RawIOBase):
        """Standard output with PYTHONUNBUFFERED, whose reader leaves after *most* bytes."""

        def __init__(self, most: int) -> None:
            self.got, self.most = b"", most

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if len(self.got) >= self.most:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self.got += bytes(data[:50])
            return min(50, len(data))

    picture = Picture(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), None, False)
    whole = Part(1 << 20)
    write_image(whole, picture, suffix=".png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole.got))), picture.rgb)
    with pytest.raises(ImageError, match="standard output cannot be written: Broken pipe"):
        write_image(Part(100), picture, suffix=".png")


def test_a_folder_that_vanishes_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppexport.imaging.writing.check_output", lambda path, picture, options: None)
    with pytest.raises(ImageError, match=r"a\.png cannot be written: No such file"):
        write_image(tmp_path / "gone" / "a.png", Picture(RGB))


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from typing import Any
from PIL import Image
from ppexport.imaging.images import Picture, write_image

def slow(self, stream, **options):
    stream.write(b"half a picture")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)

Image.Image.save = slow
write_image(Path(sys.argv[1]), Picture(np.zeros((4, 4, 3), np.uint8)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"the old file")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"the old file"


def test_a_picture_may_replace_its_source(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    write_image(path, Picture(255 - read_image(path).rgb))
    np.testing.assert_array_equal(read_image(path).rgb, 255 - RGB)


def test_only_levels_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "a.png", Picture(RGB.astype(np.float32)))
