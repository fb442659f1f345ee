"""Exporting, the artifact folder, and opening it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, golden_network, photo
from small_networks import SIZE as SMALL
from small_networks import shortened, small_network

import ppexport
from ppexport.device.artifact import MANIFEST, parse_manifest, read_artifact
from ppexport.device.picture import to_input
from ppexport.errors import ArtifactError, ExportError, InputError
from ppexport.files import sha256_file
from ppexport.networks.architecture import find_architecture


def test_the_folder_holds_one_model_and_its_manifest(artifact):
    assert sorted(f.name for f in artifact.iterdir()) == [MANIFEST, "model.onnx"]
    assert sum(f.stat().st_size for f in artifact.iterdir()) < 6e6
    manifest = read_artifact(artifact).manifest
    assert manifest.size == [37, 53]
    assert manifest.tokens == 48 * 64
    assert manifest.capacities == [48 * 64]
    assert manifest.weights["sha256"] == ppexport.load_network("pp_atd_light_x2").card.weights.sha256
    assert {"torch", "onnx", "ppexport"} <= set(manifest.versions)


@pytest.mark.parametrize(("levels", "named"), [((0, 255), "0 to 255"), ((-1, 1), "-1 to 1")])
def test_values_that_are_not_those_of_0_to_1_are_warned_of(artifact, levels, named):
    lr = np.full((1, 3, 37, 53), levels[0], np.float32)
    lr[0, 1, 5, 5] = levels[1]
    for use in (
        ppexport.open_artifact(artifact),
        lambda image: ppexport.pure_mask(np.ascontiguousarray(image[0].transpose(1, 2, 0))),
    ):
        with pytest.warns(UserWarning, match=rf"values go from {named}, but they should lie in \[0, 1\]: divide"):
            use(lr)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # A picture that a network made may lie a little outside.
            use((lr - np.float32(levels[0])) / np.float32(levels[1] - levels[0]) * np.float32(1.3) - np.float32(0.2))


def test_the_graph_is_what_boards_read(artifact):
    model = onnx.load(artifact / "model.onnx")
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"lr": [1, 3, 37, 53], "sr": [1, 3, 74, 106], "impure_tokens": [1]}
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["ppexport.name"] == "pp_atd_light_x2"
    assert facts["ppexport.size"] == "37x53"
    assert facts["ppexport.scale"] == "2"
    assert facts["ppexport.card_sha256"] == read_artifact(artifact).manifest.card_sha256
    forbidden = {"TopK", "NonZero", "If", "Loop", "Scan", "CumSum", "Gelu", "Attention"}
    assert not forbidden & {node.op_type for node in model.graph.node}


def test_no_constant_grows_with_the_image(artifact):
    model = onnx.load(artifact / "model.onnx")
    constants = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    assert max(t.ByteSize() for t in (*model.graph.initializer, *constants)) < 100_000


def test_a_runner_says_what_it_did(artifact):
    runner = ppexport.open_artifact(artifact)
    lr = to_input(photo(37, 53))
    result = runner(lr)
    assert result.sr.shape == (1, 3, 74, 106)
    assert result.sr.dtype == np.float32
    mask = ppexport.pure_mask(photo(37, 53))
    assert result.impure_tokens == int((~mask).sum())
    assert result.capacity == 48 * 64


@pytest.mark.parametrize(
    "lr",
    [
        np.zeros((1, 3, 37, 53)),
        np.zeros((1, 3, 53, 37), np.float32),
        np.zeros((3, 37, 53), np.float32),
        [[0.0]],
        np.full((1, 3, 37, 53), np.nan, np.float32),
    ],
)
def test_a_runner_refuses_other_inputs(artifact, lr):
    with pytest.raises(InputError, match="float32 image|NaN"):
        ppexport.open_artifact(artifact)(lr)


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def change(folder, **fields):
    path = folder / MANIFEST
    data = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "not the manifest"),
        ({"version": 99}, "version 99"),
        ({"scale": None}, "'scale'"),
        ({"scale": "2"}, "'scale'"),
        ({"size": [37]}, r"\[h, w\]"),
        ({"size": [37, -1]}, "'size'"),
        ({"files": {}}, "no model file"),
        ({"files": {"../model.onnx": "0"}}, "plain file name"),
        ({"files": {"/etc/passwd": "0"}}, "plain file name"),
        ({"files": {"C:model.onnx": "0"}}, "plain file name"),
        ({"files": {"other.onnx": "0"}}, "other.onnx is missing"),
        ({"backend": "abacus"}, "abacus"),
    ],
)
def test_bad_manifests(copy, fields, message):
    change(copy, **fields)
    with pytest.raises(ArtifactError, match=message):
        ppexport.open_artifact(copy)


def test_a_changed_model_is_refused(copy):
    model = copy / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match its hash"):
        ppexport.open_artifact(copy)


def test_links_and_wrecks_are_refused(copy, tmp_path):
    model = copy / "model.onnx"
    model.rename(tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="plain file"):
        ppexport.open_artifact(copy)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        ppexport.open_artifact(copy)
    with pytest.raises(ArtifactError, match="not an artifact"):
        ppexport.open_artifact(tmp_path)


def test_a_model_no_runtime_can_load(copy):
    model = copy / "model.onnx"
    for content, message in ((b"not a model", "not an ONNX file"), (b"\x08\x08", "cannot load")):
        model.write_bytes(content)
        change(copy, files={"model.onnx": sha256_file(model)})
        with pytest.raises(ArtifactError, match=message):
            ppexport.open_artifact(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "toaster"}, "backend is one of"),
        ({"precision": "fp4"}, "precision of --backend onnx is one of"),
        ({"capacities": [256, 128]}, "ascending"),
        ({"out": "missing/folder"}, "is not a folder"),
    ],
)
def test_bad_exports(arguments, message, x2, tmp_path):
    given = {"backend": "onnx", "size": (16, 16), "out": tmp_path / "a", **arguments}
    with pytest.raises(InputError, match=message):
        ppexport.export(x2, **given)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_not_overwritten(x2, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        ppexport.export(x2, backend="onnx", size=(16, 16), out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        ppexport.export(x2, backend="onnx", size=(16, 16), out=tmp_path / "file")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_failed_export_leaves_the_old_artifact(copy, monkeypatch, x2):
    before = read_artifact(copy)

    def broken(*args):
        raise ExportError("no")

    monkeypatch.setattr("ppexport.backends.onnx.build_onnx.build_graph", broken)
    with pytest.raises(ExportError):
        ppexport.export(x2, backend="onnx", size=(16, 16), out=copy, force=True)
    assert read_artifact(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_export_replaces_an_older_artifact_and_keeps_graphs_on_request(copy, tmp_path):
    network = shortened(deepcopy(golden_network("atd_light_x4_random", "atd_light")), 1)
    with pytest.raises(InputError, match="holds an artifact of the model pp_atd_light_x2 x2: say --force"):
        ppexport.export(network, backend="onnx", size=(16, 16), out=copy)
    with pytest.raises(InputError, match="holds an artifact of size 37x53: say --force"):
        ppexport.export(ppexport.load_network("pp_atd_light_x2"), backend="onnx", size=(16, 16), out=copy)
    assert read_artifact(copy).manifest.size == [37, 53]
    ppexport.export(network, backend="onnx", size=(16, 16), out=copy, keep=tmp_path / "graphs", force=True)
    manifest = read_artifact(copy).manifest
    assert (manifest.arch, manifest.scale, manifest.size) == ("atd_light", 4, [16, 16])
    assert sorted(f.name for f in (tmp_path / "graphs").iterdir()) == ["1-traced.onnx", "2-simplified.onnx"]
    assert sorted(f.name for f in copy.iterdir()) == [MANIFEST, "model.onnx"]
    assert ppexport.open_artifact(copy)(np.zeros((1, 3, 16, 16), np.float32)).impure_tokens == 256


def test_a_crashing_simplifier_is_an_error(monkeypatch, tmp_path):
    from ppexport.backends.onnx import simplify

    (tmp_path / "in.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="onnxsim failed"):
        simplify.simplify_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    monkeypatch.setattr(simplify, "TIMEOUT", 0.01)
    with pytest.raises(ExportError, match="did not finish"):
        simplify.simplify_file(tmp_path / "in.onnx", tmp_path / "out.onnx")


@pytest.mark.slow
def test_a_large_size_stays_small(tmp_path):
    """The file, and what exporting it needs: a child that reports the peak of its memory and of its own children."""
    code = "; ".join((
        "import resource, sys",
        "from ppexport.cli import run",
        "sys.argv[1:] = ['export', 'pp_atd_light_x2', '--size', '256x256', '-o', 'large']",
        "import atexit",
        "peak = lambda who: resource.getrusage(who).ru_maxrss",
        "atexit.register(lambda: print('PEAK', max(peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN))))",
        "run()",
    ))  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sum(f.stat().st_size for f in (tmp_path / "large").iterdir()) < 6e6
    (kilobytes,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PEAK"))
    assert kilobytes * 1024 < 3e9


def test_the_self_check_notices_every_output(tmp_path):
    from onnx import numpy_helper

    from ppexport.backends.onnx.export_onnx import check_graph

    network = small_network()
    artifact = ppexport.export(network, backend="onnx", size=SMALL, out=tmp_path / "artifact")
    twin = ppexport.make_twin(network, size=SMALL)
    job = SimpleNamespace(
        capacities=(twin.capacity,), mask="graph", precision="fp32", architecture=find_architecture("pp_atd_light"),
    )  # fmt: skip
    check_graph(artifact / "model.onnx", twin, job)
    lying = onnx.load(artifact / "model.onnx")
    for node in lying.graph.node:
        node.output[:] = ["true_count" if name == "impure_tokens" else name for name in node.output]
        node.input[:] = ["true_count" if name == "impure_tokens" else name for name in node.input]
    zero = numpy_helper.from_array(np.zeros(1, np.int32), "zero")
    lying.graph.initializer.append(zero)
    lying.graph.node.append(onnx.helper.make_node("Identity", ["zero"], ["impure_tokens"], name="lie"))
    onnx.save(lying, tmp_path / "lying.onnx")
    with pytest.raises(ExportError, match="differs from the twin"):
        check_graph(tmp_path / "lying.onnx", twin, job)
    damaged = onnx.load(artifact / "model.onnx")
    (bias,) = (i for i in damaged.graph.initializer if i.name == "norm.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), "norm.bias"))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    with pytest.raises(ExportError, match="differs from the twin"):
        check_graph(tmp_path / "damaged.onnx", twin, job)


@pytest.mark.parametrize("fields", [{"size": [48, 50]}, {"scale": 4}, {"capacities": [128]}, {"card_sha256": "0" * 64}])
def test_a_manifest_that_does_not_fit_its_model(copy, fields):
    change(copy, **fields)
    with pytest.raises(ArtifactError, match="the manifest says"):
        ppexport.open_artifact(copy)


@pytest.mark.parametrize("options", [{}, {"checkpoint": "/evil.safetensors"}, {"name": "x"}])
def test_manifest_options_are_the_architectures(copy, options):
    change(copy, options=options)
    with pytest.raises(ArtifactError, match="option 'colors' is missing or is not int"):
        ppexport.open_artifact(copy)


def test_a_users_own_files_survive_a_new_export(copy, x2):
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        ppexport.export(x2, backend="onnx", size=(16, 16), out=copy)
    assert (copy / "notes.txt").read_text() == "mine"


def test_changed_weights_do_not_keep_the_files_hash():
    from ppexport.networks.load import card_of

    network = ppexport.load_network("pp_atd_light_x2")
    assert card_of(network).weights.file == "weights.safetensors"
    network.norm.bias += 1
    assert card_of(network).weights.file == "memory"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"backend": "onnx", "pad_heads": False}, "pad_heads is an option of --backend tensorrt, not of onnx"),
        ({"backend": "onnx", "target": "iOS16"}, "target is an option of --backend coreml, not of onnx"),
        ({"backend": "tensorrt", "interface": "image"}, "interface is an option of --backend coreml, not of tensorrt"),
        (
            {"backend": "coreml", "keep": "graphs"},
            "keep is an option of --backend onnx, qnn, tensorrt, web, not of coreml",
        ),
        ({"backend": "onnx", "colour": "red"}, "no backend has an option 'colour'; those of onnx: keep, flavour"),
        ({"backend": "onnx", "precision": "int8"}, "no calibration is bundled for these weights"),
        ({"backend": "onnx", "precision": "fp16", "flavour": "ort"}, "fp16 is written into flavour portable"),
        (
            {"backend": "onnx", "calibration": "c.npz"},
            "--calibration is for --precision fp16 or int8 or mixed of --backend onnx, not for fp32",
        ),
        ({"backend": "tensorrt", "precision": "fp16", "recipe": "r.yaml"}, "--recipe is for --precision int8 or mixed"),
        ({"backend": "onnx", "flavour": "tensorrt"}, "flavour of --backend onnx is one of portable, ort"),
    ],
)
def test_options_of_another_backend_are_refused(wish, message, x2, tmp_path):
    with pytest.raises(InputError, match=message):
        ppexport.export(x2, size=(16, 16), out=tmp_path / "a", **wish)
    assert not list(tmp_path.iterdir())


MANIFESTS = sorted((GOLDEN / "manifests").glob("*.json"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_of_older_versions_are_read(path):
    stored = json.loads(path.read_text())
    manifest = parse_manifest(path.read_text(), path.name)
    drawer = stored.get("engine", {})
    assert manifest.engine == {}
    assert manifest.activation_bytes == drawer.get("activation_bytes", 0)
    assert manifest.quantisation == drawer.get("quantisation", {})
    assert manifest.build == {key: drawer[key] for key in ("target", "interface") if key in drawer}
    assert manifest.multiple == 16
    for name in ("files", "weights", "size", "capacities", "tokens", "precision", "options"):
        assert getattr(manifest, name) == stored[name]
    assert parse_manifest(manifest.to_json(), "again") == manifest


def test_the_stored_manifests_use_every_part_of_the_drawer():
    drawers = [json.loads(path.read_text()).get("engine", {}) for path in MANIFESTS]
    assert {"activation_bytes", "quantisation", "target", "interface"} <= {key for drawer in drawers for key in drawer}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "field 'surprise' is not one of a manifest"),
        (
            {"options": {"colors": "8", "window": 8, "csmf": True, "compensation": "value"}},
            "option 'colors' .*not int",
        ),
        ({"options": {"colors": 8, "window": 8, "csmf": 1, "compensation": "value"}}, "option 'csmf' .* not bool"),
        ({"options": {"colors": 40, "window": 8, "csmf": True, "compensation": "value"}}, "2 to 16 colours, not 40"),
        ({"tokens": 512}, "pads to 256 tokens, not 512"),
        ({"mask": "sometimes"}, "mask 'sometimes' is not one of"),
        ({"capacities": []}, "a network with a mask has capacities"),
    ],
)
def test_a_manifest_that_says_too_much_or_the_wrong_thing_is_refused(changes, message):
    stored = parse_manifest((GOLDEN / "manifests" / "v4_onnx.json").read_text(), "m")
    data = {**json.loads(stored.to_json()), **changes}
    with pytest.raises(ArtifactError, match=message):
        parse_manifest(json.dumps(data), "m")
