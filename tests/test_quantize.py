"""Calibration and the files made with it, on a network of two layers that holds every operator of the large ones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from calibrated import SIZE, crops_and_sources, lr_of
from conftest import photo
from onnx import TensorProto, numpy_helper
from shared import FREE_IMAGES
from small_networks import ROUTING as ROLES
from small_networks import beyond_half, small_network
from typer.testing import CliRunner

import ppexport
from ppexport.backends.backend import NEAR_TIE
from ppexport.backends.onnx import collect
from ppexport.backends.onnx.collect import calibrate, check_artifact
from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.qdq import int8_nodes, quantisable, write_int8
from ppexport.backends.onnx.quantised import audit, quantised
from ppexport.backends.onnx.run_onnxruntime import load
from ppexport.cli import app
from ppexport.cli.export import NOTES
from ppexport.device.artifact import read_artifact
from ppexport.device.picture import psnr
from ppexport.errors import InputError, UnavailableError
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import card_of
from ppexport.parity.references import choose_again
from ppexport.quantize.calibration import load_calibration
from ppexport.quantize.histogram import COLUMNS, sampled
from ppexport.quantize.recipe import (
    CALIBRATORS,
    GROUPS,
    Quantisation,
    Recipe,
    check_calibration,
    find_range,
    group_of,
    read_recipe,
    write_recipe,
)
from ppexport.twin.twin import make_twin

QKV = "/layers.0/residual_group/layers.0/wqkv/Gemm"
PP_ATD = find_architecture("pp_atd_light")
TOKENS = "/layers.0/residual_group/layers.1/output/Add_output_0"


@pytest.fixture(scope="module")
def small(calibrated):
    return calibrated


def coffee():
    return lr_of(photo(*SIZE))


def test_ranges_are_those_of_the_tensors(small):
    _, crops = crops_and_sources()
    names = [TOKENS, f"{QKV}_output_0"]
    copy = onnx.ModelProto()
    copy.CopyFrom(small.model)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = load(copy.SerializeToString(), "test")
    values = [session.run(names, {"lr": crop.lr}) for crop in crops]
    for i, name in enumerate(names):
        every = np.concatenate([v[i].reshape(-1) for v in values])
        assert small.calibration.figure(name, "low") == pytest.approx(every.min(), rel=1e-5)
        assert small.calibration.figure(name, "high") == pytest.approx(every.max(), rel=1e-5)
        assert small.calibration.figure(name, "count") == sum(sampled(v[i].reshape(-1)).size for v in values)
    assert small.calibration.figure("lr", "high") <= 1
    about = small.calibration.about
    assert (about.crops, about.size, about.warnings, len(about.images)) == (4, list(SIZE), ["a warning"], 4)


def test_a_killed_run_goes_on_and_ends_with_the_same_figures(small, tmp_path, monkeypatch):
    sources, crops = crops_and_sources()
    saves = []
    plain = collect.State.save

    def killed(state):
        plain(state)
        saves.append(state.done)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(collect.State, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrate(small.artifact, sources, crops, [], tmp_path / "c.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz.partial"]
    calibrate(small.artifact, sources, crops, [], tmp_path / "c.npz")
    assert saves == [1, 2, 3, 4]
    again = load_calibration(tmp_path / "c.npz")
    assert np.array_equal(again.histograms.counts, small.calibration.histograms.counts)
    assert np.array_equal(again.figures, small.calibration.figures)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_a_state_of_other_pictures_is_not_continued(small, tmp_path):
    sources, crops = crops_and_sources(2)
    other = collect.State(tmp_path / "c.npz.partial", "of another run", len(small.calibration.names))
    other.done = 2
    other.save()
    assert calibrate(small.artifact, sources, crops, [], tmp_path / "c.npz").figure("lr", "count") > 0


def test_nothing_routed_is_quantised(small):
    assert {group for _, group in quantisable(small.model)} == set(find_architecture("pp_atd_light").int8_groups)
    model = write_int8(small.model, small.calibration, Recipe(calibrator="max"))
    for name in int8_nodes(model):
        assert group_of(module_of_name(name.removesuffix("/product"))) in GROUPS
    ops = {n.op_type for n in model.graph.node if "attn_atd" in n.name or "router" in n.name or "pure_pass" in n.name}
    assert not ops & {"QuantizeLinear", "DequantizeLinear"}
    with pytest.raises(ValueError, match="similarity chooses the categories and stays in float"):
        Recipe(groups=("qkv", "similarity"))
    with pytest.raises(ValueError, match="'nonsense' is not a group"):
        Recipe(groups=("nonsense",))


def test_results_are_int8_where_that_is_asked_for_and_biases_follow_in_float(small):
    recipe = Recipe(calibrator="max", groups=("qkv", "ffn_depthwise"))
    plain, model = (write_int8(small.model, small.calibration, recipe, results=results) for results in (False, True))
    assert int8_nodes(plain) != int8_nodes(model)
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.name in int8_nodes(model):
            assert len(node.input) == 2
            assert readers[node.output[0]].op_type == "QuantizeLinear"
            (dequantised,) = readers[node.output[0]].output
            assert readers[readers[dequantised].output[0]].op_type == "Add"
    lr = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    first, second = (load(m.SerializeToString(), "m").run(["sr"], {"lr": lr})[0] for m in (plain, model))
    assert 30 < psnr(first, second, 1.0) < 80


def test_groups_are_told_by_the_paths_of_modules():
    assert group_of("layers.0.residual_group.layers.5.convffn.dwconv.0") == "ffn_depthwise"
    assert group_of("layers.12.conv") == "block_conv"
    for other in ("conv_first", "layers.0.conv2", "body.layers.0.conv", "", None):
        assert group_of(other) is None


def test_the_int8_file_has_symmetric_activations_and_a_scale_per_channel(small):
    model = write_int8(small.model, small.calibration, Recipe(calibrator="max", groups=("qkv", "ffn_depthwise")))
    stored = {v.name: numpy_helper.to_array(v) for v in model.graph.initializer}
    weight = stored["layers.0.residual_group.layers.0.wqkv.weight_quantized"]
    scale = stored["layers.0.residual_group.layers.0.wqkv.weight_scale"]
    before = {v.name: numpy_helper.to_array(v) for v in small.model.graph.initializer}
    original = before["layers.0.residual_group.layers.0.wqkv.weight"].T
    assert weight.dtype == np.int8
    assert scale.shape == (144,)
    assert np.abs(weight * scale - original).max() <= scale.max() / 2 * 1.01
    norm = "/layers.0/residual_group/layers.0/norm1/LayerNormalization_output_0"
    assert stored[f"{norm}_scale"] == pytest.approx(small.calibration.largest(norm) / 127, rel=0.01)
    convolutions = {n.output[0] for n in model.graph.node if n.op_type == "Conv" and n.name in int8_nodes(model)}
    assert convolutions
    assert not convolutions & {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert not model.graph.value_info
    assert model.opset_import[0].version == 17
    assert len(model.SerializeToString()) < len(small.model.SerializeToString()) + 20_000


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_calibrators_stay_below_the_largest(small, calibrator):
    for name in small.calibration.kept[:6]:
        limit = find_range(small.calibration, name, calibrator)
        assert 0 < limit <= small.calibration.largest(name)


def test_the_percentile_calibrator_cuts_what_is_rare(small):
    name = f"{QKV}_output_0".replace("wqkv/Gemm", "norm1/LayerNormalization")
    assert find_range(small.calibration, name, "percentile", 90.0) < 0.8 * small.calibration.largest(name)


@pytest.mark.parametrize("precision", ["fp16", "int8", "mixed"])
def test_every_precision_keeps_the_picture_and_the_mask(small, precision, tmp_path):
    model, _ = quantised(small.model, Quantisation(precision, PP_ATD, small.calibration, Recipe(calibrator="max")))
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    lr = coffee()
    reference = OnnxProbe(small.artifact.model_file, ROLES).run({"lr": lr})
    rounded = OnnxProbe(path, ROLES, rounds=True).run({"lr": lr}, reference.categories)
    assert psnr(reference.sr, rounded.sr, 1.0) > (60 if precision == "fp16" else 35)
    assert np.array_equal(reference.labels, rounded.labels)
    assert np.array_equal(reference.pure, rounded.pure)
    types = Counter(v.data_type for v in model.graph.initializer)
    assert (types[TensorProto.INT8] > 0) == (precision != "fp16")
    assert (types[TensorProto.FLOAT16] > 0) == (precision != "int8")


def test_choices_of_an_fp16_file_are_those_of_its_own_numbers(small, tmp_path):
    model, _ = quantised(small.model, Quantisation("fp16", PP_ATD, small.calibration, Recipe()))
    onnx.save(model, tmp_path / "model.onnx")
    twin = make_twin(small.network, SIZE)
    lr = coffee()
    debug = OnnxProbe(tmp_path / "model.onnx", ROLES, rounds=True)
    forced = OnnxProbe(small.artifact.model_file, ROLES).run({"lr": lr}).categories.astype(np.uint8)
    given = debug.chosen_from({"lr": lr}, forced)
    assert [g.dictionary is None for g in given] == [True, False]
    seen = choose_again(twin, lr, forced, given)
    assert 60 < seen.tokens_db < 120
    assert 40 < seen.dictionary_db < 120
    differs = seen.categories != debug.run({"lr": lr}, forced).categories
    assert not differs.any() or seen.gaps[differs].max() < NEAR_TIE
    moved = [given[0], given[1]._replace(dictionary=np.roll(given[1].dictionary, 1, axis=0))]
    assert (choose_again(twin, lr, forced, moved).categories[1] != forced[1]).mean() > 0.5


def int8_file(small, bits, path):
    """A session of ONNX Runtime for the file *path*, which is written in int8 with weights of *bits*."""
    model = write_int8(small.model, small.calibration, Recipe(calibrator="max", weight_bits=bits))
    onnx.save(model, path)
    return load(model.SerializeToString(), "test")


@pytest.mark.parametrize("bits", [8, 7])
def test_one_int8_file_for_three_runtimes(small, tmp_path, bits):
    pytest.importorskip("openvino")
    from ppexport.search.trials import RUNTIMES

    lr, path = coffee(), tmp_path / "int8.onnx"
    session = int8_file(small, bits, path)
    picture = session.run(["sr"], {"lr": lr})[0]
    fp32 = load(small.model.SerializeToString(), "test").run(["sr"], {"lr": lr})[0]
    assert psnr(fp32, picture, 1.0) > 35
    if bits == 8 and saturates_here():
        with pytest.raises(UnavailableError, match="saturate on this machine"):
            RUNTIMES["openvino"](path, 2)
    else:
        # Values that lie on the border between two int8 steps fall either way on the next processor, so no figure in
        # dB holds everywhere. What does: the runtimes differ by no more than one of them does when its own input
        # moves by 1e-6, as far as two runtimes are apart in fp32. Saturated products end at 27 dB.
        signs = np.random.default_rng(0).choice([-1e-6, 1e-6], (5, *lr.shape)).astype(np.float32)
        moved = min(psnr(picture, session.run(["sr"], {"lr": lr + sign})[0], 1.0) for sign in signs)
        assert moved > psnr(fp32, picture, 1.0)
        assert psnr(picture, RUNTIMES["openvino"](path, 2)({"lr": lr}), 1.0) >= moved


def saturates_here() -> bool:
    import openvino

    from ppexport.backends.openvino.run_openvino import saturates

    return saturates(openvino.Core(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def test_an_error_of_openvino_tells_its_reason():
    from ppexport.backends.openvino.run_openvino import reason

    assert reason(RuntimeError("Exception from a.cpp:117:\nException from b.cpp:54:\nbad combination\n\n")) == (
        "bad combination"
    )
    assert reason(RuntimeError("Exception from a.cpp:1:\n")) == "Exception from a.cpp:1:"


def test_openvino_refuses_what_would_saturate(small, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    from ppexport.backends.openvino import run_openvino as session

    asked = []

    def saturates(core, device, settings):
        asked.append(device)
        return True

    monkeypatch.setattr(session, "saturates", saturates)
    path = tmp_path / "int8.onnx"
    int8_file(small, 8, path)
    with pytest.raises(UnavailableError, match="run it in ONNX Runtime, or export it with a recipe of weight_bits: 7"):
        session.Session(path.read_bytes(), str(path))
    int8_file(small, 7, path)
    session.Session(path.read_bytes(), str(path))
    session.Session(small.artifact.graph_file.read_bytes(), "fp32")
    assert asked == ["CPU"], "a file that cannot saturate is no reason to ask"


def test_weights_of_seven_bits(small):
    weights = {
        bits: largest_weight(write_int8(small.model, small.calibration, Recipe(weight_bits=bits))) for bits in (7, 8)
    }
    assert weights == {7: 64, 8: 127}


def largest_weight(model) -> int:
    """Of all int8 constants of *model* but zero points."""
    arrays = [numpy_helper.to_array(v) for v in model.graph.initializer if v.data_type == TensorProto.INT8]
    return max(int(np.abs(array.astype(np.int16)).max()) for array in arrays)


def test_tensorrt_parses_what_every_precision_writes(small):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install -e '.[tensorrt-rtx]'")
    for precision in ("fp16", "int8", "mixed"):
        model, _ = quantised(small.model, Quantisation(precision, PP_ATD, small.calibration, Recipe(calibrator="max")))
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        kinds = Counter(network.get_layer(i).type for i in range(network.num_layers))
        assert (kinds[trt.LayerType.QUANTIZE] > 0) == (precision != "fp16")


def test_the_audit_keeps_what_fp16_cannot_hold(small):
    assert audit(small.model, small.calibration, PP_ATD) == []
    figures = small.calibration.figures.copy()
    row = small.calibration.row(f"{QKV}_output_0")
    figures[row, COLUMNS.index("high")] = 9000
    first = audit(small.model, replace(small.calibration, figures=figures), PP_ATD)
    assert QKV in {f.node for f in first}
    assert "reaches 9000, fp16 ends at 65504" in first[0].reason
    figures = small.calibration.figures.copy()
    figures[row, COLUMNS.index("half_error")] = figures[row, COLUMNS.index("power")] / 1e5
    lossy = replace(small.calibration, figures=figures)
    assert "keeps 50.0 dB in fp16" in audit(small.model, lossy, PP_ATD)[0].reason
    model, findings = quantised(small.model, Quantisation("fp16", PP_ATD, lossy, Recipe()))
    assert QKV in {f.node for f in findings}
    assert kept_single(model, findings)
    # In the mixed file the linear layer is an int8 product and a sum, whose result is the tensor that was judged.
    mixed, findings = quantised(small.model, Quantisation("mixed", PP_ATD, lossy, Recipe(groups=("qkv",))))
    assert f"{QKV}/bias" in {f.node for f in findings}
    assert kept_single(mixed, findings)


def kept_single(model, findings) -> bool:
    """Whether *model* holds all nodes of *findings*, and each makes fp32."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    made = {n.name: n.output[0] for n in model.graph.node}
    return all(types[made[f.node]] == TensorProto.FLOAT for f in findings)


def test_a_calibration_keeps_numbers_beyond_fp16_in_fp32(tmp_path):
    network = beyond_half(small_network())
    artifact = read_artifact(ppexport.export(network, backend="onnx", size=SIZE, out=tmp_path / "fp32"))
    sources, crops = crops_and_sources()
    calibrate(artifact, sources, crops, [], tmp_path / "c.npz")
    out = ppexport.export(
        network, backend="onnx", size=SIZE, out=tmp_path / "a", precision="fp16", calibration=tmp_path / "c.npz"
    )
    kept = read_artifact(out).manifest.quantisation["kept_fp32"]
    assert any("convffn/fc1" in node and "fp16 ends at 65504" in reason for node, reason in kept.items())
    single, half = (ppexport.open_artifact(folder)(coffee()).sr for folder in (tmp_path / "fp32", out))
    rounded = OnnxProbe(read_artifact(out).graph_file, ROLES, rounds=True).run({"lr": coffee()}).sr
    assert min(psnr(single, half, 1.0), psnr(single, rounded, 1.0)) > 55


def test_the_audit_sees_the_values_of_the_dictionary(small):
    # Those of a block's first layer are constants.
    layer = "/layers.0/residual_group/layers.1"
    figures = small.calibration.figures.copy()
    figures[small.calibration.row(f"{layer}/attn_atd/wv/Gemm_output_0"), COLUMNS.index("high")] = 9000
    large = replace(small.calibration, figures=figures)
    model, findings = quantised(small.model, Quantisation("fp16", PP_ATD, large, Recipe()))
    assert {f.node for f in findings} == {f"{layer}/attn_atd/wv/Gemm", f"{layer}/attn_atd/Gemm/product"}
    assert kept_single(model, findings)


def test_export_writes_what_it_was_calibrated_on(small, tmp_path):
    out = ppexport.export(
        small.network, backend="onnx", size=SIZE, out=tmp_path / "a", precision="int8", calibration=small.path
    )
    runner = ppexport.open_artifact(out)
    manifest = runner.artifact.manifest
    said = manifest.quantisation
    assert manifest.precision == "int8"
    assert said["calibration_sha256"] == small.calibration.sha256
    names = sorted(p.name for p in FREE_IMAGES.iterdir() if p.suffix != ".md")
    assert [i["name"] for i in said["images"]] == names[:4], "as many crops were cut, each of the next picture"
    assert said["warnings"] == ["a warning"]
    assert said["int8"]["recipe"] == "default", "a network built by hand, although it has a bundled model's name"
    assert said["int8"]["recipe"] in NOTES
    assert np.isfinite(runner(coffee()).sr).all()
    with pytest.raises(InputError, match="is quantised already"):
        check_artifact(runner.artifact)


def test_a_calibration_of_another_model_is_refused(small):
    card = card_of(ppexport.load_network("pp_atd_light_x2"))
    with pytest.raises(InputError, match="was measured on another network, or with other weights or options"):
        check_calibration(small.calibration, card)
    with pytest.raises(InputError, match="has no tensor 'nonsense'"):
        small.calibration.row("nonsense")


def test_a_calibration_of_the_network_without_pure_pass_is_refused(small):
    """The weights are the same, and the dense network has no options that could differ."""
    card = card_of(small.network)
    check_calibration(small.calibration, card)
    about = replace(small.calibration.about, options={})
    with pytest.raises(InputError, match="another network.*with --arch and --option"):
        check_calibration(replace(small.calibration, about=about), card)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"x" * 100])
def test_damaged_calibrations(content, tmp_path):
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(InputError, match="is not a calibration file"):
        load_calibration(tmp_path / "c.npz")


def test_pickled_and_foreign_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", about=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "b.npz", about=np.frombuffer(json.dumps({"format": "other"}).encode(), np.uint8))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(InputError, match="is not a calibration file"):
            load_calibration(tmp_path / name)


def test_recipes_come_back_and_bad_ones_are_refused(tmp_path):
    recipe = Recipe(groups=("ffn_in", "qkv"), calibrator="entropy", measured={"crops": 3})
    write_recipe(tmp_path / "r.yaml", recipe)
    assert read_recipe(tmp_path / "r.yaml").groups == ("qkv", "ffn_in")
    for text in (
        "groups: [similarity]",
        "groups: [x]",
        "calibrator: best",
        "percentile: 40",
        "]",
        "nonsense: 1",
        "3",
        "[" * 5000,
        "a: 2021-99-99",
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=r"bad\.yaml is not a"):
            read_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize("kept", [[], [("blocks.0", "too large")]])
def test_calibrate_says_what_is_kept_in_fp32(small, tmp_path, monkeypatch, kept):
    monkeypatch.setattr("ppexport.backends.onnx.quantised.audit", lambda *_: kept)
    arguments = [str(small.artifact.path), "--images", str(FREE_IMAGES), "--crops", "1", "-o", str(tmp_path / "c.npz")]
    done = CliRunner().invoke(app, ["calibrate", *arguments], catch_exceptions=False)
    assert ("nothing kept in fp32" in done.output) == (not kept)
    assert ("too large" in done.output) == bool(kept)
