"""EXIF, XMP, texts and resolution: kept, made true of the new picture, or lost with a sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from ppexport.imaging.images import Metadata, Picture, WriteOptions, read_image, write_image
from ppexport.imaging.metadata import true_exif, true_xmp

rng = np.random.default_rng(5)
RGB = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
LARGE = rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension = \'20\'>'
    b"<exif:PixelYDimension>30</exif:PixelYDimension><tiff:Orientation>8</tiff:Orientation>"
    b"<xmp:Thumbnails><rdf:Alt>base64</rdf:Alt></xmp:Thumbnails></rdf:Description></x:xmpmeta>"
)
TRUE_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1" exif:PixelXDimension = \'40\'>'
    b"<exif:PixelYDimension>60</exif:PixelYDimension><tiff:Orientation>1</tiff:Orientation>"
    b"</rdf:Description></x:xmpmeta>"
)
MAKER = b"SECRET\0\1notes with offsets"


def camera_exif(order: str = "<", thumbnail_last: bool = True) -> bytes:
    """EXIF as a camera writes it: a maker, an orientation, sizes, a note of the maker, and a small picture."""
    small = b"\xff\xd8small picture\xff\xd9"
    make = b"A maker\0"
    first = 8
    inner = first + 2 + 12 * 4 + 4
    second = inner + 2 + 12 * 3 + 4
    data = second + 2 + 12 * 2 + 4
    parts = [make, MAKER, small] if thumbnail_last else [small, make, MAKER]
    at = {id(part): data + sum(map(len, parts[:i])) for i, part in enumerate(parts)}

    def directory(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
        packed = b"".join(
            struct.pack(f"{order}HHL", tag, kind, count)
            + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}L", value))
            for tag, kind, count, value in entries
        )
        return struct.pack(f"{order}H", len(entries)) + packed + struct.pack(f"{order}L", following)

    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(f"{order}L", first)
        + directory(
            [(0x0100, 3, 1, 30), (0x010F, 2, len(make), at[id(make)]), (0x0112, 3, 1, 6), (0x8769, 4, 1, inner)], second
        )
        + directory([(0x927C, 7, len(MAKER), at[id(MAKER)]), (0xA002, 3, 1, 30), (0xA003, 4, 1, 20)], 0)
        + directory([(0x0201, 4, 1, at[id(small)]), (0x0202, 4, 1, len(small))], 0)
        + b"".join(parts)
    )


def exif_of(path: Path) -> tuple[Image.Exif, dict[int, object]]:
    with Image.open(path) as image:
        exif = image.getexif()
        # Read before the file is closed.
        exif.get_ifd(0x8825)
        return exif, dict(exif.get_ifd(0x8769))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("thumbnail_last", [True, False])
def test_exif_is_changed_where_it_lies(order: str, thumbnail_last: bool) -> None:
    before = camera_exif(order, thumbnail_last)
    after = true_exif(before, (60, 70_000))
    exif = Image.Exif()
    exif.load(after)
    assert (exif[0x0100], exif[0x010F], exif[0x0112]) == (70_000, "A maker", 1)
    inner = exif.get_ifd(0x8769)
    assert (inner[0x927C], inner[0xA002], inner[0xA003]) == (MAKER, 70_000, 60)
    assert not exif.get_ifd(1)
    assert b"small picture" not in after
    assert len(after) == len(before) - (17 if thumbnail_last else 0)
    # The maker's notes lie where they lay.
    assert after.index(MAKER) == before.index(MAKER)


@pytest.mark.parametrize("name", ["b.jpg", "b.png", "b.webp", "b.tif", "b.avif"])
@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.webp"])
def test_exif_goes_from_format_to_format(tmp_path: Path, source: str, name: str) -> None:
    if name == "b.avif" and not features.check("avif"):
        pytest.skip("needs AVIF in Pillow")
    Image.fromarray(RGB).save(tmp_path / source, exif=b"Exif\0\0" + camera_exif())
    picture = read_image(tmp_path / source)
    assert picture.size == (30, 20)
    assert write_image(tmp_path / name, Picture(LARGE, metadata=picture.metadata)) == ()
    exif, inner = exif_of(tmp_path / name)
    assert exif[0x010F] == "A maker"
    assert exif.get(0x0112, 1) == 1
    assert (inner[0x927C], inner[0xA002], inner[0xA003]) == (MAKER, 40, 60)
    assert not exif.get_ifd(1)
    assert b"small picture" not in (tmp_path / name).read_bytes()
    # Nothing is turned again.
    assert read_image(tmp_path / name).size == (60, 40)


def test_exif_of_a_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A scanner", 6
    exif[0x8769], exif[0x8825] = {0x9003: "2026:11:28 12:00:00"}, {1: "N"}
    Image.fromarray(RGB).save(tmp_path / "a.tif", exif=exif.tobytes())
    picture = read_image(tmp_path / "a.tif")
    assert picture.size == (30, 20)
    for name in ("b.jpg", "b.tif"):
        write_image(tmp_path / name, Picture(LARGE, metadata=picture.metadata))
        found, inner = exif_of(tmp_path / name)
        assert found[0x010F] == "A scanner"
        assert found.get(0x0112, 1) == 1
        assert inner[0x9003] == "2026:11:28 12:00:00"
        assert found.get_ifd(0x8825)[1] == "N"
        np.testing.assert_array_equal(read_image(tmp_path / name).size, (60, 40))


def test_exif_in_the_texts_of_a_png(tmp_path: Path) -> None:
    """As ImageMagick wrote it before PNG had a chunk for it."""
    data = (b"Exif\0\0" + camera_exif()).hex()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data) // 2:8d}\n{data}\n")
    info.add_text("Author", "somebody")
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    picture = read_image(tmp_path / "a.png")
    assert picture.size == (30, 20)
    assert picture.metadata.exif == camera_exif()
    assert picture.metadata.texts == (("Author", "somebody"),)


@pytest.mark.parametrize("junk", [b"II*\0\xff\xff\xff\xff", b"garbage", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9])
def test_damaged_exif_is_left_out_with_a_sentence(tmp_path: Path, junk: bytes) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + junk)
    picture = read_image(tmp_path / "a.jpg")
    assert picture.metadata.exif is None
    assert picture.notes == ("its EXIF data is damaged and was left out",)


def test_xmp_is_made_true() -> None:
    assert true_xmp(XMP, (60, 40)) == TRUE_XMP


@pytest.mark.parametrize("name", ["b.jpg", "b.png", "b.webp", "b.tif", "b.avif"])
@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_xmp_goes_from_format_to_format(tmp_path: Path, source: str, name: str) -> None:
    if name == "b.avif" and not features.check("avif"):
        pytest.skip("needs AVIF in Pillow")
    write_image(tmp_path / source, Picture(RGB, metadata=Metadata(xmp=XMP)))
    with Image.open(tmp_path / source) as image:
        assert b"Orientation" in image.info["xmp"]
    picture = read_image(tmp_path / source)
    assert write_image(tmp_path / name, Picture(LARGE, metadata=picture.metadata)) == ()
    assert read_image(tmp_path / name).metadata.xmp == TRUE_XMP


def test_an_orientation_that_xmp_alone_tells(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    picture = read_image(tmp_path / "a.png")
    assert picture.size == (30, 20)
    write_image(tmp_path / "b.png", picture)
    assert read_image(tmp_path / "b.png").size == (30, 20)


def test_texts(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a title")
    info.add_text("Comment", "a comment", zip=True)
    info.add_itxt("Ort", "Köln ☀", "de", "Ort")
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    picture = read_image(tmp_path / "a.png")
    assert dict(picture.metadata.texts) == {"Title": "a title", "Comment": "a comment", "Ort": "Köln ☀"}
    assert write_image(tmp_path / "b.png", picture) == ()
    assert read_image(tmp_path / "b.png").metadata == picture.metadata
    (lost,) = write_image(tmp_path / "b.jpg", picture)
    assert lost == f"{tmp_path / 'b.jpg'}: JPEG cannot hold the picture's texts"
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.info["comment"] == b"a comment"
    assert read_image(tmp_path / "b.jpg").metadata.texts == (("Comment", "a comment"),)


def test_what_a_format_cannot_hold_is_lost_with_one_sentence(tmp_path: Path) -> None:
    metadata = Metadata(camera_exif(), XMP, (("Title", "a title"),))
    picture = Picture(RGB, metadata=metadata, dpi=(300, 300))
    assert write_image(tmp_path / "a.bmp", picture) == (
        f"{tmp_path / 'a.bmp'}: BMP cannot hold the picture's EXIF data, XMP data and texts",
    )
    (lost,) = write_image(tmp_path / "a.ppm", picture)
    assert lost.endswith("EXIF data, XMP data, texts and dots per inch")
    (lost,) = write_image(tmp_path / "a.webp", Picture(RGB, dpi=(300, 300)))
    assert lost.endswith("WebP cannot hold the picture's dots per inch")
    huge = Metadata(xmp=b"<x>" + bytes(70_000) + b"</x>")
    (lost,) = write_image(tmp_path / "a.jpg", Picture(RGB, metadata=huge))
    assert lost.endswith("JPEG cannot hold the picture's XMP data")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_stripping(tmp_path: Path, name: str) -> None:
    metadata = Metadata(camera_exif(), XMP, (("Comment", "a comment"),))
    picture = Picture(RGB, metadata=metadata, dpi=(300, 300))
    assert write_image(tmp_path / name, picture, WriteOptions(strip_metadata=True)) == ()
    back = read_image(tmp_path / name)
    assert (back.metadata, back.dpi) == (Metadata(), None)
    data = (tmp_path / name).read_bytes()
    assert b"A maker" not in data
    assert b"comment" not in data


@pytest.mark.parametrize("name", ["a.tif", "a.bmp", "a.png", "a.jpg"])
def test_dots_per_inch(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, Picture(RGB, dpi=(300, 150)))
    assert read_image(tmp_path / name).dpi == pytest.approx((300, 150), abs=0.6)
