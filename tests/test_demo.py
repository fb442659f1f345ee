"""The demonstration that `make demo` runs."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from small_networks import small_network
from typer.testing import CliRunner

from ppexport.backends import web
from ppexport.backends.web import BACKEND
from ppexport.cli import app, demo
from ppexport.device.artifact import read_artifact
from ppexport.errors import UnavailableError
from ppexport.imaging.images import photo_folder
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs


def test_demo_makes_the_pictures_and_a_page(tmp_path, monkeypatch):
    # Two inputs, a smaller photograph, and a page of one layer, for time; `make demo` itself takes all.
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: parity_inputs(size, scale)[4:6])
    with Image.open(photo_folder() / demo.PHOTO) as photo:
        photo.crop((100, 0, 400, 180)).save(tmp_path / "photo.png")
    monkeypatch.setattr(demo, "PHOTO", tmp_path / "photo.png")
    made = demo._make_page
    monkeypatch.setattr(demo, "_make_page", lambda network, out: made(small_network(), out))
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "demo"), "--json", str(tmp_path / "demo.json")])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "demo.json").read_text())
    assert data["parity"]
    # Where the runtime of pages is not installed there is none.
    assert data["page"] == (None if BACKEND.lacking() else str(tmp_path / "demo" / demo.PAGE))
    if data["page"]:
        assert result.stdout.replace("\n", "").endswith(f"ppexport serve {data['page']}")
        assert read_artifact(tmp_path / "demo" / demo.PAGE).manifest.backend == "web"
    assert sum(f.stat().st_size for f in (tmp_path / "demo" / demo.MODEL).iterdir()) < 6e6
    assert data["psnr_result"] > data["psnr_bicubic"] + 1
    assert 0 < data["pure_share"] < 1
    sizes = {"input": (150, 90), "bicubic": (300, 180), "result": (300, 180), "mask": (300, 180)}
    for name, size in sizes.items():
        with Image.open(tmp_path / "demo" / f"{name}.png") as image:
            assert image.size == size
            assert np.asarray(image).std() > 10
    with Image.open(tmp_path / "demo" / "comparison.png") as image:
        assert image.width > 3 * demo.DETAIL[3] * 2 * demo.ZOOM


def test_a_demo_without_the_runtime_of_pages_says_so(tmp_path, monkeypatch):
    def nothing(*_):
        raise UnavailableError("onnxruntime-web is not here: npm install it")

    monkeypatch.setattr(web, "read_runtime", nothing)
    page, offer = demo._make_page(small_network(), tmp_path / "page")
    assert page is None
    assert offer == "no page for browsers was made: onnxruntime-web is not here: npm install it"
    assert not list(tmp_path.iterdir())
