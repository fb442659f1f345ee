"""The page's JavaScript in a real browser: masks, tiles, PNG files and hashes are Python's, bit for bit."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import NAMES, exported_once, golden_arrays
from PIL import Image
from shared import FREE_IMAGES
from small_networks import SIZE, random_small_network
from web_pages import chromium, needs_runtime, served, small_page

import ppexport
from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
from ppexport.device import mask as host
from ppexport.device.artifact import read_artifact
from ppexport.device.capacities import smallest_capacity
from ppexport.device.centers import adaptive_centers
from ppexport.device.mask import Layout
from ppexport.device.picture import psnr, to_input
from ppexport.imaging.tiles import Blender, cut, plan_grid
from ppexport.imaging.upscaling import upscale_array

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


HELPERS = """
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const text = (array) => {
  const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let found = "";
  for (let i = 0; i < all.length; i += 8192) found += String.fromCharCode(...all.subarray(i, i + 8192));
  return btoa(found);
};
"""


def run(page, body, argument):
    """What the JavaScript *body* returns of `cases`, *argument* with its arrays as base64."""
    return page.evaluate(f"async (cases) => {{ {HELPERS} {body} }}", encoded(argument))


def encoded(value):
    if isinstance(value, np.ndarray):
        return base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    if isinstance(value, dict):
        return {name: encoded(item) for name, item in value.items()}
    return [encoded(item) for item in value] if isinstance(value, list) else value


def decoded(text, kind, shape=(-1,)):
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


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


# The engine and the worker, on pages of small networks, beside ONNX Runtime on this machine.

LEAST_DB = 100.0


def networks(kind, factory):
    """The page of one kind of network, without what computes on a GPU."""
    if kind == "graph":
        return small_page(factory, webgpu=False)
    if kind == "capacity set":
        return small_page(factory, size=(32, 48), webgpu=False, capacities=[128, 512, 1536], flavour="ort", layers=2)
    if kind == "adaptive centres":
        network = random_small_network("pp_atd_light")
        network.options = network.options.model_copy(update={"centres": "adaptive", "colors": 5})
        return exported_once(factory, network, backend="web", size=(32, 32), webgpu=False)
    arch = {"windows": "pp_swinir_light", "reflected": "pp_camixersr", "no routing": "swinir_light"}[kind]
    wish = {} if kind == "no routing" else {"capacities": [256, 512, 1024]}
    return exported_once(factory, random_small_network(arch), backend="web", size=(32, 32), webgpu=False, **wish)


KINDS = ("graph", "capacity set", "adaptive centres", "windows", "reflected", "no routing")


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """The page of every kind of network."""
    return networks(request.param, tmp_path_factory)


def photograph(height, width):
    """A detail with smooth and busy parts."""
    with Image.open(FREE_IMAGES / "astronaut.png") as image:
        return np.asarray(image.convert("RGB"))[100 : 100 + height, 200 : 200 + width]


def pictures(height, width):
    """Flat, noise and a photograph."""
    noise = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return [np.full((height, width, 3), 90, np.uint8), noise, photograph(height, width)]


ENGINE = """
const { openEngine } = await import("./engine.mjs");
const engine = await openEngine({ device: "wasm" }), found = [];
for (const lr of cases) {
  const prepared = engine.prepare(floats(lr)), { sr, impure, capacity } = await engine.run(prepared);
  found.push({ sr: text(sr), impure, capacity, pure: prepared.pure && text(prepared.pure) });
}
return { found, facts: engine.facts, memory: engine.memory };
"""
UPSCALE = """
const worker = new Worker("./worker.mjs", { type: "module" }), messages = [];
const end = await new Promise((resolve) => {
  worker.onerror = (event) => resolve({ type: "error", message: event.message });
  worker.onmessage = ({ data }) => {
    if (data.type === "opened") {
      const rgba = bytes(cases.rgba).buffer;
      worker.postMessage({ type: "upscale", id: 7, width: cases.width, height: cases.height, rgba }, [rgba]);
      if (cases.cancel) worker.postMessage({ type: "cancel", id: 7 });
    }
    messages.push(data.type === "strip" ? { ...data, rgba: text(new Uint8Array(data.rgba)) } : data);
    if (["done", "error", "cancelled"].includes(data.type)) resolve(data);
  };
  worker.postMessage({ type: "open", device: cases.device ?? "auto", threads: 0 });
});
worker.terminate();
if (end.png) end.png = text(new Uint8Array(await end.png.arrayBuffer()));
if (end.pure) end.pure.bits = text(end.pure.bits);
return messages.map((message) => (message.type === "opened" ? { ...message, manifest: null } : message));
"""


def on(browser, folder, body, argument, isolated=True):
    """What *body* returns in a new tab on the page *folder*."""
    with served(folder, isolated=isolated) as address:
        tab = browser.new_page()
        try:
            tab.goto(f"{address}sha256.mjs")
            return run(tab, body, argument)
        finally:
            tab.close()


@contextmanager
def another_browser(browser, flags):
    """A browser like *browser*, with other flags."""
    other = browser.browser_type.launch(executable_path=chromium(), chromium_sandbox=os.geteuid() != 0, args=flags)
    try:
        yield other
    finally:
        other.close()


def upscaled(browser, folder, rgb, **more):
    """The messages of the worker that upscales *rgb*."""
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    return on(browser, folder, UPSCALE, {"rgba": rgba, "height": len(rgb), "width": rgb.shape[1], **more})


@needs_runtime
def test_the_engine_computes_what_onnx_runtime_does(browser, made):
    artifact = read_artifact(made)
    inputs = [to_input(rgb) for rgb in pictures(*artifact.size)]
    found = on(browser, made, ENGINE, inputs)
    assert found["facts"]["device"] == "wasm"
    assert found["facts"]["ort"] == "1.30.0"
    assert found["memory"] > 1 << 20
    with OnnxRunner(artifact, threads=1) as runner:
        for lr, result in zip(inputs, found["found"], strict=True):
            prepared = runner.prepare(lr)
            expected = runner.run(prepared)
            assert (result["impure"], result["capacity"]) == (expected.impure_tokens, expected.capacity)
            if prepared.pure is not None:
                assert np.array_equal(decoded(result["pure"], np.bool_, prepared.pure.shape), prepared.pure)
            assert psnr(decoded(result["sr"], np.float32, expected.sr.shape), expected.sr, peak=1) >= LEAST_DB


@needs_runtime
@pytest.mark.parametrize("made", ["capacity set", "adaptive centres", "no routing"], indirect=True)
def test_the_worker_upscales_a_picture_of_several_tiles_as_python_does(browser, made):
    rgb, artifact = photograph(53, 71), read_artifact(made)
    messages = upscaled(browser, made, rgb)
    with OnnxRunner(artifact, threads=1) as runner:
        expected = upscale_array(runner, rgb)
    (opened, planned, *more, done) = messages
    tiles = [message for message in more if message["type"] == "tile"]
    assert [opened["type"], planned["type"], done["type"]] == ["opened", "planned", "done"]
    assert planned["tiles"] == len(tiles) == len(expected.report.tiles)
    for tile, run_here in zip(tiles, expected.report.tiles, strict=True):
        assert ((tile["y"], tile["x"]), tile["impure"], tile["capacity"]) == run_here[:3]
    content = base64.b64decode(done["png"])
    with Image.open(io.BytesIO(content)) as image:
        picture = np.asarray(image)
    # Levels that lie next to a half may be rounded either way.
    assert np.abs(picture.astype(int) - expected.rgb).max() <= 1
    assert (picture != expected.rgb).mean() < 1e-3
    strips = [decoded(m["rgba"], np.uint8, (m["rows"], m["width"], 4)) for m in more if m["type"] == "strip"]
    assert np.array_equal(np.concatenate(strips)[..., :3], picture)
    if artifact.manifest.mask == "none":
        assert done["pure"] is None
    else:
        pure = artifact.manifest.pure(rgb)
        assert np.array_equal(decoded(done["pure"]["bits"], np.bool_, rgb.shape[:2]), pure[:53, :71])
        assert done["pureShare"] == pytest.approx(pure.mean())


@needs_runtime
def test_a_picture_is_cancelled_between_two_tiles(browser, page_folder):
    messages = upscaled(browser, page_folder, photograph(64, 200), cancel=True)
    assert messages[-1] == {"type": "cancelled", "id": 7}


def changed(folder, target, **fields):
    """A copy of the page *folder* with other fields in its manifest."""
    # Of links: the runtime's files are large.
    shutil.copytree(folder, target, copy_function=os.link)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").unlink()
    (target / "manifest.json").write_text(json.dumps({**manifest, **fields}))
    return target


@needs_runtime
def test_whatever_is_wrong_is_said_in_a_sentence(browser, page_folder, tmp_path):
    manifest = json.loads((page_folder / "manifest.json").read_text())
    other_hash = {**manifest["files"], "model.onnx": "0" * 64}
    broken = changed(page_folder, tmp_path / "missing")
    (broken / "model.onnx").unlink()
    none = changed(page_folder, tmp_path / "none")
    (none / "manifest.json").write_text("<html>")
    no_gpu = {name: digest for name, digest in manifest["files"].items() if "webgpu" not in name}
    cases = {
        "cannot be loaded: the server says 404": (broken, "wasm"),
        "manifest.json is not JSON": (none, "auto"),
        "not that of a page of this version": (changed(page_folder, tmp_path / "old", version=4), "auto"),
        "model.onnx is not the file that manifest.json names": (
            changed(page_folder, tmp_path / "hash", files=other_hash), "wasm",
        ),
        "but manifest.json says": (changed(page_folder, tmp_path / "scale", scale=3), "wasm"),
        "WebGPU is not available: the browser finds no adapter": (page_folder, "webgpu"),
        "WebGPU is not available: the page was built without it": (
            changed(page_folder, tmp_path / "wasm", files=no_gpu), "webgpu",
        ),
    }  # fmt: skip
    for sentence, (folder, device) in cases.items():
        (message,) = upscaled(browser, folder, photograph(8, 8), device=device)
        assert message["type"] == "error"
        assert sentence in message["message"]


@needs_runtime
def test_a_picture_that_is_not_finite_is_an_error_with_a_way_out(browser, page_folder, tmp_path):
    model = onnx.load(page_folder / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv_first.weight"))
    weight.raw_data = np.full(onnx.numpy_helper.to_array(weight).shape, np.nan, np.float32).tobytes()
    content = model.SerializeToString()
    files = json.loads((page_folder / "manifest.json").read_text())["files"]
    digest = hashlib.sha256(content).hexdigest()
    folder = changed(page_folder, tmp_path / "nan", files={**files, "model.onnx": digest})
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(content)
    end = upscaled(browser, folder, photograph(16, 16))[-1]
    assert end["message"] == (
        "The model returned NaN or infinite values: the weights are damaged or too large for fp32"
    )


@pytest.mark.slow
@needs_runtime
def test_webgpu_on_a_fallback_adapter_is_named_and_computes_the_same(browser, tmp_path_factory):
    folder = small_page(tmp_path_factory, size=SIZE)
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    artifact, found = read_artifact(folder), {}
    lr = to_input(photograph(*SIZE))
    with another_browser(browser, flags) as software:
        for device in ("webgpu", "auto"):
            body = ENGINE.replace('"wasm"', json.dumps(device))
            found[device] = on(software, folder, body, [lr])
    # What computes on the CPU anyway is not chosen for its name.
    assert (found["webgpu"]["facts"]["device"], found["auto"]["facts"]["device"]) == ("webgpu", "wasm")
    assert found["webgpu"]["facts"]["adapter"]["fallback"]
    with OnnxRunner(artifact, threads=1) as runner:
        expected = runner(lr).sr
    for result in found.values():
        assert psnr(decoded(result["found"][0]["sr"], np.float32, expected.shape), expected, peak=1) >= LEAST_DB


@needs_runtime
def test_a_page_that_is_not_isolated_has_one_thread_and_says_so(browser, page_folder):
    found = on(browser, page_folder, ENGINE, [], isolated=False)
    assert found["facts"]["threads"] == 1
    assert not found["facts"]["isolated"]
    assert any(note.startswith("one thread") for note in found["facts"]["notes"])
