"""The page's engine and its worker, in a browser, on pages of small networks, beside ONNX Runtime on this machine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from conftest import exported_once
from PIL import Image
from shared import FREE_IMAGES
from small_networks import SIZE, random_small_network
from web_javascript import decoded, run
from web_pages import chromium, needs_runtime, served, small_page

from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
from ppexport.device.artifact import read_artifact
from ppexport.device.picture import psnr, to_input
from ppexport.imaging.upscaling import upscale_array

pytest_plugins = ["web_fixtures"]
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
    # The first run is recorded, and the others replay it with other pictures.
    cases = [to_input(rgb) for rgb in pictures(*SIZE)]
    with another_browser(browser, flags) as software:
        for device in ("webgpu", "auto"):
            body = ENGINE.replace('"wasm"', json.dumps(device))
            found[device] = on(software, folder, body, cases)
    # What computes on the CPU anyway is not chosen for its name.
    assert (found["webgpu"]["facts"]["device"], found["auto"]["facts"]["device"]) == ("webgpu", "wasm")
    assert found["webgpu"]["facts"]["adapter"]["fallback"]
    with OnnxRunner(artifact, threads=1) as runner:
        expected = [runner(lr) for lr in cases]
    for result in found.values():
        for got, wanted in zip(result["found"], expected, strict=True):
            assert got["impure"] == wanted.impure_tokens
            assert psnr(decoded(got["sr"], np.float32, wanted.sr.shape), wanted.sr, peak=1) >= LEAST_DB


BROKEN_GPU = """
const { openEngine } = await import("./engine.mjs");
const requestDevice = async () => {
  if (cases) throw new Error("a broken driver");
  return { destroy() {} };
};
const requestAdapter = async () => ({ info: { vendor: "acme" }, requestDevice });
Object.defineProperty(navigator, "gpu", { value: { requestAdapter } });
const engine = await openEngine({}), lr = new Float32Array(3 * 32 * 32).fill(0.5);
return { facts: engine.facts, values: (await engine.run(engine.prepare(lr))).sr.length };
"""
NO_PIPELINE = """
import * as ort from "./ort.wasm.min.mjs";
export const { env, Tensor } = ort;
export const InferenceSession = {
  async create(model, options) {
    if (options.executionProviders[0] === "webgpu") throw new Error("too many buffers");
    return ort.InferenceSession.create(model, options);
  },
};
"""


@needs_runtime
@pytest.mark.parametrize("starts", [False, True])
def test_where_nobody_asked_for_a_gpu_one_that_fails_is_replaced_and_named(browser, page_folder, tmp_path, starts):
    folder = changed(page_folder, tmp_path / "page")
    (folder / "ort.webgpu.min.mjs").unlink()
    (folder / "ort.webgpu.min.mjs").write_text(NO_PIPELINE)
    found = on(browser, folder, BROKEN_GPU, not starts)
    why = "it does not take the model (too many buffers)" if starts else "the GPU does not start (a broken driver)"
    assert found["facts"]["device"] == "wasm"
    assert f"no WebGPU: {why}" in found["facts"]["notes"]
    assert found["values"] == 3 * 64 * 64


@needs_runtime
def test_a_page_that_is_not_isolated_has_one_thread_and_says_so(browser, page_folder):
    found = on(browser, page_folder, ENGINE, [], isolated=False)
    assert found["facts"]["threads"] == 1
    assert not found["facts"]["isolated"]
    assert any(note.startswith("one thread") for note in found["facts"]["notes"])
