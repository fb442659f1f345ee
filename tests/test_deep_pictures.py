"""Pictures of 16 bits: every level is read, kept and written, and another library reads the same."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from test_images import png

from ppexport.errors import ImageError
from ppexport.imaging.deep import png_chunks
from ppexport.imaging.enlarging import enlarge
from ppexport.imaging.images import Metadata, Picture, WriteOptions, output_depth, read_image, write_image

rng = np.random.default_rng(16)
LEVELS = rng.integers(0, 65536, (13, 19, 4), dtype=np.uint16)
LEVELS[:2, :3, 3] = 0
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def tiff(path: Path, levels: np.ndarray, order: str = "<", **options: int) -> Path:
    """A TIFF of 16 bits made by hand: one strip, or tiles, as Deflate or not, with differences or not."""
    height, width, channels = levels.shape
    compression, predictor, tile = (options.get(key, 0) for key in ("compression", "predictor", "tile"))
    planar, bits, extra = options.get("planar", 1), options.get("bits", 16), options.get("extra", 2)
    parts = [levels]
    if tile:
        padded = np.pad(levels, ((0, -height % tile), (0, -width % tile), (0, 0)))
        parts = [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
    data = []
    for part in parts:
        values = part.copy()
        if predictor:
            values[:, 1:] -= part[:, :-1]
        raw = values.astype(f"{order}u2").tobytes()
        data.append(zlib.compress(raw) if compression else raw)
    offsets = np.cumsum([8, *map(len, data)]).tolist()
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("L", [width]), 257: ("L", [height]), 258: ("H", [bits] * channels), 259: ("H", [8 if compression else 1]),
        262: ("H", [options.get("photometric", 2 if channels > 2 else 1)]), 277: ("H", [channels]),
        284: ("H", [planar]),
        274: ("H", [options.get("orientation", 1)]), 339: ("H", [options.get("sign", 1)] * channels),
    }  # fmt: skip
    if predictor:
        tags[317] = ("H", [2])
    if channels in (2, 4) and options.get("photometric") != 5:
        tags[338] = ("H", [extra])
    places, lengths = (324, 325) if tile else (273, 279)
    tags |= {places: ("L", offsets[:-1]), lengths: ("L", list(map(len, data)))}
    tags |= {322: ("L", [tile]), 323: ("L", [tile])} if tile else {278: ("L", [height])}
    body, at = b"".join(data), offsets[-1]
    entries, after = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            place = at + 2 + 12 * len(tags) + 4 + len(after)
            after, packed = after + packed, struct.pack(f"{order}L", place)
        entries += struct.pack(f"{order}HHL", tag, 3 if kind == "H" else 4, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", at)
    path.write_bytes(head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + after)
    return path


def unit(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.float32) / np.float32(65535)


# Reading


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_level_of_a_png_is_read(tmp_path: Path, channels: int) -> None:
    levels = LEVELS[..., [[3], [0, 3], [0, 1, 2], [0, 1, 2, 3]][channels - 1]]
    rows = [row.astype(">u2").tobytes() for row in levels]
    picture = read_image(png(tmp_path / "a.png", 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows))
    assert (picture.depth, picture.grey, picture.rgb.dtype) == (16, channels < 3, np.float32)
    colours = levels[..., :-1] if channels in (2, 4) else levels
    np.testing.assert_array_equal(picture.rgb, np.broadcast_to(unit(colours), (13, 19, 3)))
    assert (picture.alpha is None) == (channels in (1, 3))
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, unit(levels[..., -1]))
        assert picture.transparent


def test_a_png_with_one_transparent_colour_of_16_bits(tmp_path: Path) -> None:
    key = LEVELS[5, 5, :3]
    near = key.copy()
    near[2] ^= 1
    pixels = np.stack([key, near]).astype(">u2")
    chunk = (b"tRNS", key.astype(">u2").tobytes())
    picture = read_image(png(tmp_path / "a.png", 16, 2, [pixels.tobytes()], chunk))
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[0, 1]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": 1}, {"compression": 1, "predictor": 1}, {"tile": 16}, {"tile": 16, "compression": 1}],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_level_of_a_tiff_is_read(tmp_path: Path, order: str, options: dict[str, int], channels: int) -> None:
    levels = LEVELS[..., :channels]
    picture = read_image(tiff(tmp_path / "a.tif", levels, order, **options))
    assert (picture.depth, picture.grey) == (16, channels == 1)
    np.testing.assert_array_equal(picture.rgb, np.broadcast_to(unit(levels[..., :3]), (13, 19, 3)))
    if channels == 4:
        np.testing.assert_array_equal(picture.alpha, unit(levels[..., 3]))


def test_a_tiff_whose_scale_begins_with_white(tmp_path: Path) -> None:
    picture = read_image(tiff(tmp_path / "a.tif", LEVELS[..., :1], photometric=0))
    np.testing.assert_allclose(picture.rgb[..., :1], 1 - unit(LEVELS[..., :1]), atol=1e-7)


def test_premultiplied_colours_become_straight(tmp_path: Path) -> None:
    alpha = np.maximum(LEVELS[..., 3:], 9)
    straight = LEVELS[..., :3]
    multiplied = (straight.astype(np.float64) * alpha / 65535).round().astype(np.uint16)
    picture = read_image(tiff(tmp_path / "a.tif", np.concatenate([multiplied, alpha], axis=2), extra=1))
    visible = alpha[..., 0] > 6000
    np.testing.assert_allclose(picture.rgb[visible], unit(straight)[visible], atol=1e-4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_tiff(tmp_path: Path, order: str, orientation: int) -> None:
    picture = read_image(tiff(tmp_path / "a.tif", LEVELS, order, orientation=orientation))
    np.testing.assert_array_equal(picture.rgb, unit(np.rot90(LEVELS, 2 if orientation == 3 else -1)[..., :3]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planar": 2}, "16 bits and its colours in planes of their own, which is not read"),
        ({"sign": 2}, "signed or floating|pixels of a kind that is not read"),
    ],
)
def test_a_tiff_that_is_not_read_in_full_is_not_read(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(tiff(tmp_path / "a.tif", LEVELS[..., :3], **options))


def test_a_tiff_that_claims_huge_tiles(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", LEVELS[..., :3], tile=16)
    data = path.read_bytes()
    small, large = (struct.pack("<HHLL", 322, 4, 1, side) for side in (16, 1 << 16))
    assert small in data
    path.write_bytes(
        data.replace(small, large).replace(
            struct.pack("<HHLL", 323, 4, 1, 16), struct.pack("<HHLL", 323, 4, 1, 1 << 15)
        )
    )
    with pytest.raises(ImageError, match="tiles have 65536x32768 pixels"):
        read_image(path)


def test_inks_of_16_bits_are_read_with_8_and_a_sentence(tmp_path: Path) -> None:
    picture = read_image(tiff(tmp_path / "a.tif", LEVELS, photometric=5))
    assert (picture.depth, picture.rgb.dtype) == (8, np.uint8)
    assert picture.notes[0] == "its 16 bits for each sample are read as 8, since Pillow gives no more of TIFF"


@pytest.mark.skipif(not features.check("avif"), reason="needs AVIF in Pillow")
def test_an_avif_of_10_bits_is_read_with_8_and_a_sentence(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from ppexport.imaging.background import usual_priority

    with av.open(str(tmp_path / "a.avif"), "w") as container:
        stream = container.add_stream("libsvtav1", rate=1, options={"preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60, np.uint8), format="rgb24")
        with usual_priority():
            container.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        container.mux(stream.encode(None))
    picture = read_image(tmp_path / "a.avif")
    assert (picture.size, picture.rgb.dtype) == ((48, 64), np.uint8)
    assert picture.notes == ("its 10 bits for each sample are read as 8, since Pillow gives no more of AVIF",)


@pytest.mark.parametrize("highest", [65535, 1023])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_netpbm_of_16_bits(tmp_path: Path, highest: int, channels: int) -> None:
    levels = LEVELS[..., :channels] & highest
    head = b"P%d # a comment\n19 13\n%d\n" % (5 if channels == 1 else 6, highest)
    (tmp_path / "a.ppm").write_bytes(head + levels.astype(">u2").tobytes())
    picture = read_image(tmp_path / "a.ppm")
    expected = levels.astype(np.float32) / np.float32(highest)
    np.testing.assert_array_equal(picture.rgb, np.broadcast_to(expected, (13, 19, 3)))
    (tmp_path / "a.ppm").write_bytes(head + levels.astype(">u2").tobytes()[:-1])
    with pytest.raises(ImageError, match="is truncated"):
        read_image(tmp_path / "a.ppm")


# Writing


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm"])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_16_bits_come_back_as_they_were(tmp_path: Path, name: str, grey: bool, alpha: bool) -> None:
    if alpha and name == "a.ppm":
        pytest.skip("no transparency")
    rgb = LEVELS[..., :1].repeat(3, axis=2) if grey else LEVELS[..., :3]
    write_image(tmp_path / name, Picture(rgb, LEVELS[..., 3] if alpha else None, grey, depth=16))
    back = read_image(tmp_path / name)
    # Pillow reads no TIFF of 16-bit grey with alpha, so none is written.
    assert (back.depth, back.grey) == (16, grey and not (alpha and name == "a.tif"))
    np.testing.assert_array_equal(back.rgb, unit(rgb))
    if alpha:
        np.testing.assert_array_equal(back.alpha, unit(LEVELS[..., 3]))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_another_library_reads_what_was_written(tmp_path: Path, name: str, channels: int) -> None:
    av = pytest.importorskip("av")
    # Blocks and strips of more than one: rows beyond the first block are differences to one above it.
    y, x = np.mgrid[:700, :300]
    smooth = np.dstack([x * 200, y * 90, (x + y) * 60, x * 100 + 5000]).astype(np.uint16)
    levels = smooth + rng.integers(0, 500, smooth.shape, dtype=np.uint16)
    rgb = levels[..., :3] if channels > 1 else levels[..., :1].repeat(3, axis=2)
    write_image(tmp_path / name, Picture(rgb, levels[..., 3] if channels == 4 else None, channels == 1, depth=16))
    with av.open(str(tmp_path / name)) as container:
        frame = next(container.decode(video=0))
    kinds = (
        {1: "gray16be", 3: "rgb48be", 4: "rgba64be"}
        if name == "a.png"
        else {1: "gray16le", 3: "rgb48le", 4: "rgba64le"}
    )
    assert frame.format.name == kinds[channels]
    plane = np.frombuffer(frame.planes[0], f"{'>' if name == 'a.png' else '<'}u2").reshape(700, -1)
    np.testing.assert_array_equal(plane[:, : 300 * channels].reshape(700, 300, channels), levels[..., :channels])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_what_belongs_to_a_deep_picture_is_written(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    metadata = Metadata(exif.tobytes()[6:], b"<x:xmpmeta/>", (("Title", "a title"), ("Ort", "Köln")))
    picture = Picture(LEVELS[..., :3], icc=SRGB, dpi=(300, 150), depth=16, metadata=metadata)
    lost = write_image(tmp_path / name, picture)
    back = read_image(tmp_path / name)
    assert back.icc == SRGB
    assert back.dpi == pytest.approx((300, 150), abs=0.1)
    assert back.metadata.xmp == metadata.xmp
    with Image.open(tmp_path / name) as image:
        assert image.getexif()[0x010F] == "a maker"
    if name == "a.png":
        assert (lost, back.metadata.texts) == ((), metadata.texts)
    else:
        assert lost == (f"{tmp_path / name}: TIFF cannot hold the picture's texts",)


def test_a_picture_that_lies_in_a_file_is_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.memmap(tmp_path / "levels", np.uint8, "w+", shape=(640, 480, 3))
    levels[:] = rng.integers(0, 256, levels.shape, dtype=np.uint8)
    monkeypatch.setattr("ppexport.imaging.writing.LARGE", 640 * 480 - 1)
    monkeypatch.setattr("ppexport.imaging.deep._BLOCK", 100_000)
    for name in ("a.png", "a.tif", "a.ppm"):
        write_image(tmp_path / name, Picture(levels))
        np.testing.assert_array_equal(read_image(tmp_path / name).rgb, levels)
    kinds = [kind for kind, _ in png_chunks((tmp_path / "a.png").read_bytes())]
    assert kinds.count(b"IDAT") > 5


def test_a_format_of_8_bits_says_what_it_loses(tmp_path: Path) -> None:
    picture = Picture(LEVELS[..., :3], depth=16)
    assert [output_depth(suffix, picture) for suffix in (".png", ".TIF", ".ppm", ".jpg", ".webp", ".bmp")] == [
        16, 16, 16, 8, 8, 8,
    ]  # fmt: skip
    (lost,) = write_image(tmp_path / "a.bmp", picture, WriteOptions())
    assert lost == f"{tmp_path / 'a.bmp'}: BMP cannot hold the picture's 16 bits, of which 8 are kept"
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp").rgb, (LEVELS[..., :3] / 257 + 0.5).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_from_end_to_end(tmp_path: Path, name: str) -> None:
    """The network gets float32 of 16 bits, and its result is rounded to 65,535 levels."""
    write_image(tmp_path / name, Picture(LEVELS[..., :3], LEVELS[..., 3], depth=16))
    seen = []

    def run(rgb: np.ndarray, depth: int) -> np.ndarray:
        seen.append((rgb.dtype, depth))
        return np.floor(rgb.repeat(2, 0).repeat(2, 1) * 65535 + 0.5).astype(np.uint16)

    large = enlarge(read_image(tmp_path / name), run, 2, depth=16)
    assert seen == [(np.float32, 16)] * 2
    write_image(tmp_path / "b.png", large)
    back = read_image(tmp_path / "b.png")
    visible = LEVELS[..., 3].repeat(2, 0).repeat(2, 1) > 0
    np.testing.assert_array_equal(back.rgb[visible], unit(LEVELS[..., :3].repeat(2, 0).repeat(2, 1))[visible])
    np.testing.assert_array_equal(back.alpha, unit(LEVELS[..., 3].repeat(2, 0).repeat(2, 1)))
