"""Every format that is read and written: round trips, options, and what is refused in one sentence."""

from __future__ import annotations

import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from ppexport.errors import ImageError, UnavailableError
from ppexport.imaging.formats import check_options, format_of
from ppexport.imaging.images import (
    Header,
    Picture,
    WriteOptions,
    check_output,
    peek,
    pictures_in,
    read_image,
    write_image,
)

rng = np.random.default_rng(21)
RGB = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
ALPHA = rng.integers(0, 256, (24, 40), dtype=np.uint8)
LOSSLESS = (".png", ".webp", ".tif", ".bmp", ".ppm")
SMOOTH = np.dstack([*np.mgrid[:24, :40], np.mgrid[:24, :40].sum(0)]).astype(np.uint8) * 3
has_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="needs pillow-heif")
has_avif = pytest.mark.skipif(not features.check("avif"), reason="needs AVIF in Pillow")
AVIF, HEIC = pytest.param(".avif", marks=has_avif), pytest.param(".heic", marks=has_heif)
ALL = [".png", ".jpg", ".webp", ".tif", ".bmp", ".ppm", ".gif", AVIF, HEIC]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("grey", [False, True])
def test_no_level_is_lost(tmp_path: Path, suffix: str, grey: bool) -> None:
    rgb = RGB[..., :1].repeat(3, axis=2) if grey else RGB
    write_image(tmp_path / f"a{suffix}", Picture(rgb, grey=grey))
    back = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(back.rgb, rgb)
    assert (back.grey, back.depth, back.alpha) == (grey and suffix != ".webp", 8, None)


@pytest.mark.parametrize("suffix", ALL)
def test_every_format_is_written_and_read(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", Picture(SMOOTH))
    back = read_image(tmp_path / f"a{suffix}")
    assert back.size == (24, 40)
    assert psnr(back.rgb, SMOOTH) > 37
    assert peek(tmp_path / f"a{suffix}") == Header((24, 40), 1, False)


@pytest.mark.parametrize("suffix", [".tif", AVIF, HEIC])
def test_alpha(tmp_path: Path, suffix: str) -> None:
    alpha = np.linspace(0, 255, 24 * 40).reshape(24, 40).astype(np.uint8)
    write_image(tmp_path / f"a{suffix}", Picture(SMOOTH, alpha))
    back = read_image(tmp_path / f"a{suffix}")
    assert back.alpha is not None
    assert np.abs(back.alpha.astype(int) - alpha).max() <= (0 if suffix == ".tif" else 6)
    assert peek(tmp_path / f"a{suffix}").alpha


@pytest.mark.parametrize("suffix", ALL)
def test_the_content_tells_the_format(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", Picture(SMOOTH))
    wrong = tmp_path / "wrong.jpg"
    (tmp_path / f"a{suffix}").rename(wrong)
    assert read_image(wrong).size == (24, 40)
    kind = format_of(wrong.read_bytes()[:64])
    assert kind is not None
    assert suffix in kind.suffixes


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, suffix: str, share: float, capfd: Any) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, Picture(RGB))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match="truncated|damaged|is not a|pixels of a kind") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ALL)
def test_the_limit_of_pixels_is_the_callers(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, Picture(SMOOTH))
    for read in (read_image, peek):
        with pytest.raises(ImageError, match="40x24 = 960 pixels, more than the limit of 959: .*--max-pixels 960"):
            read(path, max_pixels=959)
    # Not Pillow's, which belongs to the process.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 480 if suffix in (".tif", ".webp") else 1)
    assert read_image(path, max_pixels=960).size == (24, 40)


@pytest.mark.parametrize("suffix", ALL)
def test_streams(tmp_path: Path, suffix: str) -> None:
    stream = io.BytesIO()
    write_image(stream, Picture(SMOOTH), suffix=suffix)
    write_image(tmp_path / f"a{suffix}", Picture(SMOOTH))
    assert format_of(stream.getvalue()[:64]) == format_of((tmp_path / f"a{suffix}").read_bytes()[:64])
    np.testing.assert_array_equal(read_image(stream).rgb, read_image(tmp_path / f"a{suffix}").rgb)
    with pytest.raises(ImageError, match="standard input is empty"):
        read_image(io.BytesIO())
    with pytest.raises(ImageError, match="standard output: the output's extension is one of"):
        write_image(io.BytesIO(), Picture(SMOOTH), suffix=".xyz")


def test_a_failed_stream_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: Image.Image, stream: io.BytesIO, **options: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    stream = io.BytesIO()
    with pytest.raises(ImageError, match="standard output cannot be written: No space left"):
        write_image(stream, Picture(SMOOTH), suffix=".png")
    assert stream.getvalue() == b""


def test_headers_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        Image.fromarray(RGB).save(tmp_path / name, exif=exif)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        assert peek(tmp_path / name).size == (40, 24)
    with pytest.raises(ImageError, match="does not exist"):
        peek(tmp_path / "none.png")


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    names = ["a.AVIF", "b.gif", "c.heic", "d.PPM", "e.tiff"]
    for name in [*names, "f.txt", ".g.png"]:
        (tmp_path / name).touch()
    assert [path.name for path in pictures_in(tmp_path)] == names


# Options


@pytest.mark.parametrize("suffix", [".jpg", ".webp", AVIF, HEIC])
def test_quality_changes_size_and_error(tmp_path: Path, suffix: str) -> None:
    sizes, errors = [], []
    for quality in (20, 95):
        write_image(tmp_path / f"a{suffix}", Picture(RGB), WriteOptions(quality=quality))
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        errors.append(psnr(read_image(tmp_path / f"a{suffix}").rgb, RGB))
    assert sizes[0] < sizes[1]
    assert errors[0] < errors[1]


def test_the_defaults_are_those_of_before(tmp_path: Path) -> None:
    for name, options in (("a.jpg", {"quality": 95, "subsampling": 0}), ("a.webp", {"lossless": True, "exact": True})):
        write_image(tmp_path / name, Picture(RGB))
        Image.fromarray(RGB).save(tmp_path / f"b{name}", **options)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"b{name}").read_bytes()


@pytest.mark.parametrize("suffix", [".webp", HEIC])
def test_lossless(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", Picture(RGB, ALPHA), WriteOptions(lossless=True))
    back = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(back.rgb, RGB)
    np.testing.assert_array_equal(back.alpha, ALPHA)


@pytest.mark.parametrize(
    ("suffix", "options", "message"),
    [
        (".png", {"quality": 90}, "PNG has no quality, only JPEG, WebP, AVIF and HEIC have: leave --quality out"),
        (".TIF", {"quality": 90}, "TIFF has no quality"),
        (".jpg", {"quality": 0}, "a quality is a number from 1 to 100, not 0"),
        (".jpg", {"quality": 101}, "a quality is a number from 1 to 100, not 101"),
        (
            ".jpg",
            {"lossless": True},
            "JPEG is always lossy here, only PNG, WebP, TIFF, BMP, PPM and HEIC can be lossless: leave",
        ),
        (".gif", {"lossless": True}, "GIF has 256 colours, only PNG, WebP, TIFF, BMP, PPM and HEIC can be lossless"),
        (".webp", {"lossless": True, "quality": 50}, "leave out one of --lossless and --quality"),
    ],
)
def test_an_option_without_use_is_an_error(tmp_path: Path, suffix: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_options("x", suffix, WriteOptions(**options))
    with pytest.raises(ImageError, match=message):
        check_output(tmp_path / f"a{suffix}", Picture(SMOOTH), options=WriteOptions(**options))


@has_avif
def test_avif_is_never_called_lossless(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="AVIF is always lossy here"):
        write_image(tmp_path / "a.avif", Picture(RGB), WriteOptions(lossless=True))


# What a machine lacks, and what one thread leaves to another


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(UnavailableError, match=r"pillow_heif is not installed: .*\[heif\]"):
        read_image(path)
    with pytest.raises(UnavailableError, match="pillow_heif is not installed"):
        check_output(path, Picture(SMOOTH))


def test_a_pillow_without_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match="this machine's Pillow was built without AVIF, use another format"):
        check_output(tmp_path / "a.avif", Picture(SMOOTH))


@has_heif
def test_10_bits_of_a_heic_are_read(tmp_path: Path) -> None:
    import pillow_heif

    levels = (np.mgrid[:32, :64].sum(0)[..., None] * [600, 500, 400]).astype(np.uint16)
    pillow_heif.encode("RGB;16", (64, 32), levels.tobytes(), tmp_path / "a.heic", quality=100, chroma=444)
    picture = read_image(tmp_path / "a.heic")
    assert (picture.depth, picture.rgb.dtype) == (16, np.float32)
    assert np.abs(picture.rgb - levels / 65535).max() < 0.01
    # Finer than 8 bits.
    assert len(np.unique(picture.rgb)) > 256


def test_warnings_of_pillow_stay_inside_whatever_other_threads_do(tmp_path: Path) -> None:
    # A TIFF whose tag has too many entries makes Pillow warn.
    Image.fromarray(RGB).save(tmp_path / "a.tif", tiffinfo={271: "maker"})
    for _ in range(3):
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: read_image(tmp_path / "a.tif"), range(40)))
        assert warnings.filters == before
