"""A page as it is built: every file is there, and is the right one, and the page asks nobody else for anything."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import stat
import sys
import tarfile
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from conftest import exported_once
from PIL import Image
from shared import ROOT
from small_networks import small_network
from typer.testing import CliRunner
from web_pages import SIZE, needs_runtime, small_page

# What is imported above lets programs of tools/ be found.
# isort: split
import onnxruntime_web

import ppexport
from ppexport.backends.self_check import example_inputs
from ppexport.backends.web import BACKEND, build_web, runtime_files
from ppexport.backends.web.build_web import LICENCES, PAGE, PAGE_SUFFIXES, licences
from ppexport.backends.web.run_server import POLICY
from ppexport.backends.web.runtime_files import VERSION, WASM, WEBGPU, read_runtime
from ppexport.backends.web.stay_on_gpu import stay_on_gpu
from ppexport.cli import app
from ppexport.device.artifact import read_artifact
from ppexport.errors import InputError, UnavailableError
from ppexport.networks.network import Trace

pytest_plugins = ["web_fixtures"]

OWN = sorted(path.name for path in PAGE.iterdir())
HTML = [name for name in OWN if name.endswith(".html")]
BUILT = (16, 16)
"""Of pages that a single test makes."""


@pytest.fixture(scope="module")
def dist() -> Path:
    """The runtime's files as they are installed here."""
    found = next((place for place in runtime_files._usual_places()), None)
    if BACKEND.lacking() or found is None:
        pytest.skip(BACKEND.lacking())
    return found


@pytest.fixture
def copied(dist, tmp_path) -> Path:
    """A copy of npm's package that a test may change."""
    package = tmp_path / "package"
    package.mkdir()
    shutil.copytree(dist, package / "dist")
    return package


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """The current folder and the environment have no runtime."""
    here = tmp_path / "here" / "below"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return here


def test_a_page_has_every_file_and_lists_it(page_folder):
    manifest = read_artifact(page_folder).manifest
    names = list(manifest.files)
    assert names[0] == "model.onnx"
    assert sorted([*names, "manifest.json"]) == sorted(path.name for path in page_folder.iterdir())
    assert {*OWN, *WASM, *WEBGPU, LICENCES} < set(names)
    assert {name: manifest.files[name] for name in (*WASM, *WEBGPU)} == {**WASM, **WEBGPU}
    assert all((page_folder / name).read_bytes() == (PAGE / name).read_bytes() for name in OWN)
    assert (manifest.backend, manifest.size, manifest.mask) == ("web", list(SIZE), "graph")
    samples = manifest.build["samples"]
    assert manifest.build == {"onnxruntime_web": VERSION, "webgpu": True, "samples": samples}
    for name in samples:
        assert (page_folder / name).stat().st_size < 100_000
        with Image.open(page_folder / name) as picture:
            assert min(picture.size) >= 128


def test_its_model_is_that_of_the_backend_onnx_for_a_gpu(page_folder, tmp_path_factory):
    other = exported_once(tmp_path_factory, small_network(), backend="onnx", size=SIZE)
    model = onnx.load(other / "model.onnx")
    stay_on_gpu(model)
    assert (page_folder / "model.onnx").read_bytes() == model.SerializeToString()


def test_what_a_probe_sees_is_the_model_in_the_page(page_folder):
    artifact = read_artifact(page_folder)
    probe = BACKEND.probe(SimpleNamespace(artifact=artifact))
    # The picture is to come from a browser.
    assert not probe.gives_picture
    twin, trace = ppexport.make_twin(small_network(), SIZE), Trace()
    inputs = example_inputs(twin)
    twin(**inputs, trace=trace)
    inside = probe.run({name: value.numpy() for name, value in inputs.items()})
    expected = torch.stack([layer.reshape(-1) for layer in trace.categories])
    assert (torch.from_numpy(inside.categories) == expected).float().mean() > 0.999
    probe.close()


@needs_runtime
def test_a_capacity_set_without_a_gpu(tmp_path_factory):
    folder = small_page(tmp_path_factory, size=BUILT, capacities=[128, 256], webgpu="no", flavour="ort")
    manifest = read_artifact(folder).manifest
    assert not set(WEBGPU) & {path.name for path in folder.iterdir()}
    assert set(WASM) < set(manifest.files)
    assert manifest.build["webgpu"] is False
    # Who chooses the capacity has the mask.
    assert (manifest.capacities, manifest.mask, manifest.flavour) == ([128, 256], "input", "ort")


def test_licences_of_all_parts(page_folder):
    text = (page_folder / LICENCES).read_text(encoding="utf-8")
    for part in ("Apache License", "MIT License", "CC0", "public domain", "emscripten", "flatbuffers", VERSION):
        assert part in text
    assert "a licence of one's own" in licences("a licence of one's own")


def test_a_missing_licence_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(build_web, "photo_folder", lambda: tmp_path)
    with pytest.raises(UnavailableError, match=r"LICENSES\.md cannot be read .* may not be published without"):
        licences("Apache-2.0")


def test_a_licence_of_a_copy_without_metadata_is_that_of_the_checkout(monkeypatch):
    with_metadata = build_web.own_licence()

    def nothing(_):
        raise build_web.PackageNotFoundError

    monkeypatch.setattr(build_web, "distribution", nothing)
    assert build_web.own_licence() == with_metadata == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_where_the_runtime_is_looked_for(copied, nowhere, tmp_path, monkeypatch):
    way_out = rf"npm install --ignore-scripts --prefix \S+ onnxruntime-web@{re.escape(VERSION)}, or .* --ort DIR"
    with pytest.raises(UnavailableError, match=way_out):
        read_runtime(None, webgpu=False)
    # The package's folder and its `dist` can be named.
    for given in (copied, copied / "dist"):
        assert set(read_runtime(given, webgpu=False)) == set(WASM)
        assert set(read_runtime(given, webgpu=True)) == {*WASM, *WEBGPU}
    # Found in the environment, and in a folder above the current one, although the one in between has another version.
    for root in (tmp_path / "environment", tmp_path):
        target = root / "node_modules" / "onnxruntime-web"
        shutil.copytree(copied, target)
        assert set(read_runtime(None, webgpu=False)) == set(WASM)
        other = nowhere.parent / "node_modules" / "onnxruntime-web" / "dist"
        other.mkdir(parents=True, exist_ok=True)
        (other / "ort.wasm.min.mjs").write_text("older")
        assert set(read_runtime(None, webgpu=False)) == set(WASM)
        shutil.rmtree(target)
    with pytest.raises(UnavailableError, match=r"here/node_modules.*ort\.wasm\.min\.mjs is not that of onnx"):
        read_runtime(None, webgpu=False)


def damaged(folder):
    with (folder / "dist" / "ort-wasm-simd-threaded.wasm").open("ab") as file:
        file.write(b"\0")


def halved(folder):
    (folder / "dist" / "ort-wasm-simd-threaded.mjs").unlink()


def emptied(folder):
    shutil.rmtree(folder / "dist")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, rf"ort-wasm-simd-threaded\.wasm is not that of onnxruntime-web {re.escape(VERSION)}: npm install"),
        (halved, r"ort-wasm-simd-threaded\.mjs cannot be read \(No such file or directory\): npm install"),
        (emptied, r"ort\.wasm\.min\.mjs cannot be read \(No such file or directory\): npm install"),
    ],
)
def test_another_runtime_is_refused_before_torch_is_used(change, message, copied, tmp_path, monkeypatch):
    change(copied)
    monkeypatch.setattr(build_web, "build_for_web", lambda *_: pytest.fail("this comes late"))
    with pytest.raises(InputError, match=message):
        ppexport.export(small_network(), backend="web", size=BUILT, out=tmp_path / "page", ort=copied)
    assert not (tmp_path / "page").exists()


def test_a_runtime_that_changes_while_the_graph_is_made(copied, tmp_path):
    def step(stage):
        if stage == "tracing":
            damaged(copied)

    with pytest.raises(InputError, match="is not that of onnxruntime-web"):
        ppexport.export(small_network(), backend="web", size=BUILT, out=tmp_path / "page", ort=copied, step=step)
    assert not (tmp_path / "page").exists()


def test_what_was_compared_is_what_is_written(copied, tmp_path, monkeypatch):
    def late(photo):
        damaged(copied)
        return b"picture"

    monkeypatch.setattr(build_web, "sample", late)
    folder = ppexport.export(small_network(), backend="web", size=BUILT, out=tmp_path / "page", ort=copied)
    files = read_artifact(folder).manifest.files
    assert {name: files[name] for name in WASM} == WASM


def test_the_command_line(copied, nowhere, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)

    export = ("export", "pp_atd_light_x2", "--size", "16x16", "-o", tmp_path / "page", "--backend")
    with pytest.raises(UnavailableError, match="npm install"):
        run(*export, "web")
    for arguments, message in (
        (("web", "--ort", copied, "-O", f"ort={copied}"), "ort is given both as"),
        (("onnx", "--ort", copied), "ort is an option of --backend web, not of onnx"),
        (("web", "--ort", copied, "-O", "webgpu=maybe"), "webgpu of --backend web is yes or no, not 'maybe'"),
        (("web", "--ort", copied, "--precision", "fp16", "--flavour", "ort"), "fp16 is written into flavour portable"),
        (("web", "--ort", copied, "--precision", "mixed"), "precision of --backend web is one of fp32, fp16, int8"),
    ):
        with pytest.raises(InputError, match=message):
            run(*export, *arguments)
    listed = json.loads(run("backends", "--json", "-").stdout)
    (web,) = (backend for backend in listed if backend["name"] == "web")
    assert web["missing"] == []
    assert "npm install" in web["lacks"]


class Page(HTMLParser):
    """What a page loads and says."""

    def __init__(self, text):
        super().__init__()
        self.policies, self.links, self.inline = [], [], []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._open = tag
        if (given.get("http-equiv") or "").lower() == "content-security-policy":
            self.policies.append(given["content"])
        self.links += [given[name] for name in ("src", "href", "action") if given.get(name)]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize("name", HTML)
def test_a_page_loads_only_what_is_beside_it(name, page_folder):
    page, files = Page((PAGE / name).read_text(encoding="utf-8")), set(read_artifact(page_folder).manifest.files)
    assert page.policies == [POLICY]
    assert page.inline == []
    local = {link.split("#")[0] for link in page.links if not link.startswith(("#", "data:", "blob:"))}
    assert local - {"", "."} <= files | {"manifest.json"}


@pytest.mark.parametrize("name", OWN)
def test_no_file_names_another_host(name):
    text = (PAGE / name).read_text(encoding="utf-8")
    found = re.findall(r"\b(?:https?|wss?)://[^\s\"'`)>]*", text)
    assert [address for address in found if not address.startswith("http://www.w3.org/")] == []
    assert re.findall(r"[\"'`]//\w", text) == []


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith((".mjs", ".js"))])
def test_modules_import_what_is_in_every_page(name):
    text = (PAGE / name).read_text(encoding="utf-8")
    imported = re.findall(r"^(?:import|export)\b[^;\"'`(=]*[\"'`]([^\"'`]+)", text, re.MULTILINE)
    imported += re.findall(r"\bimport\(\s*[\"'`]([^\"'`$]+)", text)
    assert all(module.startswith("./") for module in imported)
    # What a page without WebGPU lacks is imported where it is needed, by a name that is put together.
    assert {module.removeprefix("./") for module in imported} <= {*OWN, *WASM, *WEBGPU}


def test_the_wheel_has_all_files_of_the_page():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["ppexport.backends.web"].replace(",", " ").split()
    for name in OWN:
        assert any(fnmatch(f"page/{name}", pattern) for pattern in patterns)
        assert name.endswith(PAGE_SUFFIXES)


FAKE_NPM = """#!{python}
import pathlib, shutil, sys
assert sys.argv[1] == "pack" and "--ignore-scripts" in sys.argv and sys.argv[-1] == "onnxruntime-web@{version}"
shutil.copy({archive!r}, "onnxruntime-web.tgz")
"""


@pytest.fixture
def npm(copied, tmp_path, monkeypatch):
    """`npm(folder)`: puts an npm in front of all others, which packs the package *folder*."""

    def make(folder):
        archive, program = tmp_path / "archive.tgz", tmp_path / "bin" / "npm"
        with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
            packed.add(folder, "package")
        program.parent.mkdir()
        program.write_text(FAKE_NPM.format(python=sys.executable, version=VERSION, archive=str(archive)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(program.parent))

    return make


def test_the_program_that_fetches_the_runtime(npm, copied, tmp_path):
    npm(copied)
    dist = onnxruntime_web.fetch(tmp_path / "environment")
    assert set(read_runtime(dist, webgpu=True)) == {path.name for path in dist.iterdir()}
    # It is not fetched again.
    (tmp_path / "bin" / "npm").write_text("#!/bin/false\n")
    assert onnxruntime_web.fetch(tmp_path / "environment") == dist


def test_it_keeps_nothing_that_is_not_pinned(npm, copied, tmp_path):
    damaged(copied)
    npm(copied)
    with pytest.raises(InputError, match="is not that of onnxruntime-web"):
        onnxruntime_web.fetch(tmp_path / "environment")
    assert not (tmp_path / "environment").exists()
