"""Parity itself is tested: one thing is broken in a shipped file, and parity fails and names the module."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from conftest import exported_once
from onnx import numpy_helper
from small_networks import SIZE, small_network

import ppexport
from ppexport.device.artifact import MANIFEST
from ppexport.files import sha256_file
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs

LAYERS = [f"layers.0.residual_group.layers.{i}" for i in range(3)]
NODES = [f"/layers.0/residual_group/layers.{i}" for i in range(3)]


def stored(model, name):
    (value,) = (value for value in model.graph.initializer if value.name == name)
    return value


def called(model, name):
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def weight(model):
    """One weight of a layer's FFN is off by a tenth of the largest."""
    value = stored(model, f"{LAYERS[1]}.convffn.fc2.weight")
    array = numpy_helper.to_array(value).copy()
    array[3, 5] += np.abs(array).max() / 10
    value.CopyFrom(numpy_helper.from_array(array, value.name))


def shift(model):
    """The windows of a shifted layer are put back half a window too far down."""
    node = called(model, f"{NODES[1]}/attn_win/Concat_19")
    node.input[:] = node.input[::-1]


def label(model):
    """The colour centre of blue, of eight, is out of reach."""
    value = stored(model, "pure_pass.offsets")
    array = numpy_helper.to_array(value).copy()
    array[0, 5] -= 10**6
    value.CopyFrom(numpy_helper.from_array(array, value.name))


def threshold(model):
    """Windows count as pure that are not: labels agree, the mask does not."""
    called(model, "/pure_pass/Greater").input[1] = "never"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(-1), "never"))


def dictionary(model):
    """The dictionary that a layer hands to the next is not refined as it should be."""
    value = stored(model, f"{LAYERS[0]}.s")
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) * np.float32(0.5), value.name))


def last(model):
    """A weight behind all layers."""
    value = stored(model, "upsample.0.bias")
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) + np.float32(0.01), value.name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A network of three layers, the middle one with shifted windows, and its artifact."""
    network = small_network(layers=3)
    return network, exported_once(tmp_path_factory, network, backend="onnx", size=SIZE)


@pytest.fixture
def parity(whole, tmp_path, monkeypatch):
    """Runs parity on a copy of the artifact that a function has edited, with a manifest that agrees."""
    kept = ("coffee", "short_of_pure")
    monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: [i for i in parity_inputs(SIZE, 2) if i.name in kept])

    def run(edit):
        folder = shutil.copytree(whole[1], tmp_path / "a")
        model = onnx.load(folder / "model.onnx")
        edit(model)
        onnx.save(model, folder / "model.onnx")
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"] = {"model.onnx": sha256_file(folder / "model.onnx")}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return parity_run.run_parity(whole[0], ppexport.open_artifact(folder), tmp_path / "run", lambda *_: None)

    return run


def test_a_file_that_nothing_changes_passes(parity):
    report = parity(lambda model: None)
    assert report.passed
    assert [pair.first_bad_layer for pair in report.pairs] == ["", ""]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (weight, LAYERS[1]),
        (shift, LAYERS[1]),
        (label, "pure_pass"),
        (threshold, "pure_pass"),
        # What a layer hands on is first seen in the next one.
        (dictionary, LAYERS[1]),
        (last, "after the last layer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_broken_fails_and_is_named(parity, edit, named):
    report = parity(edit)
    twin, shipped = report.pairs
    assert twin.passed
    assert not shipped.passed
    assert shipped.worst.reason
    assert shipped.first_bad_layer == named
    assert json.loads(report.file.read_text())["pairs"][1]["first_bad_layer"] == named
