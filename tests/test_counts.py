"""Labels, masks, counts, ranks and slots are right on processors that compute every float in fp16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from shared import examples
from small_networks import random_small_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import ppexport
from ppexport.backends.onnx.graph_view import GraphView
from ppexport.backends.onnx.lint.rules_ranges import known_ranges
from ppexport.backends.onnx.model_file import read_model
from ppexport.backends.onnx.pattern import Graph
from ppexport.device.mask import mask_from_labels, pixel_labels
from ppexport.device.picture import psnr
from ppexport.networks.architecture import architectures
from ppexport.networks.card import PurePassOptions
from ppexport.networks.network import Trace
from ppexport.parity.inputs import parity_inputs
from ppexport.twin.counting_sort import CountingSort
from ppexport.twin.static_pure_pass import StaticPurePass
from ppexport.twin.twin import make_twin
from ppexport.twin.windows import plan_windows


def rounded(value):
    return value.half().float() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


class InHalf(TorchDispatchMode):
    """Every float that an operator makes is rounded to fp16, in which 2049 does not exist and 65520 is infinite."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return tree_map(rounded, func(*args, **(kwargs or {})))


def test_the_rounding_finds_counts_in_floats():
    with InHalf():
        assert float(torch.ones(2049).sum()) == 2048
        assert float(torch.tensor(2048.0) * 32) == float("inf")


@given(st.integers(0, 2**32), st.sampled_from([256, 2304, 4096, 256 * 17, 1 << 16]), st.sampled_from([1, 2, 65]))
@examples(30)
def test_a_counting_sort_is_exact(seed, n, keys):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(0, keys, n) if seed % 2 else rng.geometric(0.9, n) % keys)
    tokens = torch.arange(n, dtype=torch.int32)
    with InHalf():
        destination, order = CountingSort(n, keys)(values.int(), tokens)
    assert torch.equal(order.long(), values.argsort(stable=True))
    assert torch.equal(destination[order.long()], tokens)


@given(st.integers(0, 2**32), st.sampled_from([2, 8, 16]), st.booleans())
@examples(30)
def test_labels_and_masks_of_eight_bits_are_exact(seed, colors, even):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (4, 4, 3)).repeat(12, 0).repeat(12, 1) if even else rng.integers(0, 256, (48, 48, 3))
    image = torch.from_numpy(levels.astype(np.float32) / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    expected = pixel_labels(image[0].permute(1, 2, 0).numpy(), colors)
    with InHalf():
        twin = StaticPurePass(PurePassOptions(colors=colors), 48, 48)
        labels, pure = twin.labels(rounded(image)), twin(rounded(image))
    assert np.array_equal(labels[0, 0].numpy(), expected)
    assert np.array_equal(pure.view(48, 48).numpy(), mask_from_labels(expected, 8, True))


@given(st.integers(0, 2**32), st.integers(1, 5000))
@examples(30)
def test_the_slots_of_windows_are_exact(seed, count):
    hard = torch.from_numpy(np.random.default_rng(seed).random(count) < 0.6)
    windows = torch.arange(count, dtype=torch.int32)
    with InHalf():
        slots = plan_windows(hard, windows, windows)
    assert torch.equal(slots.source.long(), torch.argsort(~hard, stable=True))
    assert torch.equal(slots.attends, hard)
    assert int(slots.hard) == int(hard.sum())


ALL_OF_THEM = [
    pytest.param(arch, marks=[] if arch in ("pp_atd_light", "camixersr") else [pytest.mark.slow])
    for arch in architectures()
]
"""Two have every operation that counts or chooses; the others are slow."""
WHOLE = (TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64)
CHOICES = ("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Floor")


@pytest.mark.parametrize("arch", ALL_OF_THEM)
def test_fp16_files_for_onnx_runtimes_and_tensorrt_count_and_choose_nothing_in_half(arch, tmp_path):
    """A count in half is cast from truth values or to whole numbers, and a choice compares."""
    folder = ppexport.export(
        random_small_network(arch), backend="tensorrt", precision="fp16", size=(32, 32), out=tmp_path / "a"
    )
    model = onnx.load(folder / "model.onnx")
    kinds = {name: info.type.tensor_type.elem_type for name, info in Graph(model).known.items()}
    halves = 0
    for node in model.graph.node:
        touched = [kinds.get(name) for name in (*node.input[:1], *node.output[:1])]
        halves += TensorProto.FLOAT16 in touched
        if node.op_type == "Cast":
            assert not (TensorProto.FLOAT16 in touched and set(WHOLE) & set(touched)), node.name
        elif node.op_type in CHOICES:
            assert TensorProto.FLOAT16 not in touched, node.name
    assert halves > 10
    view = GraphView(read_model(folder / "model.onnx"), {})
    whole = [name for name, known in known_ranges(view).items() if known.whole and name not in view.values]
    assert len(whole) > 5
    assert not [name for name in whole if kinds.get(name) == TensorProto.FLOAT16]


@pytest.mark.parametrize("arch", ALL_OF_THEM)
def test_fp16_core_ml_packages_count_and_choose_nothing_in_half(arch, tmp_path):
    pytest.importorskip("coremltools")
    from ppexport.backends.coreml.package import read_package

    folder = ppexport.export(
        random_small_network(arch), backend="coreml", precision="fp16", size=(16, 32), out=tmp_path / "a"
    )
    (function,) = read_package(folder / "model.mlpackage").functions.values()
    kinds = {port.name: port.type.element.name for port in function.inputs if port.type is not None}
    halves = 0
    for op in function.operations:
        kinds.update({port.name: port.type.element.name for port in op.outputs if port.type is not None})
        touched = {kinds.get(name, "") for name in (*op.reads(), *(port.name for port in op.outputs))}
        halves += "fp16" in touched
        if op.type == "cast":
            assert not ("fp16" in touched and touched & {"bool", "int32"}), op.name
        elif op.type in ("reduce_argmax", "reduce_argmin", "equal", "greater", "greater_equal", "less", "floor"):
            assert "fp16" not in touched, op.name
    assert halves > 10


class NoCountsInHalf(TorchDispatchMode):
    """Fails where whole numbers or truth values are made of fp16, or fp16 of them."""

    def __init__(self):
        super().__init__()
        self.halves = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = {x.dtype for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        self.halves += torch.float16 in made
        whole = {torch.bool, torch.int32, torch.int64}
        assert not (torch.float16 in given and made & whole), func
        assert not (torch.float16 in made and given and given <= whole), func
        return out


@pytest.mark.parametrize("arch", architectures())
def test_fp16_core_ai_assets_count_and_choose_nothing_in_half(arch):
    """Of the module that is converted as it is."""
    from ppexport.backends.coreai.convert_asset import halved

    module = halved(make_twin(random_small_network(arch), (32, 32)))
    with torch.no_grad(), NoCountsInHalf() as mode:
        module(torch.rand(1, 3, 32, 32))
    assert mode.halves > 10


@pytest.mark.parametrize("arch", architectures())
def test_a_twin_counts_nothing_in_floats(arch):
    """With equal choices the picture is what fp16 keeps of 64x64: 4096 tokens, twice what fp16 counts."""
    twin = make_twin(random_small_network(arch), (64, 64))
    (item,) = (item for item in parity_inputs((64, 64), 2) if item.name == "coffee")
    lr, trace = torch.from_numpy(item.lr), Trace()
    with torch.no_grad():
        expected, count = twin(lr, trace=trace)
        forced = torch.stack([c.reshape(-1) for c in trace.categories]).int() if trace.categories else None
        with InHalf():
            sr, found = twin(rounded(lr), categories=forced)
    assert torch.equal(count, found)
    assert psnr(expected.numpy(), sr.numpy(), 1.0) > 50
