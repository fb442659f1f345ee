"""Core AI: a small network converted, run in Apple's runtime, and refused where it cannot be."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from conftest import exported_once
from PIL import Image
from torch import nn

pytest.importorskip("coreai_torch")

from small_networks import beyond_half, shortened, small_network

import ppexport
from ppexport.backends.backend import Gate
from ppexport.backends.coreai.asset import Session
from ppexport.backends.coreai.convert_asset import Halved, halved
from ppexport.backends.open_front import KeptResults, OpenFront
from ppexport.device.artifact import sha256_path
from ppexport.device.picture import psnr
from ppexport.errors import ExportError
from ppexport.parity.columns import ArtifactColumn
from ppexport.parity.compare import compare_columns
from ppexport.parity.inputs import ParityInput
from ppexport.parity.references import TwinColumn, find_bad_module
from ppexport.parity.run import compute

pytest_plugins = ["apple_fixtures"]
SIZE = (16, 16)
NOISE = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
HALF_FLAT = np.concatenate([NOISE[:, :, :8], np.full((1, 3, 8, 16), 0.25, np.float32)], axis=2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_once(tmp_path_factory, small_network(), backend="coreai", size=SIZE, capacities=[128, 256])


def test_a_capacity_set_is_the_twin_in_apples_runtime(exported):
    runner, twin = ppexport.open_artifact(exported), ppexport.make_twin(small_network(), size=SIZE)
    used = set()
    for lr in (NOISE, HALF_FLAT):
        sr, impure, capacity = runner(lr)
        expected, count = twin(torch.from_numpy(lr))
        assert psnr(expected.numpy(), sr, 1.0) > 110
        assert impure == int(count)
        used.add(capacity)
    assert used == {128, 256}


def test_half_precision_computes_in_fp16():
    twin = ppexport.make_twin(small_network(), size=SIZE)
    half = halved(twin)
    assert {m.module.weight.dtype for m in half.modules() if isinstance(m, Halved) and hasattr(m.module, "weight")} == {
        torch.float16
    }
    assert not any(isinstance(m, Halved) for m in twin.modules())
    expected, found = (t(torch.from_numpy(HALF_FLAT))[0].numpy() for t in (twin, half))
    assert 40 < psnr(expected, found, 1.0) < 110


@pytest.mark.parametrize("centres", ["fixed", "adaptive"])
def test_an_open_copy_shows_the_mask_that_a_graph_can_compute(centres):
    network = shortened(ppexport.load_network("pp_atd_light_x2", centres=centres), 1)
    front = OpenFront(ppexport.make_twin(network, size=SIZE)).eval()
    lr, mask = torch.zeros(1, 3, *SIZE), torch.zeros(1, 1, *SIZE)
    program = torch.export.export(front, (lr, mask))
    assert len(program.graph_signature.user_outputs) == len(front.outputs)
    assert ("labels" in front.outputs) == (centres == "fixed")


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def trusted_again(folder):
    """Writes the model's present hash into the manifest, as one would who forges it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.aimodel"] = sha256_path(folder / "model.aimodel")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_sizes_that_are_no_multiple_of_the_window(tmp_path):
    size = (13, 20)
    out = ppexport.export(small_network(), backend="coreai", size=size, out=tmp_path / "odd")
    lr = np.random.default_rng(1).random((1, 3, *size), np.float32)
    sr, impure, capacity = ppexport.open_artifact(out)(lr)
    expected, count = ppexport.make_twin(small_network(), size=size)(torch.from_numpy(lr))
    assert (sr.shape, capacity) == ((1, 3, 26, 40), 512)
    assert psnr(expected.numpy(), sr, 1.0) > 110
    assert impure == int(count)


def test_a_damaged_asset_is_refused(copied, fails, tmp_path):
    program = copied / "model.aimodel" / "main.mlirb"
    program.write_bytes(program.read_bytes()[:1000])
    picture = tmp_path / "in.png"
    Image.new("RGB", (16, 16)).save(picture)
    command = ("upscale", copied, picture, tmp_path / "out.png")
    fails(*command, message="does not match its hash")
    # Apple's runtime does not look, and such a program ends the whole process.
    trusted_again(copied)
    fails(*command, message=r"main\.mlirb does not match its hash in main\.hash")
    (copied / "model.aimodel" / "main.hash").unlink()
    trusted_again(copied)
    fails(*command, message="is not a Core AI asset")
    (copied / "model.aimodel" / "metadata.json").unlink()
    trusted_again(copied)
    fails(*command, message="is not a Core AI asset")
    assert not (tmp_path / "out.png").exists()


def test_an_asset_that_is_not_ours_is_refused(copied, fails, tmp_path):
    from coreai_torch import TorchConverter, get_decomp_table

    program = torch.export.export(nn.Conv2d(3, 3, 3).eval(), (torch.zeros(1, 3, 16, 16),))
    converter = TorchConverter()
    converter.add_exported_program(program.run_decompositions(get_decomp_table()), entrypoint_name="main")
    shutil.rmtree(copied / "model.aimodel")
    with redirect_stdout(io.StringIO()):
        converter.to_coreai().save_asset(copied / "model.aimodel")
    trusted_again(copied)
    fails("parity", copied, message=r"ppexport\.capacities is None, the manifest says '128,256'")


def test_without_the_extra_it_is_named(exported, fails, tmp_path, monkeypatch):
    export = ("export", "pp_atd_light_x2", "--backend", "coreai", "--size", "16x16", "-o", tmp_path / "x")
    monkeypatch.setitem(sys.modules, "coreai_torch", None)
    fails(*export, code=3, message=r"coreai_torch is not installed: pip install -e '\.\[coreai\]'")
    monkeypatch.setitem(sys.modules, "coreai", None)
    fails("parity", exported, code=3, message=r"coreai is not installed: pip install -e '\.\[coreai\]'")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "w8"], "precision of --backend coreai is one of fp32, fp16, not 'w8'"),
        (["--flavour", "ort"], "flavour is an option of --backend onnx, web, not of coreai"),
        (["--keep", "k"], "keep is an option of --backend onnx, qnn, tensorrt, web, not of coreai"),
        (["--target", "iOS17"], "target is an option of --backend coreml, not of coreai"),
        (["--interface", "image"], "interface is an option of --backend coreml, not of coreai"),
        (["--calibration", "c.npz"], "--backend coreai takes no --calibration: leave it out"),
        (["--no-pad-heads"], "pad_heads is an option of --backend tensorrt, not of coreai"),
        (["--capacity", "100"], "capacities are ascending multiples of 128 from 128 to 1024, not"),
        (["--size", "0x32"], "size"),
    ],
)
def test_bad_options_are_refused(options, message, fails, tmp_path):
    size = [] if "--size" in options else ["--size", "32x32"]
    fails("export", "pp_atd_light_x2", "--backend", "coreai", *size, *options, "-o", tmp_path / "x", message=message)
    assert not (tmp_path / "x").exists()


def test_numbers_beyond_fp16_are_refused(tmp_path):
    with pytest.raises(ExportError, match="the asset gives NaN or infinite values: .*65504.*export it as fp32$"):
        ppexport.export(
            beyond_half(small_network()), backend="coreai", precision="fp16", size=(16, 16), out=tmp_path / "a"
        )
    assert not (tmp_path / "a").exists()


def test_what_looks_into_core_ml_says_that_this_is_core_ai(exported, fails):
    fails("diverge", exported, message="diverge looks into Core ML packages, not coreai")
    fails("lint", exported, message="is a Core AI asset: nothing is known of where its operations run")
    fails("parity", exported, "--units", "cpu", message="compute units, which coreai does not: leave --units out$")


def test_a_parity_run_that_was_ended_goes_on(exported, tmp_path, monkeypatch):
    runner, twin = ppexport.open_artifact(exported), ppexport.make_twin(small_network(), size=SIZE)
    items = [ParityInput("noise", NOISE), ParityInput("half_flat", HALF_FLAT)]
    run, ended = Session.run, []

    def ends(session, inputs):
        if len(ended) == 3:
            raise KeyboardInterrupt
        ended.append(session.path.name)
        return run(session, inputs)

    monkeypatch.setattr(Session, "run", ends)
    kept = tmp_path / "kept"
    first = ArtifactColumn(runner, twin, kept)
    expected = first.sample(items[0])
    with pytest.raises(KeyboardInterrupt):
        first.sample(items[1])
    # What was computed is there; the run after it was not.
    again = ArtifactColumn(runner, twin, kept)
    found = again.sample(items[0])
    np.testing.assert_array_equal(found.sr, expected.sr)
    np.testing.assert_array_equal(found.categories, expected.categories)
    assert found.capacity == expected.capacity
    # Another picture under the same name is another input.
    with pytest.raises(KeyboardInterrupt):
        again.sample(ParityInput("noise", HALF_FLAT + np.float32(0.001)))
    monkeypatch.setattr(Session, "run", run)
    damaged = next(kept.glob("*/*-open.npz"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    np.testing.assert_array_equal(again.sample(items[0]).categories, expected.categories)
    assert ended == ["model.aimodel", "open.aimodel", "model.aimodel"]
    column = TwinColumn(twin, [128, 256])
    for each in (column, again):
        compute(each, items[:1], lambda *_: None)
    pair = compare_columns(column, again, items[:1], Gate(psnr=90.0))

    def bad():
        return find_bad_module(pair, twin, column, again, items[:1])

    assert bad() == "after the last layer"
    # A twin that computes otherwise is found with the asset's categories in both, which only tells its own.
    first = next(iter(twin.routed_layers()))
    with torch.no_grad():
        twin.get_submodule(first).convffn.fc2.bias += 0.01
    assert bad() == first


def test_what_was_kept_of_another_asset_is_not_used(tmp_path):
    one = {"x": np.arange(3)}
    KeptResults(tmp_path / "k", "aaaa").arrays("name", lambda: one)
    kept = KeptResults(tmp_path / "k", "bbbb")
    assert [p.name for p in (tmp_path / "k").iterdir()] == ["bbbb"]
    assert kept.arrays("name", lambda: {"x": np.arange(4)})["x"].size == 4
