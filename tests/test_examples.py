"""The examples for apps: those that can be compiled and run here give the pictures of our own runners."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    """The finished *program*, which had 12 GB of addresses, for many threads; what damaged files promise is more."""
    limited = ["sh", "-c", 'ulimit -v 12000000 && exec "$@"', "sh", str(program), *map(str, words)]
    return subprocess.run(limited, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Artifacts that other tests have, too: `exported(capacities=…)`."""
    return lambda **options: exported_once(
        tmp_path_factory, small_network(layers=2), backend="onnx", size=SIZE, **options
    )


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
    vast, shifted, endless = (tmp_path / name for name in ("vast.ppm", "shifted.ppm", "endless.ppm"))
    Image.fromarray(photo(*SIZE)).save(good)
    Image.fromarray(photo(33, 48)).save(large)
    cut.write_bytes(good.read_bytes()[:-1])
    other.write_bytes(b"P5\n1 1\n255\n\0")
    vast.write_bytes(b"P6\n65535 65535\n255\n")
    shifted.write_bytes(b"P6\r\n1 1\r\n255\r\n\0\0\0")
    endless.write_bytes(b"P6\n# a comment and nothing else")
    out = tmp_path / "out.ppm"
    for words, said in {
        (): "usage: ",
        (whole / "model.onnx", tmp_path / "none.ppm", out): "is no binary PPM file of 8 bits",
        (whole / "model.onnx", other, out): "is no binary PPM file of 8 bits",
        (whole / "model.onnx", shifted, out): "is no binary PPM file of 8 bits",
        (whole / "model.onnx", endless, out): "is no binary PPM file of 8 bits",
        (whole / "model.onnx", cut, out): "cut.ppm ends before its last pixel",
        (whole / "model.onnx", vast, out): "vast.ppm ends before its last pixel",
        (whole / "model.onnx", large, out): "larger than the model's 32x48 pixels",
        (whole / "model.onnx", good, tmp_path / "none" / "out.ppm"): "out.ppm cannot be written",
        (whole / "manifest.json", good, out): "manifest.json",
        (few / "model.onnx", good, out): "export it with --mask graph",
    }.items():
        done = run(upscale, *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert said in done.stderr
        assert not out.exists()


BLACK = np.zeros((1, 3, 8, 8))


def write_model(
    path: Path, capacities: Any = "", lr: Any = (1, 3, 4, 4), sr: Any = BLACK, impure: Any = (0,), kinds: Any = ()
) -> None:
    """A model of constant outputs *sr* and *impure*, for an *lr* of this shape; *kinds* are types of another kind."""
    onnx = pytest.importorskip("onnx")
    kinds = {"lr": np.float32, "sr": np.float32, "impure_tokens": np.int32, **dict(kinds)}
    element = {name: onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in kinds.items()}
    values = {"sr": np.asarray(sr, kinds["sr"]), "impure_tokens": np.asarray(impure, kinds["impure_tokens"])}
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, element[name], None) for name in values]
    graph = onnx.helper.make_graph(nodes, "g", [onnx.helper.make_tensor_value_info("lr", element["lr"], lr)], outputs)
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    if capacities is not None:
        onnx.helper.set_model_props(model, {"ppexport.capacities": capacities})
    onnx.save(model, path)


NO_PICTURE, NO_LIST = "is not float32 of 1x3xHxW", "ppexport.capacities must be ascending numbers of slots"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"capacities": str(1 << 20)}, ""),
        ({"lr": (4, 4)}, "lr " + NO_PICTURE),
        ({"lr": (1, 3, "h", "w")}, "lr " + NO_PICTURE),
        ({"kinds": {"lr": np.float16}}, "lr " + NO_PICTURE),
        ({"lr": (1, 3, 1 << 40, 1 << 40)}, "at most a million pixels"),
        ({"sr": np.zeros(192)}, "sr " + NO_PICTURE),
        ({"sr": np.zeros((1, 1, 8, 8))}, "sr " + NO_PICTURE),
        ({"kinds": {"sr": np.float16}}, "sr " + NO_PICTURE),
        ({"sr": np.zeros((1, 3, 2, 2))}, "sr is no multiple of its lr"),
        ({"sr": np.zeros((1, 3, 8, 4))}, "sr is no multiple of its lr"),
        ({"sr": np.full((1, 3, 8, 8), np.nan)}, "returned NaN or infinite values"),
        ({"impure": ()}, "impure_tokens is not one int32"),
        ({"kinds": {"impure_tokens": np.int8}}, "impure_tokens is not one int32"),
        ({"capacities": None}, "lacks ppexport.capacities"),
        *(
            ({"capacities": text}, NO_LIST)
            for text in ("x", "256x", "-1", "0", "256,,512", "512,256", "256,", "1000000000000", "9" * 30)
        ),
    ],
)
def test_cpp_refuses_a_model_that_is_no_artifact(upscale, changes, said, tmp_path):
    Image.fromarray(photo(4, 4)).save(tmp_path / "in.ppm")
    write_model(tmp_path / "model.onnx", **changes)
    done = run(upscale, tmp_path / "model.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm")
    assert (done.returncode, done.stderr.count("\n")) == ((1, 1) if said else (0, 0)), done.stderr
    assert said in done.stderr
    assert (tmp_path / "out.ppm").exists() == (not said)


def test_cpp_skips_comments_in_a_picture(upscale, tmp_path):
    write_model(tmp_path / "model.onnx", sr=np.ones((1, 3, 8, 8)))
    (tmp_path / "in.ppm").write_bytes(b"P6\n# Created by GIMP\n# twice\n2\t1 # across, down\n255\n" + bytes(6))
    done = run(upscale, tmp_path / "model.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.ppm").read_bytes() == b"P6\n4 2\n255\n" + b"\xff" * 24


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
        # A file that is no picture gets one sentence, and the page continues to work.
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


DYING = """addEventListener("message", ({ data }) => {
  if (data.type === "open") return postMessage({ type: "opened", facts: { device: "paper" } });
  for (const type of ["tile", "done", "error"]) postMessage({ type, id: 99, done: 1, total: 1, message: "of nobody" });
  throw new Error("burnt");
});"""


def test_the_page_says_that_its_worker_has_ended(browser, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "worker.mjs").write_text(DYING)
    for name in ("web.html", "web.mjs"):
        shutil.copy(EXAMPLES / name, tmp_path)
    # The picture that is on its way, and one that comes later.
    pictures = [tmp_path / name for name in ("now.png", "later.png")]
    for path in pictures:
        Image.fromarray(photo(4, 4)).save(path)
    with served(tmp_path) as address, browser.new_context() as context:
        tab = context.new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(address + "web.html")
        state = tab.locator("#state")
        state.get_by_text("ready, on paper").wait_for()
        for path in pictures:
            tab.evaluate("document.getElementById('state').textContent = ''")
            tab.set_input_files("#file", path)
            state.get_by_text("the worker has ended: Uncaught Error: burnt").wait_for()
    assert not wrong, "answers that nobody waits for do no harm"
