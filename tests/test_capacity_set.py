"""Capacity sets: one graph, weights once, exact at every sufficient number of slots; the runner picks."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import exported_once, photo
from hypothesis import given
from hypothesis import strategies as st
from shared import examples
from small_networks import small_network
from torch import nn
from typer.testing import CliRunner

import ppexport
from ppexport.backends.onnx.export_onnx import fuse, trace
from ppexport.cli import app
from ppexport.cli.options import parse_capacities
from ppexport.device.artifact import read_artifact
from ppexport.device.capacities import capacity_set
from ppexport.device.picture import psnr, to_input, to_uint8
from ppexport.device.runner import Result, Runner
from ppexport.errors import InputError
from ppexport.imaging.upscaling import upscale_array
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.twin.blocks import BlockCut
from ppexport.twin.counting_sort import count_up
from ppexport.twin.layers import Shared, StaticCategoryAttention
from ppexport.twin.ort_layers import RowCategoryAttention, RowLayer
from ppexport.twin.routing import plan_slots

SIZE = (32, 48)
N = SIZE[0] * SIZE[1]


@pytest.fixture(scope="module")
def network():
    return small_network(layers=2)


@pytest.fixture(scope="module")
def full(network, tmp_path_factory):
    return exported_once(tmp_path_factory, network, backend="onnx", size=SIZE)


@pytest.fixture(scope="module")
def chosen(network, tmp_path_factory):
    return exported_once(tmp_path_factory, network, backend="onnx", size=SIZE, capacities=capacity_set(SIZE))


@pytest.fixture(scope="module")
def fed(network, tmp_path_factory):
    return exported_once(tmp_path_factory, network, backend="onnx", size=SIZE, capacities=[128, 256], mask="input")


def test_steps_of_a_set():
    assert capacity_set((64, 64)) == [128 * i for i in range(1, 33)]
    assert capacity_set((16, 16)) == [128, 256]
    steps = capacity_set((256, 250), 4)
    assert steps == [16384, 32768, 49152, 65536]
    assert capacity_set((48, 16), 4) == [256, 384, 640, 768]


def test_weights_are_stored_once(full, chosen):
    sizes = [(folder / "model.onnx").stat().st_size for folder in (full, chosen)]
    assert sizes[1] < 1.02 * sizes[0]


def test_the_runner_takes_the_smallest_sufficient_capacity(full, chosen):
    picks = {}
    runs = ppexport.open_artifact(full), ppexport.open_artifact(chosen)
    for item in parity_inputs(SIZE, 2):
        expected, result = (run(item.lr) for run in runs)
        assert result.impure_tokens == expected.impure_tokens
        assert result.capacity == max(128, -(-result.impure_tokens // 128) * 128)
        assert psnr(expected.sr, result.sr, 1.0) > 90
        picks[item.name] = result.capacity
    assert picks["flat"] == 128
    assert picks["noise"] == N
    assert len(set(picks.values())) > 3


def test_only_the_length_of_slots_counts(chosen):
    session = onnxruntime.InferenceSession(str(chosen / "model.onnx"))
    lr = to_input(photo(*SIZE))
    rng = np.random.default_rng(1)
    pictures = [
        session.run(["sr"], {"lr": lr, "slots": slots})[0]
        for slots in (np.zeros((1, N), np.int32), rng.integers(-(2**31), 2**31, (1, N)).astype(np.int32))
    ]
    assert np.array_equal(*pictures)


def test_too_few_slots_are_reported_and_behave_as_the_twin(network, fed, tmp_path):
    lr = to_input(photo(*SIZE, "chelsea.png", 30, 30))
    result = ppexport.open_artifact(fed)(lr)
    assert result.capacity == 256 < result.impure_tokens
    sr, impure = ppexport.make_twin(network, size=SIZE, capacity=256)(torch.from_numpy(lr))
    assert int(impure) == result.impure_tokens
    assert psnr(sr.numpy(), result.sr, 1.0) > 90
    from PIL import Image

    Image.fromarray(photo(*SIZE, "chelsea.png", 30, 30)).save(tmp_path / "in.png")
    done = CliRunner().invoke(app, ["upscale", str(fed), str(tmp_path / "in.png"), str(tmp_path / "out.png")])
    assert done.exit_code == 1
    assert f"at worst {result.impure_tokens} for 256" in " ".join(done.output.split())


def test_a_mask_from_outside_is_the_mask_inside(full, fed):
    picture = np.full((*SIZE, 3), (30, 160, 60), np.uint8)
    picture[10:13, 10:13] = (220, 20, 200)
    inside, outside = (ppexport.open_artifact(folder)(to_input(picture)) for folder in (full, fed))
    assert inside.impure_tokens == outside.impure_tokens > 0
    assert outside.capacity == 128
    assert psnr(inside.sr, outside.sr, 1.0) > 90


def test_parity_of_a_set_and_of_a_mask_input(network, chosen, fed, tmp_path, monkeypatch):
    # Three inputs that get different numbers of slots, for time.
    some = [item for item in parity_inputs(SIZE, 2) if item.name in ("coffee", "flat", "noise")]
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: some)
    for number, folder in enumerate((chosen, fed)):
        with ppexport.open_artifact(folder) as runner:
            report = parity_run.run_parity(network, runner, tmp_path / str(number), lambda *_: None).to_dict()
        assert report["passed"], report["pairs"]
        used = {row["capacity"] for row in report["pairs"][1]["rows"]}
        assert used <= set(read_artifact(folder).manifest.capacities)
        assert len(used) > 1
        assert bool(report["over_capacity"]) == (folder is fed)


def test_a_set_lints_without_being_told_its_axis(chosen):
    done = CliRunner().invoke(app, ["lint", str(chosen / "model.onnx")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"capacities": []}, "ascending"),
        ({"capacities": [100, 256]}, "multiples of 128"),
        ({"capacities": [256, 128]}, "ascending"),
        ({"capacities": [128, 512]}, "from 128 to 256"),
        ({"mask": "nowhere"}, "mask of pp_atd_light is one of graph, input"),
    ],
)
def test_impossible_sets(wish, message, network, tmp_path):
    with pytest.raises(InputError, match=message):
        ppexport.export(network, backend="onnx", size=(16, 16), out=tmp_path / "a", **wish)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("text", ["half", "1,,2", "-128", "128;256", ""])
def test_capacities_on_the_command_line(text):
    with pytest.raises(InputError, match="a capacity is full, set"):
        parse_capacities(text, SIZE, 32)


def test_a_backend_without_sets_refuses_them():
    with pytest.raises(InputError, match="this backend makes no capacity sets: leave --capacity out"):
        parse_capacities("set", SIZE, 1)


def test_named_capacities():
    assert parse_capacities("full", SIZE, 32) is None
    assert parse_capacities("set", SIZE, 32) == capacity_set(SIZE)
    assert parse_capacities("128,1024", SIZE, 32) == [128, 1024]


class Branch(nn.Module):
    """Category attention alone: given tokens, categories and mask, with a symbolic number of slots."""

    def __init__(self, source) -> None:
        super().__init__()
        self.branch = self.make(source)
        for name, value in zip(("high", "low"), count_up(N), strict=True):
            self.register_buffer(name, value)

    def make(self, source) -> nn.Module:
        """The branch of one flavour."""
        return StaticCategoryAttention(source, N, 64, False, folded=1.0)

    def attend(self, qkv, categories, shared, capacity, impure):
        """The branch's output (n, c)."""
        shared.slots = plan_slots(shared.tokens, capacity, shared.pure, impure, 64)
        return self.branch(qkv, categories, qkv[:, 96:], shared)

    def forward(self, qkv, categories, mask, slots):
        tokens = (self.high + self.low).view(-1)
        impure = (N - mask.sum(dim=0, keepdim=True)).to(torch.int32)
        return self.attend(qkv, categories, Shared(tokens, {}, mask > 0.5), slots.shape[1], impure)


class RowBranch(Branch):
    """The same in the flavour `ort`."""

    def make(self, source) -> nn.Module:
        self.cut = BlockCut(SIZE, 16, 8)
        return RowCategoryAttention(source, folded=1.0, bias=torch.zeros(48))

    def attend(self, qkv, categories, shared, capacity, impure):
        cut = self.cut(shared.tokens)
        shared.cuts = {8: cut}
        RowLayer.prepare(shared, capacity, impure, 64)
        q, k, v = (x.index_select(0, cut.order) for x in torch.split(qkv, 48, dim=1))
        return self.branch((q, k, v), categories, v, cut, shared.rows).index_select(0, cut.place)


@pytest.fixture(scope="module", params=[Branch, RowBranch])
def branch(request, network, tmp_path_factory):
    """The exported branch in ONNX Runtime, and the network's own."""
    source = network.layers[0].residual_group.layers[1].attn_aca
    path = tmp_path_factory.mktemp("branch") / "branch.onnx"
    inputs = {
        "qkv": torch.randn(N, 144), "categories": torch.randint(64, (N,)).int(),
        "mask": torch.ones(N), "slots": torch.zeros(1, N, dtype=torch.int32),
    }  # fmt: skip
    trace(request.param(source), inputs, ("out",), path)
    model = onnx.load(path)
    # As it ships: with the operators that one flavour has fused.
    session = (fuse(model, tuple(range(128, N + 1, 128))) if request.param is RowBranch else model).SerializeToString()
    return onnxruntime.InferenceSession(session), source


EDGES = sorted({m for k in range(N // 128 + 1) for m in (128 * k - 1, 128 * k, 128 * k + 1) if 0 <= m <= N} | {0, 1})


@given(st.data())
@examples(150)
def test_the_exported_branch_is_the_networks_at_every_sufficient_capacity(branch, data):
    """Random and adversarial masks, every boundary of a group; tokens not finite among the pure ones stay there."""
    session, source = branch
    m = data.draw(st.sampled_from(EDGES) | st.integers(0, N))
    capacity = 128 * data.draw(st.integers(max(1, -(-m // 128)), N // 128))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    order = data.draw(st.sampled_from(["random", "first", "last"]))
    where = rng.permutation(N) if order == "random" else np.arange(N) if order == "first" else np.arange(N)[::-1]
    pure = np.ones(N, bool)
    pure[where[:m]] = False
    categories = rng.integers(0, data.draw(st.sampled_from([1, 2, 64])), N).astype(np.int32)
    qkv = rng.standard_normal((N, 144)).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(qkv)[None]
        expected = source(x, torch.from_numpy(categories).long()[None], torch.from_numpy(pure)[None], x[..., 96:])[0]
    feeds = {"qkv": qkv, "categories": categories, "mask": pure.astype(np.float32)}
    (out,) = session.run(None, {**feeds, "slots": np.zeros((1, capacity), np.int32)})
    assert np.abs(out - expected.numpy()).max() <= 2e-5


class TwinRunner(Runner):
    """The whole network's twin, with the capacities of an artifact."""

    def __init__(self, folder) -> None:
        super().__init__(read_artifact(folder))
        self.twin = ppexport.make_twin(ppexport.load_network("pp_atd_light_x2"), size=SIZE)

    def _run(self, prepared):
        sr, impure = self.twin(torch.from_numpy(prepared.lr), slots=torch.zeros(1, prepared.capacity))
        return Result(sr.numpy(), int(impure), prepared.capacity)


@pytest.mark.parametrize("step", [32, 48])
def test_a_step_between_gradients_on_a_tiles_border_shows_no_seam(full, chosen, step):
    y, x = np.mgrid[: SIZE[0], :80]
    slope = y // 4 + x // 4
    # The step lies between windows, so that both sides are pure; noise far from it has the second tile take more slots.
    rgb = np.stack([np.where(x < step, 200 - slope, 30 + slope), 60 + slope, np.where(x < step, 40, 180)], axis=2)
    rgb = rgb.astype(np.uint8)
    rgb[:, 72:] = np.random.default_rng(5).integers(0, 256, (SIZE[0], 8, 3))
    exact, report = upscale_array(TwinRunner(full), rgb)
    sr, set_report = upscale_array(TwinRunner(chosen), rgb)
    assert [run.origin for run in report.tiles] == [(0, 0), (0, 32)]
    assert len({run.capacity for run in set_report.tiles}) == 2
    assert not set_report.over_capacity
    assert np.abs(sr.astype(int) - exact).max() <= 1
    whole = to_uint8(ppexport.load_network("pp_atd_light_x2")(torch.from_numpy(to_input(rgb))).numpy())
    # Nor does the other tile's border, where the picture has no step of its own.
    difference = (sr.astype(float) - whole).mean(axis=0)
    border = 2 * (80 - step)
    assert np.abs(np.diff(difference, axis=0))[border - 5 : border + 4].max() < 0.5
