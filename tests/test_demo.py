"""The demonstration that `make demo` runs."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from ppexport.cli import app, demo
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs, photo_folder


def test_demo_makes_the_pictures(tmp_path, monkeypatch):
    # Two inputs and a smaller photograph, for time; `make demo` itself takes all.
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: parity_inputs(size, scale)[4:6])
    with Image.open(photo_folder() / demo.PHOTO) as photo:
        photo.crop((100, 0, 400, 180)).save(tmp_path / "photo.png")
    monkeypatch.setattr(demo, "PHOTO", tmp_path / "photo.png")
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "demo"), "--json", str(tmp_path / "demo.json")])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "demo.json").read_text())
    assert data["parity"]
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
