"""The examples for apps: those that can be compiled and run here give the pictures of our own runners."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import shared
from conftest import exported_once, photo
from example_headers import FOLDER, WHEELS, archive_of, wanted
from PIL import Image
from small_networks import random_small_network, small_network
from web_pages import needs_runtime, served

import ppexport
from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
from ppexport.device.artifact import read_artifact
from ppexport.device.capacities import capacity_set
from ppexport.errors import InputError
from ppexport.imaging.passes import upscale_array

pytest_plugins = ["web_fixtures"]

EXAMPLES = shared.ROOT / "docs" / "examples"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
SIZE = (32, 48)


def test_every_example_is_on_the_page_and_says_how_it_was_checked():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*[!d]"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert f"({path.name})" in page
        assert re.search(r"by tests/test_examples\.py|[Nn]ot run", "\n".join(lines[:4])), path.name
        assert len(lines) <= 130, path.name
        assert max(map(len, lines)) <= 120, path.name


def test_only_headers_of_known_packages_are_kept(monkeypatch, tmp_path):
    assert wanted("nvidia/cu13/include/crt/host_defines.h") == ("cuda", "crt/host_defines.h")
    for name in ("nvidia/cu13/include/../../../x.h", "nvidia/cu13/include/x.py", "other/x.h"):
        assert wanted(name) is None
    monkeypatch.setattr(subprocess, "run", lambda *_, cwd, **__: (cwd / "other.whl").write_bytes(b""))
    with pytest.raises(InputError, match="not that of the package which was looked at"):
        archive_of(WHEELS[0], tmp_path / "work")


def compile_cpp(name: str, *libraries: str, options: tuple[str, ...] = ()) -> None:
    """Compile an example, whose warnings are errors; skips the test without a compiler or the libraries' headers."""
    compiler = shutil.which("g++") or pytest.skip("no C++ compiler: apt-get install g++")
    for library in libraries:
        if not (FOLDER / library).is_dir():
            pytest.skip(f"no headers of {library}: python tools/example_headers.py")
    headers = [word for library in libraries for word in ("-isystem", str(FOLDER / library))]
    done = subprocess.run(
        [compiler, *STRICT, *headers, str(EXAMPLES / name), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def upscale(tmp_path_factory) -> Path:
    """onnxruntime.cpp, compiled against the library in the wheel of ONNX Runtime."""
    package = Path((find_spec("onnxruntime") or pytest.skip("no onnxruntime")).origin).parent
    library = next(package.glob("capi/libonnxruntime.so.*"), None) or pytest.skip(
        "this onnxruntime has no libonnxruntime"
    )
    folder = tmp_path_factory.mktemp("onnxruntime")
    # The names that the linker and the program look for; the wheel has neither.
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    link = (f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", str(folder / "upscale"))
    compile_cpp("onnxruntime.cpp", "onnxruntime", options=link)
    return folder / "upscale"


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Artifacts that other tests have, too: `exported(capacities=…)`."""
    return lambda **wish: exported_once(tmp_path_factory, small_network(layers=2), backend="onnx", size=SIZE, **wish)


@pytest.mark.parametrize("capacities", [None, capacity_set(SIZE)], ids=["one", "set"])
@pytest.mark.parametrize("size", [SIZE, (25, 31)], ids=["whole", "padded"])
def test_cpp_gives_the_picture_of_the_python_runner(upscale, exported, capacities, size, tmp_path):
    folder, rgb = exported(**{"capacities": capacities} if capacities else {}), photo(*size)
    Image.fromarray(rgb).save(tmp_path / "in.ppm")
    done = run(upscale, folder / "model.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm")
    assert (done.returncode, done.stderr) == (0, "")
    with ppexport.open_artifact(folder) as runner:
        expected, report = upscale_array(runner, rgb)
    assert capacities is None or report.tiles[0].capacity > capacities[0], "the second run of the program is tested"
    with Image.open(tmp_path / "out.ppm") as image:
        difference = np.abs(np.asarray(image).astype(int) - expected)
    # Equal on one machine; a number of threads may move a number across the border between two levels.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_cpp_runs_a_network_without_slots(upscale, tmp_path_factory, tmp_path):
    network = random_small_network("swinir_light", 2)
    folder = exported_once(tmp_path_factory, network, backend="onnx", size=(16, 16))
    Image.fromarray(photo(16, 16)).save(tmp_path / "in.ppm")
    done = run(upscale, folder / "model.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm")
    assert (done.returncode, done.stderr) == (0, "")


def test_cpp_says_what_is_wrong_in_one_sentence(upscale, exported, tmp_path):
    whole, few = exported(), exported(capacities=[128, 256], mask="input")
    good, large, cut, other = (tmp_path / name for name in ("good.ppm", "large.ppm", "cut.ppm", "other.ppm"))
    Image.fromarray(photo(*SIZE)).save(good)
    Image.fromarray(photo(33, 48)).save(large)
    cut.write_bytes(good.read_bytes()[:-1])
    other.write_bytes(b"P5\n1 1\n255\n\0")
    out = tmp_path / "out.ppm"
    for words, said in {
        (): "usage: ",
        (whole / "model.onnx", tmp_path / "none.ppm", out): "is no binary PPM file of 8 bits",
        (whole / "model.onnx", other, out): "is no binary PPM file of 8 bits",
        (whole / "model.onnx", cut, out): "cut.ppm ends before its last pixel",
        (whole / "model.onnx", large, out): "larger than the model's 32x48 pixels",
        (whole / "model.onnx", good, tmp_path / "none" / "out.ppm"): "out.ppm cannot be written",
        (whole / "manifest.json", good, out): "manifest.json",
        (few / "model.onnx", good, out): "export it with --mask graph",
    }.items():
        done = run(upscale, *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert said in done.stderr
        assert not out.exists()


def test_cpp_for_tensorrt_compiles():
    compile_cpp("tensorrt.cpp", "tensorrt", "cuda", options=("-fsyntax-only",))


PIXELS = """() => {
  const image = document.getElementById("result"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""


@needs_runtime
def test_the_page_gives_the_picture_of_the_python_runner(browser, page_folder, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(page_folder, site / "model")
    for name in ("web.html", "web.mjs"):
        shutil.copy(EXAMPLES / name, site)
    rgb = photo(40, 50)
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    with served(site) as address, browser.new_context() as context:
        tab = context.new_page()
        tab.goto(address + "web.html")
        state = tab.locator("#state")
        state.get_by_text("ready, on").wait_for()
        tab.set_input_files("#file", tmp_path / "photo.png")
        state.get_by_text("100x80").wait_for()
        data = tab.evaluate(PIXELS)
        # What is no picture is told in a sentence, and the page goes on.
        tab.set_input_files("#file", EXAMPLES / "web.mjs")
        state.get_by_text("could not be decoded").wait_for()
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        found = np.asarray(image.convert("RGB")).astype(int)
    with OnnxRunner(read_artifact(page_folder)) as runner:
        expected = upscale_array(runner, rgb).rgb
    assert np.abs(found - expected).max() <= 1


@needs_runtime
def test_the_page_says_that_its_model_is_missing(browser, tmp_path):
    for name in ("web.html", "web.mjs"):
        shutil.copy(EXAMPLES / name, tmp_path)
    with served(tmp_path) as address, browser.new_context() as context:
        tab = context.new_page()
        tab.goto(address + "web.html")
        tab.locator("#state").get_by_text("is no artifact of the backend web").wait_for()
