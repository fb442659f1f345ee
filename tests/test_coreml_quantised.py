"""Core ML packages whose layers read int8, by ranges that were measured on the ONNX graph."""

from __future__ import annotations

import numpy as np
import pytest
from small_networks import ROUTING

pytest.importorskip("coremltools", reason="pip install -e '.[coreml]'")

from calibrated import SIZE, lr_of
from conftest import photo
from coreml_programs import run_one
from onnx import TensorProto, helper

import ppexport
from ppexport.backends.coreml.evaluated import PackageProbe
from ppexport.backends.coreml.evaluator.evaluate import Evaluator
from ppexport.backends.coreml.package import read_package
from ppexport.backends.coreml.placement import place
from ppexport.backends.coreml.precision import scale_of
from ppexport.backends.coreml.specification import decode
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.qdq import find_ranges, quantisable
from ppexport.backends.onnx.quantised import module_ranges
from ppexport.backends.onnx.run_onnxruntime import load
from ppexport.device.artifact import read_artifact
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, ExportError, InputError
from ppexport.quantize.recipe import DEFAULT_GROUPS, Recipe, write_recipe


@pytest.fixture(scope="module")
def package(calibrated, tmp_path_factory):
    """(artifact, recipe, program) of the calibrated network in w8a8."""
    folder = tmp_path_factory.mktemp("w8a8")
    recipe = Recipe(calibrator="max")
    write_recipe(folder / "r.yaml", recipe)
    out = ppexport.export(
        calibrated.network,
        backend="coreml",
        size=SIZE,
        out=folder / "a",
        precision="w8a8",
        calibration=calibrated.path,
        recipe=folder / "r.yaml",
    )
    artifact = read_artifact(out)
    return artifact, recipe, read_package(artifact.model_file)


def operations(package, kind):
    program = package[2].functions[package[2].default]
    return [op for op in program.operations if op.type == kind]


def test_every_layer_of_the_recipe_reads_int8_at_its_measured_scale(calibrated, package):
    recipe = package[1]
    chosen = [n for n, group in quantisable(calibrated.model) if group in recipe.groups]
    limits = find_ranges(calibrated.model, [n.name for n in chosen], calibrated.calibration, recipe)
    ranges = module_ranges(calibrated.network, calibrated.calibration, recipe)
    assert sorted(ranges.values()) == sorted(limits[n.input[0]] for n in chosen)
    pairs = operations(package, "quantize")
    constants = {
        op.outputs[0].name: op.value for op in package[2].functions[package[2].default].operations if op.type == "const"
    }
    found = {decode(op.name): float(constants[op.inputs["scale"][0].name]) for op in pairs}
    assert found.keys() == ranges.keys()
    assert len(pairs) == len(operations(package, "dequantize")) == len(chosen)
    for module, scale in found.items():
        assert scale == pytest.approx(ranges[module] / 127, rel=1e-3)
    assert not any("attn_atd" in (decode(op.name) or "") for op in pairs)


def test_the_evaluator_computes_with_the_levels(calibrated, package):
    lr = lr_of(photo(*SIZE))
    reference = OnnxProbe(calibrated.artifact.model_file, ROUTING).run({"lr": lr})
    inside = PackageProbe(package[0].model_file, ROUTING).run({"lr": lr}, reference.categories)
    assert 35 < psnr(reference.sr, inside.sr, 1.0) < 70
    (first, *_), (back, *_) = operations(package, "quantize"), operations(package, "dequantize")
    names = [first.outputs[0].name, back.outputs[0].name, first.inputs["input"][0].name]
    found = Evaluator(package[2]).run({"lr": lr}, keep=names)
    levels, numbers, given = (found[name] for name in names)
    assert -128 <= levels.min() < levels.max() <= 127
    assert len(np.unique(levels)) > 20
    scale = numbers.astype(np.float64)[levels != 0] / levels[levels != 0]
    assert np.ptp(scale) < 2e-3 * scale.mean()  # fp16 rounds the numbers
    assert np.abs(numbers.astype(np.float64) - given)[np.abs(levels) < 127].max() <= scale.mean() * 0.6


def test_the_manifest_names_pictures_and_recipe(calibrated, package):
    manifest = package[0].manifest
    said = manifest.quantisation
    assert (manifest.backend, manifest.precision) == ("coreml", "w8a8")
    assert said["calibration_sha256"] == calibrated.calibration.sha256
    assert said["int8"]["groups"] == list(DEFAULT_GROUPS)
    assert said["int8"]["layers"] == len(operations(package, "quantize"))
    assert len(said["images"]) == 4


def test_levels_are_no_arithmetic_of_whole_numbers(package):
    report = place(package[2].function())
    assert not [i for i in report.leaving if i.operation in ("quantize", "dequantize") and i.reason == "integer"]


@pytest.mark.parametrize(("kind", "least", "most"), [("int8", -128, 127), ("uint8", 0, 255)])
@pytest.mark.parametrize("axis", [None, 1])
def test_levels_are_those_of_onnx(kind, least, most, axis):
    rng = np.random.default_rng(3)
    x = (rng.integers(-700, 700, (2, 3, 4)) / 2).astype(np.float32)
    scale = np.array([0.5, 1.0, 2.0] if axis else 1.0, np.float32)
    zero = np.array([1, 0, 3] if axis else 2, kind)
    element = TensorProto.INT8 if kind == "int8" else TensorProto.UINT8
    extra = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **extra),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **extra),
        ],
        "levels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("q", element, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
        [
            helper.make_tensor("s", TensorProto.FLOAT, scale.shape, scale.reshape(-1)),
            helper.make_tensor("z", element, zero.shape, zero.reshape(-1)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    levels, numbers = load(model.SerializeToString(), "test").run(None, {"x": x})
    constants = {"scale": scale, "zero_point": zero, **({} if axis is None else {"axis": np.int32(axis)})}
    (found,) = run_one("quantize", {"input": x}, {**constants, "output_dtype": kind}, [(kind, x.shape)])
    assert np.array_equal(found, levels)
    assert {levels.min(), levels.max()} == {least, most}
    (back,) = run_one("dequantize", {"input": levels}, constants, [("fp32", x.shape)])
    assert np.array_equal(back, numbers)


def test_scales_of_several_channels_need_an_axis():
    x = np.zeros((2, 3), np.float32)
    constants = {"scale": np.ones(3, np.float32), "output_dtype": "int8"}
    with pytest.raises(ArtifactError, match="3 scales or zero points need an axis"):
        run_one("quantize", {"input": x}, constants, [("int8", x.shape)])


def test_what_cannot_be_is_refused(calibrated, tmp_path):
    def export(**options):
        given = {"precision": "w8a8", "calibration": calibrated.path, **options}
        ppexport.export(calibrated.network, backend="coreml", size=SIZE, out=tmp_path / "a", **given)

    with pytest.raises(InputError, match="w8a8 quantises activations, which needs iOS17 or iOS18"):
        export(target="iOS16")
    with pytest.raises(InputError, match="no calibration is bundled for these weights: run `ppexport calibrate`"):
        export(calibration=None)
    with pytest.raises(InputError, match="--calibration is for --precision w8a8 of --backend coreml, not for w8"):
        export(precision="w8")
    with pytest.raises(InputError, match="--recipe is for --precision w8a8 of --backend coreml, not for fp16"):
        export(precision="fp16", calibration=None, recipe=tmp_path / "r.yaml")
    assert not any(tmp_path.iterdir())
    write_recipe(tmp_path / "r.yaml", Recipe(weight_bits=7))
    with pytest.raises(InputError, match="w8a8 of --backend coreml has weights of 8 bits, the recipe says 7"):
        export(recipe=tmp_path / "r.yaml")
    with pytest.raises(ExportError, match="layers.0.conv reads numbers below 0.001, whose int8 scale fp16"):
        scale_of(0.001, True, "layers.0.conv")
    assert scale_of(0.001, False, "layers.0.conv") == np.float32(0.001 / 127)
