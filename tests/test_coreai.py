"""Core AI: a small network converted, run in Apple's runtime, and refused where it cannot be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("coreai_torch")

from test_coreml_build import small_network

import ppexport
from ppexport.backends.coreai.halved import Halved, halved
from ppexport.errors import ArtifactError, InputError
from ppexport.metrics import psnr

SIZE = (32, 32)
RNG = np.random.default_rng(0)
NOISE = RNG.random((1, 3, *SIZE), np.float32)
HALF_FLAT = np.concatenate([NOISE[:, :, :16], np.full((1, 3, 16, 32), 0.25, np.float32)], axis=2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("coreai") / "set"
    return ppexport.export(small_network(), backend="coreai", size=SIZE, out=out, capacities=[512, 1024])


def test_a_capacity_set_is_the_twin_in_apples_runtime(exported):
    runner, twin = ppexport.open_artifact(exported), ppexport.make_twin(small_network(), size=SIZE)
    used = set()
    for lr in (NOISE, HALF_FLAT):
        sr, impure, capacity = runner(lr)
        expected, count = twin(torch.from_numpy(lr))
        assert psnr(expected.numpy(), sr, 1.0) > 110
        assert impure == int(count)
        used.add(capacity)
    assert used == {512, 1024}


def test_half_precision_computes_in_fp16():
    twin = ppexport.make_twin(small_network(), size=SIZE)
    half = halved(twin)
    assert {m.module.weight.dtype for m in half.modules() if isinstance(m, Halved) and hasattr(m.module, "weight")} == {
        torch.float16
    }
    assert not any(isinstance(m, Halved) for m in twin.modules())
    expected, found = (t(torch.from_numpy(HALF_FLAT))[0].numpy() for t in (twin, half))
    assert 40 < psnr(expected, found, 1.0) < 110


def test_a_damaged_asset_is_refused(exported, tmp_path):
    copied = shutil.copytree(exported, tmp_path / "copy")
    program = copied / "model.aimodel" / "main.mlirb"
    program.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="does not match its hash"):
        ppexport.open_artifact(copied)


def test_bad_wishes_are_refused(tmp_path):
    for options, message in (
        ({"precision": "w8"}, "a Core AI precision is one of fp32, fp16"),
        ({"flavour": "ort"}, "flavours are for --backend onnx"),
        ({"keep": tmp_path / "k"}, "--keep is for ONNX graphs"),
    ):
        with pytest.raises(InputError, match=message):
            ppexport.export(small_network(), backend="coreai", size=SIZE, out=tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
