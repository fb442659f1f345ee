"""The MIL evaluator on packages of ordinary PyTorch models, and on damaged ones."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("coremltools")

from coreml_programs import ELEMENTS, evaluated, saved

from ppexport.backends.coreml.divergence import agreement, divergences
from ppexport.backends.coreml.evaluated import Session
from ppexport.backends.coreml.evaluator.evaluate import Evaluator
from ppexport.backends.coreml.mil_program import coremltools, quiet_converter
from ppexport.backends.coreml.package import open_weights, read_blob, read_package, read_tensor
from ppexport.backends.coreml.placement import place
from ppexport.backends.coreml.program import Function, Operation, Port, Reference, TensorType
from ppexport.device.picture import psnr
from ppexport.device.wire import Message
from ppexport.errors import ArtifactError, InputError


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8),
        nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(dim=1),
    ).eval()  # fmt: skip


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, 10, 32) * 0.1)
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        x = x + self.embedding
        q, k, v = self.qkv(self.norm(x)).view(2, 10, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 10, 32)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(approximate="tanh"), nn.Linear(24, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.ReLU6(), nn.Linear(32, 16))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return (x + self.channels(self.norm(x))).mean(1)


class Upscaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12), nn.Conv2d(12, 12, 3, padding=1))

    def forward(self, x):
        enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return (
            F.pixel_shuffle(self.body(F.pad(x, (1, 1, 1, 1), mode="reflect")), 2)[:, :, 2:-2, 2:-2] + enlarged
        ).clamp(0, 1)


MODELS = {
    "cnn": (small_cnn, (2, 3, 16, 16)),
    "transformer": (TransformerBlock, (2, 10, 32)),
    "mixer": (Mixer, (1, 3, 16, 16)),
    "upscaler": (Upscaler, (1, 3, 12, 9)),
}


def model_and_input(name):
    torch.manual_seed(3)
    make, shape = MODELS[name]
    return make().eval(), torch.rand(shape)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("name", MODELS)
def test_ordinary_models_in_fp32(name, target, tmp_path):
    model, x = model_and_input(name)
    (found,), _ = evaluated(saved(model, [x], tmp_path, target=target), [x])
    assert psnr(model(x).numpy(), found, 1.0) > 110


@pytest.mark.parametrize("name", MODELS)
def test_ordinary_models_in_fp16(name, tmp_path):
    model, x = model_and_input(name)
    path = saved(model, [x], tmp_path, precision="fp16")
    (found,), _ = evaluated(path, [x])
    # As PyTorch computes in half precision, up to the order of sums.
    assert 50 < psnr(model(x).numpy(), found.astype(np.float32), 1.0) < 110
    wide = Evaluator(read_package(path), rounding=False)
    (exact,) = wide.run({"in0": x.numpy()}).values()
    assert exact.dtype == np.float32
    # Only the weights are still rounded.
    assert psnr(model(x).numpy(), exact, 1.0) > psnr(model(x).numpy(), found.astype(np.float32), 1.0) - 3


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_weights_of_8_bits(target, tmp_path):
    coremltools()
    from coremltools.optimize import coreml

    model, x = model_and_input("transformer")
    path = saved(model, [x], tmp_path, target=target)
    ct = coremltools()
    how = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=64)
    with quiet_converter():
        loaded = ct.models.MLModel(str(path), skip_model_load=True)
        coreml.linear_quantize_weights(loaded, coreml.OptimizationConfig(global_config=how)).save(
            str(tmp_path / "q.mlpackage")
        )
    (found,), kinds = evaluated(tmp_path / "q.mlpackage", [x])
    assert any(kind.startswith("constexpr_") for kind in kinds)
    assert 30 < psnr(model(x).numpy(), found, 1.0) < 90


def test_the_first_divergence_names_the_operation(tmp_path):
    model, x = model_and_input("transformer")
    package = read_package(saved(model, [x], tmp_path, precision="fp16"))
    exact, half = Evaluator(package, rounding=False), Evaluator(package)
    inputs = {"in0": x.numpy()}
    assert all(d.decibel == math.inf for d in divergences(exact, exact, inputs))
    found = list(divergences(exact, half, inputs))
    assert all(d.decibel > 50 for d in found)
    assert min(d.decibel for d in found) < 75
    name = found[3].name
    wrong = exact.run(inputs, keep=[name])[name] + 1
    assert next(iter(half.run(inputs, replace={name: wrong}).values())).shape == (2, 10, 32)
    with pytest.raises(InputError, match="computes no nonsense, which could be replaced"):
        half.run(inputs, replace={"nonsense": wrong})


def test_infinite_numbers_agree_with_the_same_alone():
    one = np.array([np.inf, 1.0])
    assert agreement(one, one) == math.inf
    for other in (-np.inf, np.nan, 1.0):
        assert agreement(one, np.array([other, 1.0])) == -math.inf
    assert agreement(np.array([np.nan]), np.array([np.nan])) == math.inf


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    torch.manual_seed(0)
    return saved(nn.Linear(48, 64), [torch.rand(4, 48)], tmp_path_factory.mktemp("package"))


@pytest.fixture
def copied(package, tmp_path):
    return shutil.copytree(package, tmp_path / "copy.mlpackage")


def part(path, name):
    (found,) = path.rglob(name)
    return found


def test_inputs_are_checked(package):
    evaluator = Evaluator(read_package(package))
    with pytest.raises(InputError, match=r"input 'in0' is fp32 \(4, 48\), not float32 \(4, 47\)"):
        evaluator.run({"in0": np.zeros((4, 47), np.float32)})
    with pytest.raises(InputError, match=r"input 'in0' is fp32 \(4, 48\), not float64"):
        evaluator.run({"in0": np.zeros((4, 48))})
    with pytest.raises(InputError, match=r"takes \['in0'\], not \['x'\]"):
        evaluator.run({"x": np.zeros((4, 48), np.float32)})
    with pytest.raises(InputError, match="computes no nonsense"):
        evaluator.run({"in0": np.zeros((4, 48), np.float32)}, keep=["nonsense"])
    with pytest.raises(InputError, match="has functions main, not 'other'"):
        Evaluator(read_package(package), "other")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"rootModelIdentifier": "a"}'])
def test_a_folder_that_is_no_package(content, copied):
    (copied / "Manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a Core ML package"):
        read_package(copied)


def test_a_package_without_its_parts(copied, tmp_path):
    with pytest.raises(ArtifactError, match="is not a Core ML package: it has no readable Manifest.json"):
        read_package(tmp_path / "nothing.mlpackage")
    part(copied, "weight.bin").unlink()
    with pytest.raises(ArtifactError, match=r"the weights .*weight\.bin cannot be read"):
        read_package(copied)
    part(copied, "model.mlmodel").unlink()
    with pytest.raises(ArtifactError, match=r"model\.mlmodel cannot be read"):
        read_package(copied)


@pytest.mark.parametrize("entry", ["../../secret", "/etc/passwd", "a\0b", "", 3])
def test_a_manifest_that_points_outside(entry, copied):
    manifest = json.loads((copied / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = entry
    (copied / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="inside the package|names no model"):
        read_package(copied)


def test_links_are_not_followed(copied, tmp_path):
    weights = part(copied, "weight.bin")
    shutil.move(weights, tmp_path / "weight.bin")
    weights.symlink_to(tmp_path / "weight.bin")
    with pytest.raises(ArtifactError, match="is a link"):
        read_package(copied)


def test_an_input_that_is_no_tensor_is_an_error(package):
    read = read_package(package)
    function = replace(read.functions["main"], inputs=(Port("in0", None),))
    foreign = replace(read, functions={"main": function})
    with pytest.raises(ArtifactError, match="input 'in0' of the package is no tensor"):
        Evaluator(foreign).run({"in0": np.zeros((4, 48), np.float32)})
    assert place(function).operations > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:40], "is not a weight file of version 2"),
        (lambda b: b[:200], "ends behind the end of the file"),
        (lambda b: b[:64] + b"\0" * 64 + b[128:], "has no header"),
        (lambda b: b[:68] + b"\1" + b[69:], "has element type 1, the program says fp32"),
        (lambda b: b[:72] + b"\10" + b[73:], r"values of fp32 take \d+ bytes"),
        (lambda b: b[:4] + b"\3" + b[5:], "is not a weight file of version 2"),
    ],
    ids=["cut", "short", "header", "type", "size", "version"],
)
def test_a_damaged_weight_file(change, message, copied):
    weights = part(copied, "weight.bin")
    weights.write_bytes(change(weights.read_bytes()))
    with pytest.raises(ArtifactError, match=message):
        read_package(copied)


def test_a_damaged_model_file_never_crashes(copied):
    model = part(copied, "model.mlmodel")
    whole = model.read_bytes()
    rng = np.random.default_rng(1)
    model.write_bytes(b"\x12\x00")
    with pytest.raises(ArtifactError, match="not an ML program"):
        read_package(copied)
    for _ in range(300):
        damaged = bytearray(whole[: int(rng.integers(1, len(whole)))] if rng.random() < 0.3 else whole)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        model.write_bytes(damaged)
        try:
            evaluator = Evaluator(read_package(copied))
            evaluator.run({p.name: np.zeros((4, 48), np.float32) for p in evaluator.function.inputs})
        except (ArtifactError, InputError):
            pass


def test_a_constant_that_ends_inside_a_number_is_damaged():
    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    # A float with 6 bytes of packed numbers.
    message = Message(memoryview(field(1, field(1, b"\0" * 6))))
    with pytest.raises(ArtifactError, match="ends inside a number"):
        read_tensor(message, TensorType(ELEMENTS["fp32"], (1,)))


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32), (1 << 40, 1 << 24, 4)])
def test_a_shape_beyond_64_bits_is_damaged(shape, package):
    # Their products are 0 modulo 2^64.
    kind = TensorType(ELEMENTS["fp32"], shape)
    with pytest.raises(ArtifactError, match="holds 0 values"):
        read_tensor(Message(memoryview(b"")), kind)
    weights = open_weights(part(package, "weight.bin"))
    with pytest.raises(ArtifactError, match=r"values of fp32 take \d+ bytes"):
        read_blob(weights, 64, kind)


def test_operations_that_wait_for_each_other_are_damaged():
    kind = TensorType(ELEMENTS["fp16"], (1,))
    waiting = [
        Operation("relu", name, {"x": [Reference(read)]}, (Port(name, kind),))
        for name, read in (("a", "b"), ("b", "a"))
    ]
    with pytest.raises(ArtifactError, match="its operations wait for each other \\('a', 'b'\\)"):
        place(Function("main", "CoreML8", (), ("b",), tuple(waiting)))
    # The same behind something that runs.
    first = Operation("relu", "c", {"x": [Reference("in")]}, (Port("c", kind),))
    with pytest.raises(ArtifactError, match="wait for each other"):
        place(Function("main", "CoreML8", (Port("in", kind),), ("b",), (first, *waiting)))


def test_a_gather_without_indices_is_placed():
    gather = Operation("gather", "g", {"x": [Reference("in")]}, (Port("g", TensorType(ELEMENTS["fp16"], (1,))),))
    function = Function("main", "CoreML8", (Port("in", None),), ("g",), (gather,))
    assert place(function).operations == 1


def test_a_package_without_our_outputs_is_no_artifact(package):
    session = Session(package)
    with pytest.raises(ArtifactError, match="computes no sr: no export made it"):
        session.run({"in0": np.zeros((4, 48), np.float32)})


def test_other_kinds_of_models_are_refused(copied):
    ct = coremltools()
    model = part(copied, "model.mlmodel")
    spec = ct.utils.load_spec(str(copied))
    spec.ClearField("mlProgram")
    spec.identity.SetInParent()
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(ArtifactError, match="the model is not an ML program"):
        read_package(copied)
