"""LiteRT artifacts: what a file holds, how it runs, what parity sees inside, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import exported_once
from small_networks import small_network
from tflite_files import File

import ppexport
from ppexport.backends.backend import find_backend
from ppexport.backends.litert.convert_litert import MODEL, Stages, import_converter
from ppexport.backends.litert.litert_precision import narrow_weights
from ppexport.backends.litert.litert_probe import LiteRTProbe
from ppexport.backends.litert.run_litert import Session
from ppexport.backends.litert.run_litert_facts import facts_of
from ppexport.backends.litert.shown import INSIDE
from ppexport.backends.litert.tflite import add_facts, edit, read_model, text
from ppexport.device.artifact import Artifact, read_artifact, sha256_path
from ppexport.device.cores import usable_cores
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, ExportError, InputError, UnavailableError
from ppexport.networks.load import card_of
from ppexport.networks.network import Trace
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.profile.tune import tune

pytest.importorskip("litert_torch")
SIZE, CAPACITIES = (16, 32), (256, 512)


@pytest.fixture(scope="module")
def network():
    return small_network(2, 2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, network):
    return exported_once(tmp_path_factory, network, backend="litert", size=SIZE, capacities=CAPACITIES)


@pytest.fixture(scope="module")
def content(artifact):
    return (artifact / MODEL).read_bytes()


@pytest.fixture(scope="module")
def lr():
    """Half flat and half busy: 256 tokens at most are routed."""
    image = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    image[..., :16] = 0.4
    return image


def with_file(artifact, folder, content, **changes):
    """A copy of *artifact* in *folder* with another model file, whose hash the manifest has."""
    shutil.copytree(artifact, folder)
    (folder / MODEL).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"files": {MODEL: sha256_path(folder / MODEL)}, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_tune_runs_and_judges_it(artifact, network, tmp_path, monkeypatch):
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: parity_inputs(size, scale)[:1])
    with ppexport.open_artifact(artifact, threads=1) as runner:
        parity_run.run_parity(network, runner, tmp_path / "run", lambda *_: None)
    found = tune(artifact, tmp_path / "run", 0.1, 0, 1, False, lambda *_: None)
    assert [(s.target.name, s.target.threads, s.passed, s.chosen) for s in found.settings] == [
        ("litert", 1 if usable_cores() > 1 else None, True, True)
    ]
    assert found.settings[0].psnr > 90


def test_a_set_has_a_signature_for_every_capacity(content, artifact):
    manifest = read_artifact(artifact).manifest
    assert manifest.flavour == "lite"
    session = Session(content, "m", 1)
    assert session.signatures == ["capacity_256", "capacity_512"]
    assert session.ports("capacity_512") == {
        "lr": ("float32", [1, 3, 16, 32]),
        "sr": ("float32", [1, 3, 32, 64]),
        "impure_tokens": ("int32", [1]),
    }
    assert facts_of(content, "m")["ppexport.capacities"] == "256,512"


def test_signatures_share_their_weights(content):
    model = read_model(content)
    stored = [{int(tensor.buffer) for tensor in graph.tensors} for graph in model.subgraphs]
    lengths = {i: 0 if buffer.data is None else len(buffer.data) for i, buffer in enumerate(model.buffers)}
    alone = sum(lengths[i] for i in stored[0] ^ stored[1])
    assert alone < 0.01 * sum(lengths.values())


def test_tensors_are_called_by_their_module(content, network):
    twin = ppexport.make_twin(network, SIZE)
    paths = {"twin", *(name for name, _ in twin.named_modules())}
    called = {text(tensor.name).rpartition(":")[0] for tensor in read_model(content).subgraphs[0].tensors}
    known = {name for name in called if name in paths}
    assert {"conv_first", "pure_pass", "layers.0.residual_group.layers.1.convffn.fc1"} <= known
    assert not any("builtins" in name or "Rewritten" in name for name in called)


@pytest.mark.parametrize("flat", [True, False])
def test_the_smallest_capacity_that_holds_an_image_runs(artifact, network, lr, flat):
    image = lr if flat else np.random.default_rng(1).random(lr.shape, np.float32)
    with ppexport.open_artifact(artifact, threads=1) as runner:
        sr, impure, capacity = runner(image)
    twin = ppexport.make_twin(network, SIZE, capacity)
    expected, count = twin(torch.from_numpy(image))
    assert capacity == (256 if flat else 512)
    assert impure == int(count)
    assert psnr(expected.numpy(), sr, 1.0) > 110


def test_a_probe_sees_and_injects(content, network, lr):
    twin, own, forced = ppexport.make_twin(network, SIZE), Trace(), Trace()
    image, inputs = torch.from_numpy(lr), {"lr": lr, "slots": np.zeros((1, 512), np.int32)}
    expected, _ = twin(image, trace=own)
    chosen = torch.stack(own.categories).numpy()
    probe = LiteRTProbe(content, "m", 1)
    inside = probe.run(inputs)
    assert psnr(expected.numpy(), inside.sr, 1.0) > 110
    assert np.array_equal(inside.categories, chosen)
    assert np.array_equal(inside.pure, twin.pure_pass(image).numpy())
    assert np.array_equal(inside.labels, twin.pure_pass.labels(image).reshape(-1).numpy())
    other = np.random.default_rng(0).permuted(chosen, axis=1)
    expected, _ = twin(image, categories=torch.from_numpy(other).int(), trace=forced)
    assert psnr(expected.numpy(), probe.run(inputs, other).sr, 1.0) > 110
    assert psnr(expected.numpy(), inside.sr, 1.0) < 60
    for layer, tokens in zip(probe.layers(inputs, other), forced.tokens, strict=True):
        np.testing.assert_allclose(layer, tokens.numpy(), atol=2e-5)
    for given, (tokens, dictionary) in zip(probe.chosen_from(inputs, other), forced.inputs, strict=True):
        np.testing.assert_allclose(given.tokens, tokens.numpy(), atol=2e-5)
        if given.dictionary is not None:
            np.testing.assert_allclose(given.dictionary, dictionary.numpy(), atol=2e-5)
    assert [given.dictionary is None for given in probe.chosen_from(inputs, other)] == [True, False]
    probe.close()


def test_without_torch_a_file_is_not_looked_into(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with ppexport.open_artifact(artifact) as runner:
        assert find_backend("litert").probe(runner) is None


def test_parity_looks_into_the_file(artifact, network, tmp_path, monkeypatch):
    items = [item for item in parity_inputs(SIZE, 2) if item.name in ("coffee", "white")]
    monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: items)
    with ppexport.open_artifact(artifact) as runner:
        report = parity_run.run_parity(network, runner, tmp_path / "run", lambda *_: None)
    assert report.passed, report.to_dict()["pairs"]
    assert report.pairs[-1].other == "litert-fp32"
    assert report.pairs[-1].to_dict()["agreement"]


@pytest.mark.parametrize(("precision", "least", "size"), [("fp16", 60, 0.9), ("int8", 45, 0.9)])
def test_fewer_bits(artifact, content, network, lr, precision, least, size, tmp_path, capfd):
    narrow, about = narrow_weights(content, precision, card_of(network))
    assert len(narrow) < size * len(content)
    folder = with_file(artifact, tmp_path / "a", narrow, precision=precision)
    with ppexport.open_artifact(artifact) as exact, ppexport.open_artifact(folder) as runner:
        assert psnr(exact(lr).sr, runner(lr).sr, 1.0) > least
        probe = find_backend("litert").probe(runner)
        assert probe.run({"lr": lr, "slots": np.zeros((1, 256), np.int32)}).categories.shape == (2, 512)
        probe.close()
    assert capfd.readouterr() == ("", "")
    assert about == {} if precision == "fp16" else "body_conv" not in about["int8"]["groups"]


@pytest.mark.parametrize(("precision", "kind"), [("int8", 9), ("fp16", 1)])
def test_what_chooses_categories_stays_in_fp32(content, network, precision, kind):
    narrow, _ = narrow_weights(content, precision, card_of(network))
    graph = read_model(narrow).subgraphs[0]
    rounded = {text(tensor.name).rpartition(":")[0] for tensor in graph.tensors if tensor.type == kind}
    assert "layers.0.residual_group.layers.0.convffn.fc1" in rounded
    assert not any(name.endswith(("attn_atd.wq", "attn_atd.wk", "conv_first", "upsample.0")) for name in rounded)


def test_int8_needs_a_layer_that_may_be(content, network, monkeypatch):
    monkeypatch.setattr("ppexport.backends.litert.litert_precision.group_of", lambda module: None)
    with pytest.raises(ExportError, match="no layer of pp_atd_light may be int8"):
        narrow_weights(content, "int8", card_of(network))


def test_the_converter_is_silent_and_tells_its_stages(capfd):
    steps = []
    module = torch.nn.Conv2d(3, 4, 1).eval()
    converter = import_converter(steps.append).signature("main", module, (torch.rand(1, 3, 8, 8),))
    converter.convert()
    assert capfd.readouterr() == ("", "")
    assert steps == [
        "tracing the rewritten twin", "simplifying what was traced", "lowering it, operator by operator", "converting",
    ]  # fmt: skip


def test_a_stage_is_shown_once():
    steps = []
    stream = Stages(steps.append)
    for line in ("(00:00) [START] A > Lower to MLIR: x\n", "(00:01) [START] A > Lower to MLIR: y\n", "other\n"):
        stream.write(line)
    assert steps == ["lowering it, operator by operator"]


def test_a_failing_converter_is_one_sentence(network, tmp_path, monkeypatch):
    def fail(*_):
        raise NotImplementedError("aten.nothing has no lowering\nTraceback")

    monkeypatch.setattr("ppexport.backends.litert.convert_litert.rewrite", fail)
    with pytest.raises(ExportError, match=r"^litert-torch cannot convert the twin: aten.nothing has no lowering$"):
        ppexport.export(network, backend="litert", size=SIZE, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def without_facts(content):
    return edit(content, lambda model: setattr(model, "metadata", []))


def cut_off(content):
    return content[: len(content) // 2]


def no_flatbuffer(content):
    return b"PK\3\4" + content[4:8].replace(b"TFL3", b"ZIPS") + content[8:]


def renamed(content):
    def change(model):
        for signature in model.signatureDefs:
            signature.outputs[0].name = "other"

    return edit(content, change)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_facts, "ppexport.capacities is None, the manifest says '256,512'"),
        (cut_off, "LiteRT|damaged"),
        (no_flatbuffer, "is not a LiteRT file"),
        (renamed, "but the manifest says"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_refused(artifact, content, tmp_path, damage, says):
    folder = with_file(artifact, tmp_path / "a", damage(content))
    with pytest.raises(ArtifactError, match=says):
        ppexport.open_artifact(folder)


def test_a_file_of_other_capacities_is_refused(artifact, content, tmp_path):
    folder = with_file(artifact, tmp_path / "a", content, capacities=[512])
    with pytest.raises(ArtifactError, match="ppexport.capacities is '256,512'"):
        ppexport.open_artifact(folder)


def test_a_capacity_without_a_signature_names_those_there_are(content, lr):
    with pytest.raises(ArtifactError, match="has signatures capacity_256, capacity_512, not 'capacity_384'"):
        Session(content, "m", 1).run({"lr": lr, "slots": np.zeros((1, 384), np.int32)})


def test_a_changed_file_is_refused(artifact, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(artifact, folder)
    opened = read_artifact(folder)
    (folder / MODEL).write_bytes(b"TFL3" * 4)
    with pytest.raises(ArtifactError, match="was changed"):
        find_backend("litert").open(Artifact(opened.path, replace(opened.manifest)))


def test_a_file_without_names_cannot_be_looked_into(content):
    with pytest.raises(ArtifactError, match="does not tell its tensors"):
        LiteRTProbe(without_facts(content), "m")


@pytest.mark.parametrize("module", ["ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated"])
def test_a_package_that_is_incomplete_is_named(module, artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match=f"{module} cannot be loaded here .* 'litert-run' of ppexport again"):
        ppexport.open_artifact(artifact)


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("[" * 100_000, "does not tell"),
        ("null", "does not tell"),
        ('{"inside.layers.0": [5, []]}', "does not tell"),
        ('{"inside.layers.0": ["a", [["RESHAPE", {}]]]}', "does not tell"),
        ('{"inside.layers.0": ["a", [["RESHAPE", [1e400]]]]}', "does not tell"),
        ('{"inside.layers.0": ["a", [["TRANSPOSE", "ab"]]]}', "does not tell"),
        ('{"inside.layers.0": ["a", [["TRANSPOSE", [3, 4]]]]}', "cannot be looked into"),
        ('{"inside.layers.0": ["a", [["RESHAPE", [7, 7]]]]}', "cannot be looked into"),
        ('{"inside.layers.0": ["a", [["RESHAPE", []]]]}', "cannot be looked into"),
        ('{"inside.categories.0": ["a", []], "inside.categories.1": ["b", []]}', "cannot be looked into: all input"),
        ('{"inside.tokens.0": ["missing", []]}', "cannot be looked into: no tensor is called missing"),
    ],
    ids=range(11),
)
def test_what_a_file_shows_is_checked(inside, says):
    file = File()
    a, b = file.given(np.ones((2, 3), np.float32), "a"), file.given(np.ones(4, np.float32), "b")
    outputs = [file.add("ABS", [a], (2, 3)), file.add("ABS", [b], (4,))]

    def rename(model):
        model.signatureDefs[0].outputs[1].name = "impure_tokens"

    content = edit(file.content(*outputs), add_facts({INSIDE: inside}), rename)

    def look():
        probe = LiteRTProbe(content, "m", 1)
        probe.run(file.inputs)
        probe.layers(file.inputs)

    with pytest.raises(ArtifactError, match=f"^m {says}"):
        look()


@pytest.mark.parametrize("threads", [0, "2", 10**6])
def test_threads_are_checked(artifact, threads):
    with pytest.raises(InputError, match="threads"):
        ppexport.open_artifact(artifact, threads=threads)
