"""The page that people see, in headless Chromium: from choosing a picture to downloading the result."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageOps
from web_pages import chromium, needs_runtime, served

from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
from ppexport.device.artifact import read_artifact
from ppexport.files import sha256_file
from ppexport.imaging.images import read_levels
from ppexport.imaging.upscaling import upscale_array

pytest_plugins = ["web_fixtures"]
pytestmark = needs_runtime

SVG_WITH_HTML = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><foreignObject width="9" height="9"/></svg>'
)
READY = "#engine[data-kind=ready]"
DONE = "#tools:not([hidden])"


class Page:
    """A tab with the page, and everything that it should not have done."""

    def __init__(self, tab, origin):
        self.tab, self.faults, self.loads = tab, [], 0
        tab.on("console", self._hear)
        tab.on("pageerror", lambda error: self.faults.append(str(error)))
        tab.on("load", self._count)
        tab.on("request", lambda r: r.url.startswith((origin, "blob:" + origin, "data:")) or self.faults.append(r.url))

    def _hear(self, message):
        # Chromium says that itself where a page asks for WebGPU.
        if message.type in ("error", "warning") and message.text != "No available adapters.":
            self.faults.append(message.text)

    def _count(self, _):
        self.loads += 1

    def open(self, address):
        """Wait until the network is ready."""
        self.tab.goto(address)
        self.tab.wait_for_selector(READY)

    def enlarge(self, path):
        """Choose a small picture and wait for its result, (H, W, 3)."""
        self.tab.set_input_files("#file", path)
        return self.result()

    def result(self):
        """The downloaded result, (H, W, 3)."""
        self.tab.wait_for_selector(DONE)
        with self.tab.expect_download() as download:
            self.tab.click("#download")
        self.name = download.value.suggested_filename
        with Image.open(download.value.path()) as image:
            assert image.format == "PNG"
            assert image.mode == "RGB"
            return np.asarray(image)

    def text(self, selector):
        return self.tab.inner_text(selector)

    def canvas(self):
        """What the viewer shows, (H, W, 3)."""
        self.tab.wait_for_timeout(100)
        with Image.open(io.BytesIO(self.tab.locator("#viewer").screenshot())) as image:
            return np.asarray(image.convert("RGB")).astype(int)


@contextmanager
def opened(browser, address, **settings):
    context = browser.new_context(**settings)
    page = Page(context.new_page(), address)
    try:
        yield page
        assert page.faults == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def address(page_folder):
    with served(page_folder) as address:
        yield address


@pytest.fixture(scope="module")
def the_page(browser, address):
    """One page for all tests that leave it where a picture is chosen."""
    with opened(browser, address, viewport={"width": 320, "height": 640}, has_touch=True) as page:
        page.open(address)
        yield page


@pytest.fixture
def page(the_page):
    the_page.tab.evaluate("document.getElementById('again').click()")
    yield the_page
    assert the_page.faults == []
    # Not on any phone, in any state that a test has led to, is the page wider than the screen.
    assert the_page.tab.evaluate("document.documentElement.scrollWidth") == 320


@pytest.fixture(scope="module")
def by_python(page_folder):
    """What Python makes of (H, W, 3) levels with the page's very model."""
    with OnnxRunner(read_artifact(page_folder)) as runner:
        yield lambda rgb: upscale_array(runner, rgb).rgb


@pytest.fixture(scope="module")
def photo(tmp_path_factory, page_folder):
    """A photograph of 44x30 pixels: two tiles."""
    path = tmp_path_factory.mktemp("photo") / "a photo.of me.png"
    with Image.open(page_folder / "chelsea.png") as image:
        image.crop((60, 20, 104, 50)).save(path)
    return path


def same(found, wanted):
    """Whether two results are equal but for rounding: numbers that differ by 1e-7 may lie on both sides of a half."""
    different = np.abs(found.astype(int) - wanted)
    return found.shape == wanted.shape and different.max() <= 1 and (different > 0).mean() < 1e-4


def test_a_chosen_picture_becomes_what_python_makes_of_it(page, photo, by_python):
    assert same(page.enlarge(photo), by_python(read_levels(photo)))
    assert page.name == "a photo.of me_x2.png"
    # A server of this device that gives threads itself leaves no copy of the page in the browser.
    assert page.tab.evaluate("caches.keys()") == []
    assert "88 × 60" in page.text("#status")
    figures = page.text("#figures")
    for text in ("pure pixels", "per tile", "per output megapixel", "1,024", "WebAssembly", "44 × 30 → 88 × 60"):
        assert text in figures


def test_of_a_large_sample_a_part_is_chosen_with_the_keyboard(page, page_folder, by_python):
    # With tiles as small as this page's even a sample is large.
    page.tab.click("#samples button:has-text('Rocket')")
    page.tab.wait_for_selector("#choice:not([hidden])")
    rgb = read_levels(page_folder / "rocket.png")
    assert f"{rgb.shape[1]} × {rgb.shape[0]} pixels" in page.text("#choice-why")
    assert page.tab.evaluate("document.activeElement.id") == "choice-picture"
    for key in ("ArrowDown", *["ArrowUp"] * 2, "ArrowLeft"):
        page.tab.keyboard.press(key)
    page.tab.click("text=Enlarge it")
    found = page.result()
    height, width = found.shape[0] // 2, found.shape[1] // 2
    assert (height, width) == (80, 96)
    x, y, step = (rgb.shape[1] - width) // 2, (rgb.shape[0] - height) // 2, rgb.shape[1] / 50
    x, y = round(x - step), round(round(round(y + step) - step) - step)
    assert same(found, by_python(np.ascontiguousarray(rgb[y : y + height, x : x + width])))


def test_a_large_picture_is_made_smaller_only_by_choice_and_says_so(page, tmp_path):
    Image.new("RGB", (4500, 4000), (40, 90, 160)).save(tmp_path / "huge.png")
    page.tab.set_input_files("#file", tmp_path / "huge.png")
    page.tab.wait_for_selector("#choice:not([hidden])")
    assert "4,500 × 4,000 pixels" in page.text("#choice-why")
    assert "16,777,216" in page.text("#choice-why")
    assert page.tab.locator("#choices label").count() == 2
    # Not those of the picture before, which are still checked.
    page.tab.wait_for_selector("#choice", state="visible")
    page.tab.check("text=All of it, made smaller first")
    page.tab.click("text=Enlarge it")
    assert page.result().shape == (214, 240, 3)
    assert "made smaller first, from 4500 × 4000 pixels" in page.text("#notes")


@pytest.mark.parametrize("size", [(260, 3), (3, 260)])
def test_a_picture_of_an_odd_shape_is_seen_as_a_whole(page, tmp_path, size):
    Image.new("RGB", size, (250, 20, 20)).save(tmp_path / "odd.png")
    assert page.enlarge(tmp_path / "odd.png").shape == (2 * size[1], 2 * size[0], 3)
    shown = page.canvas()
    assert min(shown.shape[:2]) > 100
    # The picture reaches from edge to edge; the divider and its knob cover little of it.
    red = shown[..., 0] - shown[..., 1] > 60
    assert red.any(axis=int(size[1] > size[0])).mean() > 0.85


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, photo, by_python, event):
    send = """([content, event]) => {
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "given.png", { type: "image/png" }));
        const kinds = { drop: () => new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }),
                        paste: () => new ClipboardEvent("paste", { clipboardData: data, bubbles: true }) };
        document.getElementById("drop").dispatchEvent(kinds[event]());
    }"""
    page.tab.evaluate(send, [base64.b64encode(photo.read_bytes()).decode(), event])
    assert same(page.result(), by_python(read_levels(photo)))
    assert page.name == "given_x2.png"


@pytest.mark.parametrize("orientation", [3, 5, 6])
def test_a_photograph_is_turned_as_exif_says(page, tmp_path, orientation, by_python):
    half = np.zeros((24, 40, 3), np.uint8)
    half[:12, :, 0] = half[:, :16, 2] = 220
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(half).save(path, exif=exif, quality=100, subsampling=0)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    found, wanted = page.enlarge(path), by_python(np.ascontiguousarray(upright))
    # Decoders of JPEG may differ in a level.
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() < 12


def test_transparency_is_put_on_white_and_said(page, tmp_path, by_python):
    rgba = np.full((24, 40, 4), (10, 60, 200, 255), np.uint8)
    rgba[:, 20:] = 0
    rgba[:12, :10, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "logo.png")
    alpha = rgba[..., 3:].astype(float) / 255
    on_white = np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    found = page.enlarge(tmp_path / "logo.png")
    assert np.abs(found.astype(int) - by_python(on_white)).max() < 8
    assert "put on white" in page.text("#notes")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("words.png", b"no picture", "words.png is not a picture that this browser can read: choose a JPEG"),
        ("empty.jpg", b"", "empty.jpg is empty"),
        ("IMG_1.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "IMG_1.heic is a HEIC picture, which this browser"),
        ("short.png", b"\x89PNG\r\n\x1a\n\0\0", "short.png cannot be read: it is damaged"),
        ("words.svg", SVG_WITH_HTML, "This browser lets no page read words.svg"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_picture_is_refused_in_a_sentence(page, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    page.tab.set_input_files("#file", tmp_path / name)
    page.tab.wait_for_selector(f"#trouble:has-text('{sentence}')")
    assert page.tab.is_visible("#start")


def test_cancel_stops_after_a_tile_and_another_picture_can_follow(page, tmp_path, photo):
    Image.new("RGB", (1200, 1200)).save(tmp_path / "black.png")
    page.tab.set_input_files("#file", tmp_path / "black.png")
    # Not those of the picture before, which are still checked.
    page.tab.wait_for_selector("#choice", state="visible")
    page.tab.check("text=All of it, as it is")
    page.tab.click("text=Enlarge it")
    page.tab.wait_for_selector("#work-done:has-text(' of 5,476 tiles')")
    assert page.tab.evaluate("document.activeElement.id") == "cancel"
    # What comes meanwhile does not disturb it.
    page.tab.set_input_files("#file", photo)
    page.tab.wait_for_selector("#status:has-text('Cancel the picture')")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#status:has-text('Cancelled')")
    assert page.tab.is_visible("#start")
    assert page.enlarge(photo).shape == (60, 88, 3)


@pytest.mark.parametrize("readable", [True, False])
def test_a_picture_that_is_still_being_read_does_not_replace_one_that_is_being_enlarged(
    page, tmp_path, photo, readable
):
    Image.new("RGB", (1200, 1200)).save(tmp_path / "black.png")
    page.tab.set_input_files("#file", tmp_path / "black.png")
    # Not those of the picture before, which are still checked.
    page.tab.wait_for_selector("#choice", state="visible")
    page.tab.check("text=All of it, as it is")
    page.tab.evaluate(
        """() => {
            const read = HTMLImageElement.prototype.decode;
            const { promise: isRead, resolve: tell } = Promise.withResolvers();
            HTMLImageElement.prototype.decode = async function () {
                await new Promise((resolve) => { window.read = () => (resolve(), isRead); });
                HTMLImageElement.prototype.decode = read;
                return read.call(this).finally(tell);
            };
        }"""
    )
    (tmp_path / "words.png").write_bytes(b"no picture")
    page.tab.set_input_files("#file", photo if readable else tmp_path / "words.png")
    page.tab.click("text=Enlarge it")
    page.tab.wait_for_selector("#work-done:has-text(' of 5,476 tiles')")
    # Waited for in the page: Playwright's own way to wait for an expression is forbidden by the page's policy.
    page.tab.evaluate("() => window.read()")
    page.tab.wait_for_timeout(200)
    assert page.text("#status") == "Enlarging black.png."
    assert "of 5,476 tiles" in page.text("#work-done")
    page.tab.click("#cancel")
    page.tab.wait_for_selector("#status:has-text('Cancelled')")


def test_the_divider_and_the_zoom_work_by_keyboard_and_by_pointer(page, photo):
    page.tab.set_input_files("#file", photo)
    page.tab.wait_for_selector(DONE)
    split = page.tab.locator("#split")
    assert page.tab.evaluate("document.activeElement.id") == "split"
    page.tab.keyboard.press("ArrowRight")
    page.tab.wait_for_selector("#split[aria-valuetext='51 % enlarged by the browser, 49 % result']")
    page.tab.keyboard.press("Home")
    result = page.canvas()
    page.tab.keyboard.press("End")
    browser = page.canvas()
    # The network's picture is sharper than what the browser makes of the same pixels.
    sharpness = [np.abs(np.diff(shown[50:150, 60:160], axis=1)).mean() for shown in (result, browser)]
    assert sharpness[0] > sharpness[1]
    box = page.tab.locator("#canvas").bounding_box()
    page.tab.mouse.move(box["x"] + 20, box["y"] + 40)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + 60, steps=3)
    page.tab.mouse.up()
    assert 23 <= int(split.input_value()) <= 27

    fitting = int(page.text("#zoom").rstrip(" %"))
    page.tab.click("#one")
    page.tab.wait_for_selector("#zoom:has-text('100 %')")
    page.tab.focus("#viewer")
    for _ in range(4):
        page.tab.keyboard.press("+")
    page.tab.wait_for_selector("#viewer.pans")
    before = page.canvas()
    page.tab.keyboard.press("ArrowDown")
    assert np.abs(page.canvas() - before).mean() > 1
    page.tab.click("#fit")
    page.tab.wait_for_selector(f"#zoom:has-text('{fitting} %')")


def test_the_divider_the_zoom_and_the_picture_follow_fingers(page, photo):
    page.tab.set_input_files("#file", photo)
    page.tab.wait_for_selector(DONE)
    box = page.tab.locator("#canvas").bounding_box()
    session = page.tab.context.new_cdp_session(page.tab)

    def touch(*paths):
        """Fingers on the picture go from one end of *paths* to the other."""
        for kind, part in (("touchStart", 0), *(("touchMove", step / 5) for step in range(1, 6)), ("touchEnd", None)):
            points = [
                {"x": box["x"] + x + (to_x - x) * part, "y": box["y"] + y + (to_y - y) * part, "id": number}
                for number, ((x, y), (to_x, to_y)) in enumerate(paths if part is not None else ())
            ]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.tab.wait_for_timeout(100)

    # Downwards scrolls the page.
    touch(((60, 150), (60, 30)))
    assert page.tab.input_value("#split") == "50"
    page.tab.evaluate("scrollTo(0, 0)")
    touch(((60, 90), (150, 90)))
    assert 60 < int(page.tab.input_value("#split")) < 95
    fitting = int(page.text("#zoom").rstrip(" %"))
    touch(((130, 90), (60, 90)), ((160, 90), (230, 90)))
    assert int(page.text("#zoom").rstrip(" %")) > 2 * fitting
    before = page.canvas()
    touch(((90, 60), (40, 100)))
    assert np.abs(page.canvas() - before).mean() > 1
    assert page.tab.evaluate("visualViewport.scale") == 1


def test_the_mask_tints_the_pixels_that_python_finds_pure(page, page_folder, tmp_path):
    rgb = np.full((32, 40, 3), 130, np.uint8)
    rgb[:, :16] = np.random.default_rng(1).integers(0, 256, (32, 16, 3))
    Image.fromarray(rgb).save(tmp_path / "half.png")
    page.enlarge(tmp_path / "half.png")
    pure = read_artifact(page_folder).manifest.pure(rgb)
    plain = page.canvas()
    page.tab.click("#mask")
    assert page.tab.get_attribute("#mask", "aria-pressed") == "true"
    assert f"Green: {100 * pure.mean():.1f} % of the pixels are pure" in page.text("#legend")
    tinted = page.canvas()
    step = tinted.shape[1] / 40
    for y, x in ((3, 3), (20, 8), (3, 25), (28, 38)):
        pixel = int((y + 0.5) * step), int((x + 0.5) * step)
        assert (tinted[pixel][1] - tinted[pixel][0] > plain[pixel][1] - plain[pixel][0] + 40) == pure[y, x]
    page.tab.click("#mask")
    assert page.tab.is_hidden("#legend")
    assert np.array_equal(page.canvas(), plain)


def test_what_computes_and_how_long_it_takes_is_said_in_words(page):
    said = page.tab.evaluate(
        """async () => {
            const { bytes, deviceWords, duration, roughly } = await import("./figures.mjs");
            const adapter = { vendor: "google", architecture: "swiftshader", device: "", fallback: true };
            return [deviceWords({ device: "wasm", threads: 4, adapter }), deviceWords({ device: "webgpu", adapter }),
                    deviceWords({ device: "webgpu", adapter: { ...adapter, description: "A GPU", fallback: false } }),
                    ...[8.1249, 999.6, 59_960, 7_383_000].map(duration), ...[900, 47_000, 4e5, 8e6].map(roughly),
                    ...[512, 4_240_000, 312e6, 2e9].map(bytes)];
        }"""
    )
    assert said == [
        "WebAssembly, 4 threads",
        "WebGPU, google swiftshader (a fallback adapter: computed in software, slow)",
        "WebGPU, A GPU",
        *("8.12 ms", "1.00 s", "1 min 0 s", "2 h 3 min"),
        *("about 1 second", "about 45 seconds", "about 7 minutes", "about 2 hours"),
        *("512 bytes", "4.2 MB", "312 MB", "2.00 GB"),
    ]


@pytest.mark.parametrize("tile", [(32, 32), (64, 64), (512, 512), (720, 1280), (1024, 1024)])
@pytest.mark.parametrize("size", [(7000, 5000), (5000, 7000), (8000, 6000), (4000, 4000), (30_000, 2000)])
def test_nothing_is_offered_that_a_canvas_does_not_hold(page, tile, size):
    choices = page.tab.evaluate(
        """async ([[width, height], tile]) => {
            const { choicesFor, MAX_PIXELS } = await import("./picture.mjs");
            return choicesFor(width, height, tile).map((found) => ({ ...found, most: MAX_PIXELS }));
        }""",
        [size, tile],
    )
    assert choices
    assert all(choice["width"] * choice["height"] <= choice["most"] for choice in choices)
    assert ("all" in [choice["kind"] for choice in choices]) == (size[0] * size[1] <= choices[0]["most"])


def test_a_result_beyond_a_canvas_is_shown_smaller(page):
    mean = """async () => {
        const { Preview } = await import("./picture.mjs");
        const preview = new Preview(5, 4, 6);
        const rows = Uint8ClampedArray.from({ length: 80 }, (_, at) => (at % 4 === 3 ? 255 : 3 * at));
        preview.add(rows.slice(0, 60).buffer, 5, 3);
        preview.add(rows.slice(60).buffer, 5, 1);
        return [preview.step, [...preview.context.getImageData(0, 0, 3, 2).data]];
    }"""
    step, found = page.tab.evaluate(mean)
    rows = 3.0 * np.arange(80).reshape(4, 5, 4)[..., :3]
    wanted = [[rows[y : y + 2, x : x + 2].mean((0, 1)) for x in (0, 2, 4)] for y in (0, 2)]
    assert step == 2
    assert np.abs(np.reshape(found, (2, 3, 4))[..., :3] - wanted).max() <= 0.51


def test_a_device_that_is_not_there_is_said_and_another_can_be_taken(page, photo):
    if page.tab.evaluate("navigator.gpu ? navigator.gpu.requestAdapter().then(Boolean) : false"):
        pytest.skip("this machine has a WebGPU adapter")
    page.tab.click("summary:has-text('Device')")
    # Where a browser has no WebGPU at all, it cannot be chosen.
    page.tab.evaluate("document.querySelector('#device [value=webgpu]').disabled = false")
    page.tab.select_option("#device", "webgpu")
    page.tab.click("text=Use these")
    page.tab.wait_for_selector("#trouble:has-text('WebGPU is not available')")
    assert page.text("#engine") == "The network is not loaded"
    # A picture waits for the network.
    page.tab.set_input_files("#file", photo)
    page.tab.wait_for_selector("#status:has-text('Waiting for the network')")
    page.tab.click("#cancel")
    page.tab.set_input_files("#file", photo)
    page.tab.evaluate("document.querySelector('#settings-form').reset()")
    page.tab.select_option("#threads", "1")
    page.tab.evaluate("document.querySelector('#settings-form').requestSubmit()")
    assert page.result().shape == (60, 88, 3)
    assert "WebAssembly, 1 thread" in page.text("#details")
    page.tab.click("summary:has-text('Device')")


def changed(folder, to, **contents):
    """A copy of the page *folder* without what computes on a GPU, and with other *contents* of files."""
    shutil.copytree(folder, to, copy_function=os.link, ignore=shutil.ignore_patterns("*asyncify*", "*webgpu*"))
    manifest = json.loads((to / "manifest.json").read_text())
    for name, content in contents.items():
        file = to / name.replace("_", ".")
        file.unlink()
        file.write_bytes(content)
    manifest["files"] = {name: sha256_file(to / name) for name in manifest["files"] if (to / name).exists()}
    (to / "manifest.json").unlink()
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_any_static_server_gives_threads_and_a_page_that_needs_no_network(browser, page_folder, tmp_path, photo):
    old = changed(page_folder, tmp_path / "old")
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    with opened(browser, address) as page:
        with served(old, isolated=False, port=port):
            page.open(address)
            # It was loaded once more, through the service worker, and not again.
            assert page.tab.evaluate("crossOriginIsolated")
            page.tab.wait_for_selector("#offline:has-text('works without a network')", timeout=60_000)
            assert page.loads == 2
            assert page.tab.locator("#threads option").count() > 1
        # The server is gone now.
        page.open(address)
        assert page.tab.evaluate("crossOriginIsolated")
        assert page.enlarge(photo).shape == (60, 88, 3)
        page.tab.click("#again")

        # A new version that cannot be had as a whole leaves the copy as it was.
        index = (page_folder / "index.html").read_bytes().replace(b"in your browser</span>", b"anew</span>")
        new = changed(page_folder, tmp_path / "new", index_html=index, page_css=b"h1 { color: green; }")
        style = (new / "page.css").rename(tmp_path / "page.css")
        with served(new, isolated=False, port=port):
            page.tab.goto(address)
            page.tab.wait_for_selector("#offline:has-text('no offline copy yet: page.css')")
            assert "anew" in page.text("h1")
        page.open(address)
        assert "in your browser" in page.text("h1")
        # Then it can, and takes its place.
        style.rename(new / "page.css")
        with served(new, isolated=False, port=port):
            page.open(address)
            page.tab.wait_for_selector("#offline:has-text('works without a network')")
        page.open(address)
        assert "anew" in page.text("h1")
        names = page.tab.evaluate(
            "async () => (await (await caches.open((await caches.keys())[0])).keys()).map((request) => request.url)"
        )
        assert len([name for name in names if "index.html" in name]) == 1
        assert all(name.startswith(address) and "measure" not in name for name in names)
        # Where the server answers, and has no such page any more, the copy does not stand in its way.
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "index.html").write_text("<title>other</title>another page")
        with served(tmp_path / "other", isolated=False, port=port):
            page.tab.goto(address)
            assert page.text("body") == "another page"
            assert page.tab.evaluate("navigator.serviceWorker.getRegistrations().then((all) => all.length)") == 0
        # What the servers did not have.
        page.faults = [fault for fault in page.faults if "404" not in fault]


def test_a_browser_without_room_for_a_copy_shows_the_page(browser, page_folder, tmp_path, photo):
    old = changed(page_folder, tmp_path / "old")
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    with opened(browser, address) as page:
        limit = page.tab.context.new_cdp_session(page.tab)
        with served(old, isolated=False, port=port):
            page.open(address)
            page.tab.wait_for_selector("#offline:has-text('works without a network')", timeout=60_000)
            limit.send("Storage.overrideQuotaForOrigin", {"origin": address.rstrip("/"), "quotaSize": 1000})
            # Nothing has changed: the copy is whole.
            page.open(address)
            page.tab.wait_for_selector("#offline:has-text('works without a network')")
        page.open(address)
        assert page.tab.evaluate("crossOriginIsolated")
        # What has changed cannot be kept: all comes from the network.
        index = (page_folder / "index.html").read_bytes().replace(b"in your browser</span>", b"anew</span>")
        with served(changed(page_folder, tmp_path / "new", index_html=index), isolated=False, port=port):
            page.open(address)
            page.tab.wait_for_selector("#offline:has-text('no room')")
            assert "anew" in page.text("h1")
            assert page.enlarge(photo).shape == (60, 88, 3)


def test_an_insecure_address_is_named_as_the_reason_for_one_thread(browser, address, photo):
    name = "http://page.example:" + address.rsplit(":", 1)[1]
    mapped = browser.browser_type.launch(
        executable_path=chromium(),
        chromium_sandbox=os.geteuid() != 0,
        args=["--host-resolver-rules=MAP page.example 127.0.0.1"],
    )
    try:
        with opened(mapped, name) as page:
            page.open(name)
            assert "not secure" in page.text("#warning")
            assert page.text("#engine") == "Ready: WebAssembly, 1 thread"
            assert page.enlarge(photo).shape == (60, 88, 3)
            # What the browser says of the headers that it ignores.
            page.faults = [fault for fault in page.faults if "Cross-Origin-Opener-Policy" not in fault]
    finally:
        mapped.close()


def test_a_damaged_model_is_named(browser, page_folder, tmp_path):
    folder = changed(page_folder, tmp_path / "page")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(b"damaged")
    with served(folder) as address, opened(browser, address) as page:
        page.tab.goto(address)
        page.tab.wait_for_selector("#trouble:has-text('model.onnx is not the file that manifest.json names')")
        assert page.tab.is_visible("text=Try again, on any device")
