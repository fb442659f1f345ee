"""The page's JavaScript in a real browser: masks, tiles, PNG files and hashes are Python's, bit for bit."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import NAMES, golden_arrays
from PIL import Image
from web_javascript import decoded, run
from web_pages import served

import ppexport
from ppexport.device import mask as host
from ppexport.device.capacities import smallest_capacity
from ppexport.device.centers import adaptive_centers
from ppexport.device.mask import Layout
from ppexport.device.picture import to_input
from ppexport.imaging.tiles import Blender, cut, plan_grid

pytest_plugins = ["web_fixtures"]
PAGE = Path(ppexport.__file__).parent / "backends" / "web" / "page"


@pytest.fixture(scope="module")
def page(browser):
    """A tab on the folder of the page's modules."""
    with served(PAGE) as address:
        tab = browser.new_page()
        tab.goto(f"{address}sha256.mjs")
        yield tab
        tab.close()


# The paddings and grids of PP-ATD-light, of PP-SwinIR-light and of PP-CAMixerSR.
LAYOUTS = (Layout(), Layout(8, "reflect", 64, (0, 4)), Layout(16, "reflect", 256, (0,)))


def blocks(generator, height, width, side):
    """A picture of flat squares, with noise of one level here and there: some windows are pure and some are not."""
    small = generator.integers(0, 256, (-(-height // side), -(-width // side), 3))
    picture = small.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    noisy = generator.random((height, width, 1)) < 0.02
    return np.clip(picture + noisy * generator.integers(-90, 91, (height, width, 3)), 0, 255).astype(np.uint8)


def mask_cases():
    """Pictures of all kinds, with the options and layouts of the networks in turns."""
    generator = np.random.default_rng(20)
    pictures = [
        np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2).reshape(16, 16, 3),  # all exact greys
        *(np.full((17, 9, 3), level, np.uint8) for level in (0, 127, 255)),
        generator.integers(0, 256, (33, 47, 3), dtype=np.uint8),
        generator.integers(0, 256, (13, 16, 3), dtype=np.uint8),
        *(blocks(generator, h, w, side) for h, w in ((40, 64), (65, 31), (48, 48)) for side in (3, 8, 16, 29)),
    ]
    cases = []
    for number, rgb in enumerate(pictures * 3):
        layout = LAYOUTS[number % 3]
        windows = [window for window in host.WINDOWS if layout.multiple % window == 0]
        colors, window, share = (
            int(generator.integers(2, 17)),
            int(generator.choice(windows)),
            (1.0, 0.9, 0.35)[number % 3],
        )
        options = {"colors": colors, "window": window, "csmf": bool(number % 2), "share": share}
        cases.append((rgb, layout, {**options, "centres": ("fixed", "adaptive")[number // 2 % 2]}, None))
    # Centres of another picture, equal ones among them.
    given = np.array([[0, 0, 0], [255, 255, 255], [120, 30, 7], [120, 30, 7], [255, 0, 255]], np.int32)
    cases.append((pictures[4], LAYOUTS[0], {"colors": 5, "window": 2, "csmf": True, "centres": "adaptive"}, given))
    return cases


def as_manifest(layout, options, **more):
    fields = {
        "multiple": layout.multiple,
        "padding": layout.padding,
        "group": layout.group,
        "grids": list(layout.grids),
    }
    return {**fields, "options": options, **more}


MASKS = """
const m = await import("/mask.mjs");
return cases.map(({ rgb, h, w, manifest, centres }) => {
  const { labels, height, width } = m.labels(bytes(rgb), h, w, manifest, centres);
  const pure = m.pureMask(labels, height, width, manifest.options.window, manifest.options.csmf);
  return { labels: text(labels), pure: text(pure), size: [height, width],
           routed: m.routed(pure, height, width, manifest) };
});
"""


def in_browser(page, cases):
    """(labels, pure, routed) of (rgb, layout, options, centres) each."""
    sent = [
        {"rgb": rgb, "h": rgb.shape[0], "w": rgb.shape[1], "manifest": as_manifest(layout, options),
         "centres": None if centres is None else centres.ravel().tolist()}
        for rgb, layout, options, centres in cases
    ]  # fmt: skip
    return [
        (decoded(found["labels"], np.uint8, found["size"]), decoded(found["pure"], np.bool_, found["size"]),
         found["routed"])
        for found in run(page, MASKS, sent)
    ]  # fmt: skip


def test_labels_masks_and_slots_are_those_of_python(page):
    cases = mask_cases()
    some = set()
    for (rgb, layout, options, centres), (labels, pure, routed) in zip(cases, in_browser(page, cases), strict=True):
        expected = host.pixel_labels(rgb, options["colors"], layout, options["centres"] if centres is None else centres)
        assert np.array_equal(labels, expected)
        assert np.array_equal(pure, host.mask_from_labels(expected, options["window"], options["csmf"]))
        assert routed == layout.routed(pure, options.get("share", 1.0))
        some.add(0 < pure.mean() < 1)
    assert some == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_masks_are_those_of_the_golden_files(page, name):
    golden, options = golden_arrays(name), {"colors": 8, "window": 8}
    names = [key[: -len(".lr")] for key in golden if key.endswith(".lr") and f"{key[:-3]}.labels" in golden]
    fields = [(True, "pure")] if "_v2_" in name else [(True, "pure"), (False, "pure_grid")]
    lr = {case: golden[f"{case}.lr"][0].transpose(1, 2, 0) for case in names}
    for csmf, field in fields:
        cases = [
            (host.levels(np.ascontiguousarray(lr[case])), Layout(), {**options, "csmf": csmf}, None) for case in names
        ]
        for case, (labels, pure, _) in zip(names, in_browser(page, cases), strict=True):
            assert np.array_equal(labels, golden[f"{case}.labels"][0])
            assert np.array_equal(pure, golden[f"{case}.{field}"][0])
    assert names


def test_levels_of_floats_between_levels_and_beyond_them_are_those_of_python(page):
    halves = (np.arange(256, dtype=np.float32) + np.float32(0.5)) / np.float32(255)
    values = np.concatenate(
        [halves, np.nextafter(halves, np.float32(0)), np.nextafter(halves, np.float32(2)),
         np.random.default_rng(3).uniform(-0.2, 1.2, 20000).astype(np.float32),
         np.array([-0.0, 0, 1, np.finfo(np.float32).tiny, 1.9, -0.4], np.float32)]
    )  # fmt: skip
    found = run(page, 'return text((await import("/mask.mjs")).levels(floats(cases)))', values)
    expected = host.levels(np.repeat(values[None, :, None], 3, axis=2))[0, :, 0]
    assert np.array_equal(decoded(found, np.uint8), expected)


def test_centres_and_capacities_are_those_of_python(page):
    generator = np.random.default_rng(7)
    pictures = [blocks(generator, 40, 50, side) for side in (1, 4, 20, 60)] + [np.full((5, 5, 3), 9, np.uint8)]
    body = """
    const m = await import("/mask.mjs");
    return [cases.pictures.map((rgb) => [2, 5, 8, 16].map((k) => [...m.adaptiveCentres(bytes(rgb), k)])),
            [...Array(15).keys()].map((k) => [...m.colourCentres(k + 2)]),
            [0, 1, 128, 129, 4096, 9999].map((impure) => m.smallestCapacity([128, 512, 4096], impure))];
    """
    adaptive, fixed, capacities = run(page, body, {"pictures": pictures})
    for rgb, found in zip(pictures, adaptive, strict=True):
        assert found == [adaptive_centers(rgb, k).ravel().tolist() for k in (2, 5, 8, 16)]
    assert fixed == [host.color_centers(k).ravel().tolist() for k in range(2, 17)]
    assert capacities == [smallest_capacity((128, 512, 4096), impure) for impure in (0, 1, 128, 129, 4096, 9999)]


def test_a_picture_too_small_to_reflect_is_refused_in_a_sentence(page):
    layout = Layout(16, "reflect", 0)
    body = """
    const { labels } = await import("/mask.mjs");
    try { labels(new Uint8Array(48 * 4), 4, 16, cases); } catch (error) { return error.message; }
    """
    manifest = as_manifest(layout, {"colors": 8, "window": 8, "csmf": True})
    assert run(page, body, manifest) == (
        "a side of 4 pixels is padded to 16 by reflection, which needs more than half as many: use 9 pixels or more"
    )


TILES = """
const t = await import("/tiles.mjs");
return cases.map(({ rgb, size, tile, scale, srs }) => {
  const picture = bytes(rgb), grid = t.planGrid(size, tile), blender = new t.Blender(grid, scale);
  const origins = grid.rows.flatMap((y) => grid.columns.map((x) => [y, x]));
  const strips = srs.map((sr) => blender.add(floats(sr))).filter((strip) => strip);
  return { origins, cuts: origins.map((origin) => text(t.cut(picture, size, origin, tile))),
           strips: strips.map(({ y, rows, width, rgba }) => ({ y, rows, width, rgba: text(rgba) })) };
});
"""


def test_tiles_and_their_blending_are_those_of_python(page):
    generator = np.random.default_rng(1)
    kinds = (((33, 90), (32, 48), 2), ((5, 7), (32, 32), 3), ((64, 24), (24, 24), 1), ((100, 41), (48, 40), 2))
    cases = []
    for size, tile, scale in kinds:
        grid = plan_grid(size, tile)
        srs = [generator.uniform(-0.1, 1.1, (3, tile[0] * scale, tile[1] * scale)).astype(np.float32) for _ in grid]
        rgb = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        cases.append({"rgb": rgb, "size": list(size), "tile": list(tile), "scale": scale, "srs": srs})
    for (size, tile, scale), case, found in zip(kinds, cases, run(page, TILES, cases), strict=True):
        grid, expected = plan_grid(size, tile), Blender(plan_grid(size, tile), scale)
        assert [tuple(origin) for origin in found["origins"]] == list(grid)
        for origin, piece in zip(grid, found["cuts"], strict=True):
            assert np.array_equal(decoded(piece, np.float32, (1, 3, *tile)), to_input(cut(case["rgb"], origin, tile)))
        for sr in case["srs"]:
            expected.add(sr)
        rows = 0
        for strip in found["strips"]:
            assert strip["y"] == rows
            rgba = decoded(strip["rgba"], np.uint8, (strip["rows"], strip["width"], 4))
            wanted = expected.picture()[rows : rows + len(rgba)]
            assert (rgba[..., 3] == 255).all()
            # The sine of two libraries may differ in its last bit.
            assert np.abs(rgba[..., :3].astype(int) - wanted).max() <= 1
            assert (rgba[..., :3] == wanted).mean() > 0.9999
            rows += len(rgba)
        assert rows == size[0] * scale


def test_a_picture_that_needs_several_tiles_that_cannot_overlap_is_refused(page):
    body = 'try { (await import("/tiles.mjs")).planGrid([40, 16], cases) } catch (error) { return error.message }'
    assert "export the page with a larger --size" in run(page, body, [16, 16])


def test_hashes_are_those_of_python(page):
    generator = np.random.default_rng(0)
    contents = [generator.integers(0, 256, n, dtype=np.uint8) for n in (0, 1, 55, 56, 63, 64, 65, 119, 120, 100_003)]
    body = 'const { sha256 } = await import("/sha256.mjs"); return cases.map((content) => sha256(bytes(content)));'
    assert run(page, body, contents) == [hashlib.sha256(content.tobytes()).hexdigest() for content in contents]


PNG = """
const { PngWriter } = await import("/png.mjs");
return Promise.all(cases.map(async ({ width, height, strips }) => {
  const png = new PngWriter(width, height);
  for (const strip of strips) await png.write(bytes(strip));
  return text(new Uint8Array(await (await png.finish()).arrayBuffer()));
}));
"""


def chunks_of(content):
    """(kind, body) of a PNG file, every length and checksum right."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert int.from_bytes(content[at + 8 + length : at + 12 + length], "big") == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


def test_png_files_hold_the_rows(page):
    generator = np.random.default_rng(5)
    pictures = [generator.integers(0, 256, (h, w, 4), dtype=np.uint8) for h, w in ((1, 1), (7, 3), (400, 500))]
    pictures.append(blocks(generator, 90, 70, 8)[..., [0, 1, 2, 2]])
    cases = [
        {"width": p.shape[1], "height": len(p), "strips": [p[y : y + 64] for y in range(0, len(p), 64)]}
        for p in pictures
    ]
    for picture, found in zip(pictures, run(page, PNG, cases), strict=True):
        content = base64.b64decode(found)
        kinds = [kind for kind, _ in chunks_of(content)]
        assert kinds[0] == b"IHDR"
        assert kinds[-1] == b"IEND"
        assert set(kinds[1:-1]) == {b"IDAT"}
        # A large picture is never held as a whole.
        assert len(kinds) > 3 or picture.size < 1 << 18
        with Image.open(io.BytesIO(content)) as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), picture[..., :3])


def test_a_lack_of_memory_is_said_in_words_for_people(page):
    body = """
    const { explained } = await import("/engine.mjs");
    const errors = [new RangeError("Array buffer allocation failed"), 12345678, new Error("std::bad_alloc"),
                    new Error("Aborted(OOM)"), new Error("there is no room in the zoo\\nat x.mjs")];
    return errors.map(explained);
    """
    *memory, other = run(page, body, None)
    assert all("no more memory: close other tabs" in text for text in memory)
    assert other == "there is no room in the zoo"
