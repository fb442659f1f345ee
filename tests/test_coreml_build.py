"""The Core ML builder: packages of a small twin, their names, metadata, functions, and the faults it refuses."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

import core_ml_stand_in
from conftest import golden_network
from small_networks import ROUTING, SIZE, beyond_half, shortened, small_network

import ppexport
from ppexport.backends.backend import BuildJob, find_backend
from ppexport.backends.coreml import run_mac as device
from ppexport.backends.coreml.convert import MODEL, build_for_coreml, check_package
from ppexport.backends.coreml.evaluated import PackageProbe, Session
from ppexport.backends.coreml.evaluator.evaluate import Evaluator
from ppexport.backends.coreml.mil_program import coremltools, path_of_scope
from ppexport.backends.coreml.package import read_package
from ppexport.backends.coreml.placement import place
from ppexport.backends.coreml.precision import computes_half
from ppexport.backends.coreml.specification import decode, encode
from ppexport.device.capacities import capacity_set
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, ExportError, InputError, UnavailableError
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import card_of
from ppexport.networks.network import Trace
from ppexport.parity.inputs import parity_inputs
from ppexport.parity.run import run_parity
from ppexport.twin.twin import make_twin

pytest_plugins = ["apple_fixtures"]


def weight_bytes(path):
    return sum(f.stat().st_size for f in path.rglob("weights/*"))


def make_job(folder, precision, capacities=(256,), network=None, size=SIZE, mask="graph", step=print, **options):
    network = network or small_network()
    return BuildJob(
        card_of(network), find_architecture(network.arch), size, precision, tuple(capacities), mask,
        find_backend("coreml").options()(**options), None, network, folder, step,
    )  # fmt: skip


def build(folder, precision, capacities=(256,), **rest):
    folder.mkdir(exist_ok=True)
    steps = []
    job = make_job(folder, precision, capacities, step=steps.append, **rest)
    name = build_for_coreml(job)
    assert steps[-1] == "comparing with the twin"
    return job.twin(), folder / name


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return build(tmp_path_factory.mktemp("half"), "fp16", network=small_network(layers=2))


def reference(twin, lr):
    trace = Trace()
    sr, impure = twin(torch.from_numpy(lr), trace=trace)
    return sr.numpy(), int(impure), torch.stack([c.reshape(-1) for c in trace.categories]).numpy()


def test_half_precision_is_near_the_twin_on_all_inputs(half):
    twin, path = half
    debug = PackageProbe(path, ROUTING)
    for item in parity_inputs(SIZE, 2):
        sr, impure, categories = reference(twin, item.lr)
        inside = debug.run({"lr": item.lr}, categories)
        assert psnr(sr, inside.sr, 1.0) > 60, item.name
        assert inside.impure_tokens == impure
        assert inside.categories.shape == categories.shape == (2, 256)
        labels = twin.pure_pass.labels(twin.pad(torch.from_numpy(item.lr))).numpy()
        np.testing.assert_array_equal(inside.labels, labels)
        np.testing.assert_array_equal(inside.pure, twin.pure_pass(twin.pad(torch.from_numpy(item.lr))).numpy())
    layers = debug.layers({"lr": item.lr}, categories)
    trace = Trace()
    twin(torch.from_numpy(item.lr), trace=trace)
    for ours, theirs in zip(layers, trace.tokens, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=0.05)


def test_half_precision_is_where_it_is_safe(half):
    function, computes = read_package(half[1]).functions["main"], computes_half(half[0])
    seen = set()
    for op in function.operations:
        module = decode(op.outputs[0].name)
        if op.type in ("const", "cast") or module is None:
            continue
        kinds = {port.type.element.name for port in op.outputs}
        assert ("fp16" in kinds) <= computes(module), op.name
        assert ("fp32" in kinds) <= (not computes(module)), op.name
        seen |= kinds
    assert {"fp16", "fp32", "int32", "bool"} <= seen


def test_names_tell_the_module(half):
    twin, path = half
    function = read_package(path).functions["main"]
    modules = {name for name, _ in twin.named_modules()}
    for op in function.operations:
        name = op.outputs[0].name
        assert name.isidentifier()
        if op.type == "const" or name in function.outputs:
            continue
        assert decode(name) in modules, name
        assert op.name == name
    assert len({p.name for op in function.operations for p in op.outputs}) == sum(
        len(op.outputs) for op in function.operations
    )


def test_a_package_says_what_it_is(half):
    spec = coremltools().models.MLModel(str(half[1]), skip_model_load=True).get_spec()
    card, said = card_of(half[0].network), spec.description.metadata
    assert (said.author, said.license, spec.specificationVersion) == ("ppexport", card.licence, 9)
    assert "super-resolution x2 of 16x16 images" in said.shortDescription
    inputs, outputs = spec.description.input, spec.description.output
    assert [f.name for f in inputs] == ["lr"]
    assert [f.name for f in outputs] == ["sr", "impure_tokens"]
    assert all(f.shortDescription for f in (*inputs, *outputs))
    package = read_package(half[1])
    assert package.facts == dict(said.userDefined)
    assert package.facts["ppexport.capacities"] == "256"
    assert package.facts["ppexport.card_sha256"] == card.hash()
    assert str(package.functions["main"].inputs[0].type) == "fp32 (1, 3, 16, 16)"


def full_and_fitting(path, twin, capacities, inputs):
    """(input, capacity, full function's picture, that of *capacity*) wherever the picture fits; both of one routing."""
    debug = PackageProbe(path, ROUTING)
    for item in inputs:
        _, impure, categories = reference(twin, item.lr)
        fed = {c: {"lr": item.lr, "slots": np.zeros((1, c), np.int32)} for c in capacities}
        full = debug.run(fed[capacities[-1]], categories)
        assert full.impure_tokens == impure
        for capacity in capacities[:-1]:
            if impure <= capacity:
                inside = debug.run(fed[capacity], categories)
                assert inside.impure_tokens == impure
                yield item, capacity, full, inside


def check_exact(cases):
    """The same picture at every capacity, but for the order of sums in products of another size: here none differs."""
    assert len(cases) >= 3
    for item, capacity, full, inside in cases:
        np.testing.assert_array_equal(full.categories, inside.categories)
        assert psnr(full.sr, inside.sr, 1.0) > 110, (item.name, capacity)


def test_a_capacity_set_in_fp16_is_exact(coreml_set):
    twin = make_twin(small_network(), SIZE)
    cases = list(full_and_fitting(coreml_set / MODEL, twin, [128, 256], parity_inputs(SIZE, 2)))
    check_exact(cases)


def test_a_capacity_set_shares_its_weights_and_is_exact(tmp_path):
    twin, path = build(tmp_path, "fp32", (128, 256))
    package = read_package(path)
    assert set(package.functions) == {"capacity_128", "capacity_256"}
    assert package.default == "capacity_256"
    _, single = build(tmp_path / "one", "fp32")
    assert weight_bytes(path) < 1.1 * weight_bytes(single)
    described = coremltools().utils.load_spec(str(path)).description.functions
    assert [f.name for f in described] == ["capacity_128", "capacity_256"]
    assert all(f.shortDescription for i in described for f in (*i.input, *i.output))
    cases = list(full_and_fitting(path, twin, [128, 256], parity_inputs(SIZE, 2)))
    check_exact(cases)
    for item, _, _, inside in cases:
        assert psnr(reference(twin, item.lr)[0], inside.sr, 1.0) > 100, item.name
    with pytest.raises(InputError, match="the package has functions capacity_.*, not 'capacity_64'"):
        PackageProbe(path, ROUTING).session.run({"lr": item.lr, "slots": np.zeros((1, 64), np.int32)})


@pytest.mark.parametrize("target", ["iOS16", pytest.param("iOS17", marks=pytest.mark.slow)])
def test_older_targets_and_odd_sizes(target, tmp_path):
    size = (13, 20)
    twin, path = build(tmp_path, "fp32", (512,), size=size, target=target)
    assert coremltools().utils.load_spec(str(path)).specificationVersion == {"iOS16": 7, "iOS17": 8}[target]
    item = parity_inputs(size, 2)[0]
    sr, impure, categories = reference(twin, item.lr)
    inside = PackageProbe(path, ROUTING).run({"lr": item.lr}, categories)
    assert inside.sr.shape == (1, 3, 26, 40)
    assert psnr(sr, inside.sr, 1.0) > 100
    assert inside.impure_tokens == impure


def test_pictures_instead_of_tensors(tmp_path, monkeypatch):
    twin, path = build(tmp_path, "fp16", interface="image")
    package = read_package(path)
    assert package.images
    described = coremltools().utils.load_spec(str(path)).description
    sizes = {f.name: (f.type.imageType.height, f.type.imageType.width) for f in (*described.input, *described.output)}
    assert sizes == {"lr": (16, 16), "sr": (32, 32), "impure_tokens": (0, 0)}
    item = parity_inputs(SIZE, 2)[0]
    expected, count, categories = reference(twin, item.lr)
    debug = PackageProbe(path, ROUTING)
    inside = debug.run({"lr": item.lr}, categories)
    assert inside.impure_tokens == count
    assert np.abs(expected.clip(0, 1) - inside.sr).max() < 1.5 / 255
    raw = Evaluator(package).run({"lr": np.rint(item.lr * 255).astype(np.float32)})["sr"]
    assert np.array_equal(raw, np.rint(raw))
    assert 0 <= raw.min() <= raw.max() <= 255
    # On a Mac, where a picture has four channels.
    monkeypatch.setattr(device, "import_module", core_ml_stand_in.import_module)
    found = device.open_function(str(path), "ALL", None).predict({"lr": item.lr})
    np.testing.assert_array_equal(found["sr"], debug.run({"lr": item.lr}).sr)


def test_a_network_without_masks(tmp_path):
    network = shortened(copy.deepcopy(golden_network("atd_light_x2_trained", "atd_light")), 1)
    twin, path = build(tmp_path, "fp32", network=network)
    item = parity_inputs(SIZE, 2)[0]
    sr, impure, categories = reference(twin, item.lr)
    inside = PackageProbe(path, ROUTING).run({"lr": item.lr}, categories)
    assert psnr(sr, inside.sr, 1.0) > 100
    assert inside.impure_tokens == impure == 256
    assert inside.pure is None
    assert inside.labels is None


def test_the_mask_as_an_input(tmp_path):
    twin, path = build(tmp_path, "fp32", mask="input")
    item = parity_inputs(SIZE, 2)[1]
    mask = np.zeros((1, 1, 16, 16), np.float32)
    mask[..., :8, :] = 1
    sr, impure = twin(torch.from_numpy(item.lr), torch.from_numpy(mask))
    found = Session(path).run({"lr": item.lr, "mask": mask})
    assert psnr(sr.numpy(), found["sr"], 1.0) > 100
    assert found["impure_tokens"].item() == int(impure) == 128


def test_weights_of_8_bits_are_smaller(half, tmp_path):
    twin, path = build(tmp_path, "w8", network=small_network(layers=2))
    assert weight_bytes(path) < 0.75 * weight_bytes(half[1])
    item = parity_inputs(SIZE, 2)[0]
    sr, _, categories = reference(twin, item.lr)
    assert psnr(sr, PackageProbe(path, ROUTING).run({"lr": item.lr}, categories).sr, 1.0) > 35


def test_what_keeps_from_dividing_by_zero_is_a_number_of_fp16(half):
    # The twin's guard, 1e-12, is 0 in fp16.
    operations = read_package(half[1]).functions["main"].operations
    constants = {op.outputs[0].name: op.value for op in operations if op.type == "const"}
    read = [constants.get(name) for op in operations if op.type == "maximum" for name in op.reads("y")]
    guards = [value for value in read if value is not None and value.dtype == np.float32]
    assert guards
    assert all(value == 2.0**-14 for value in guards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp64"}, "precision of --backend coreml is one of fp32, fp16, w8, w8a8, not 'fp64'"),
        ({"target": "iOS15"}, "target"),
        ({"interface": "video"}, "interface"),
        (
            {"target": "iOS17", "capacities": [128, 256]},
            "a capacity set is a package of several functions, which needs iOS18",
        ),
        ({"flavour": "ort"}, "flavour is an option of --backend onnx, web, not of coreml"),
    ],
)
def test_impossible_options(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        ppexport.export(small_network(), backend="coreml", size=SIZE, out=tmp_path / "x", **options)
    assert not any(tmp_path.iterdir())


def test_a_package_that_is_not_ours_cannot_be_looked_into(tmp_path):
    from coreml_programs import saved

    path = saved(nn.Conv2d(3, 3, 3), [torch.rand(1, 3, 8, 8)], tmp_path)
    with pytest.raises(ArtifactError, match="do not contain the layers"):
        PackageProbe(path, ROUTING)
    assert place(read_package(path).function()).operations > 0


def test_a_changed_weight_fails_the_comparison(half, tmp_path):
    twin, path = half
    job = make_job(tmp_path, "fp16")
    copied = shutil.copytree(path, tmp_path / MODEL)
    check_package(copied, twin, job)
    (weights,) = copied.rglob("weight.bin")
    data = bytearray(weights.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 6000, 2):
        data[at + 1] ^= 0x40
    weights.write_bytes(data)
    with pytest.raises((ExportError, ArtifactError)):
        check_package(copied, twin, job)


def test_numbers_beyond_fp16_are_refused(tmp_path):
    with pytest.raises(ExportError, match="the package gives NaN or infinite values: .*65504.*export it as fp32$"):
        ppexport.export(beyond_half(small_network()), backend="coreml", precision="fp16", size=SIZE, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("version", ["2.4.0", "2.5.1", "3.0.0rc1"])
def test_a_numpy_that_coremltools_fails_with_is_named_at_once(version, tmp_path, monkeypatch):
    network = small_network()
    monkeypatch.setattr(np, "__version__", version)
    stages = []
    with pytest.raises(UnavailableError, match=rf"with NumPy {version}, .*: pip install 'numpy<2\.4'$"):
        ppexport.export(network, backend="coreml", size=SIZE, out=tmp_path / "a", step=stages.append)
    assert stages == []


def test_placement_names_operations_and_modules(half, tmp_path):
    report = place(read_package(half[1]).function())
    assert 0 < len(report.leaving) < report.operations
    reasons = {item.reason for item in report.leaving}
    assert reasons == {"fp32", "integer", "data-dependent gather", "no kernel"}
    scatter = next(item for item in report.leaving if item.operation == "scatter_along_axis")
    assert scatter.module == "layers.0.residual_group.layers.0.attn_aca.router.sort"
    assert scatter.reason == "no kernel"
    assert report.crossings > 4
    everything = report.to_dict()
    assert sum(everything["reasons"].values()) == sum(everything["modules"].values()) == len(report.leaving)


def test_scopes_and_names():
    twin = make_twin(small_network(layers=2), SIZE)
    assert path_of_scope(twin, ["0", "residual_group", "1", "attn_aca", "router"]) == (
        "layers.0.residual_group.layers.1.attn_aca.router"
    )
    assert path_of_scope(twin, ["layers.0", "conv"]) == "layers.0.conv"
    assert path_of_scope(twin, ["upsample", "0"]) == "upsample.0"
    assert path_of_scope(twin, []) == ""
    assert path_of_scope(twin, ["pure_pass", "nonsense", "0"]) == "pure_pass"
    names = [encode(p, "reduce_sum", n) for p, n in (("", 0), ("a.b_1.0", 0), ("a.b_1.0", 1))]
    assert names == ["___reduce_sum", "a__b_1__0___reduce_sum", "a__b_1__0___reduce_sum_1"]
    assert [decode(name) for name in names] == ["", "a.b_1.0", "a.b_1.0"]
    assert decode(encode("norm", "layer_norm", 12)) == "norm"
    assert decode("var_17") is None


LAYER = "layers.0.residual_group.layers.3"


@pytest.mark.parametrize(
    ("module", "half"),
    [
        ("pure_pass", False),
        (f"{LAYER}.attn_aca.router.sort", False),
        (f"{LAYER}.attn_aca.dense", False),
        (f"{LAYER}.attn_aca", True),
        (f"{LAYER}.attn_win.proj", True),
        (f"{LAYER}.convffn.dwconv.0", True),
        (f"{LAYER}.attn_atd", False),
        (f"{LAYER}.attn_atd.wv", True),
        (f"{LAYER}.norm1", False),
        (LAYER, False),
        ("layers.0.conv", False),
        ("upsample.0", False),
        ("", False),
    ],
)
def test_modules_in_half_precision(module, half):
    assert computes_half(make_twin(small_network(), SIZE))(module) is half


def test_export_and_open(coreml_set):
    runner = ppexport.open_artifact(coreml_set)
    m = runner.artifact.manifest
    assert (m.backend, m.precision, m.capacities, m.flavour) == ("coreml", "fp16", [128, 256], "portable")
    assert m.build == {"target": "iOS18", "interface": "tensor"}
    assert "coremltools" in m.versions
    twin = make_twin(small_network(), SIZE)
    used = set()
    for item in parity_inputs(SIZE, 2):
        sr, impure = twin(torch.from_numpy(item.lr))
        found = runner(item.lr)
        assert psnr(sr.numpy(), found.sr, 1.0) > 90
        assert found.impure_tokens == int(impure) <= found.capacity
        used.add(found.capacity)
    assert used == {128, 256}


def test_a_damaged_artifact_is_refused(coreml_set, tmp_path):
    copied = shutil.copytree(coreml_set, tmp_path / "copy")
    (weights,) = copied.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="does not match its hash"):
        ppexport.open_artifact(copied)
    shutil.rmtree(copied / MODEL)
    with pytest.raises(ArtifactError, match=r"model\.mlpackage is missing"):
        ppexport.open_artifact(copied)


def test_a_package_of_another_export_is_refused(coreml_set, tmp_path):
    copied = shutil.copytree(coreml_set, tmp_path / "copy")
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text.replace(card_of(small_network()).hash(), "0" * 64))
    with pytest.raises(ArtifactError, match=r"ppexport\.card_sha256 is .* the manifest says '0000"):
        ppexport.open_artifact(copied)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "precision", "least"), [(2, "fp16", 70), (4, "fp16", 70), (2, "w8", 30)])
def test_the_whole_network_meets_its_gate(scale, precision, least, tmp_path):
    network = ppexport.load_network(f"pp_atd_light_x{scale}")
    out = ppexport.export(network, backend="coreml", size=(32, 32), out=tmp_path / "x", precision=precision)
    assert sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) < 5e6
    report = run_parity(network, ppexport.open_artifact(out), tmp_path / "run", lambda *_: None)
    rows = report.pairs[-1].rows
    assert report.passed, [(row.name, row.reason) for row in rows if not row.passed]
    assert all((row.injected or row.errors).psnr > least for row in rows)
    # Choices flip in half precision, and were looked into.
    assert any(row.tokens_db is not None for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_whole_network_in_a_capacity_set_is_exact(precision, tmp_path):
    size, network = (32, 32), ppexport.load_network("pp_atd_light_x2")
    capacities = capacity_set(size, 4)
    twin, path = build(tmp_path, precision, capacities, network=network, size=size)
    # A picture takes half a minute at every capacity.
    inputs = [item for item in parity_inputs(size, 2) if item.name in ("hubble_deep_field", "flat", "few_impure")]
    cases = list(full_and_fitting(path, twin, capacities, inputs))
    check_exact(cases)
    assert {capacity for _, capacity, _, _ in cases} == set(capacities[:-1])
