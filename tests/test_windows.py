"""Pure-Pass on networks of whole windows: PP-SwinIR-light and PP-CAMixerSR."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shared import examples
from small_networks import random_small_network

import ppexport
import ppexport.errors
from ppexport.backends.backend import open_artifact
from ppexport.device.artifact import parse_manifest
from ppexport.device.capacities import capacity_set
from ppexport.device.mask import Layout
from ppexport.networks.architecture import architectures, find_architecture
from ppexport.networks.pure_pass import easy_windows
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.twin.twin import make_twin
from ppexport.twin.windows import count_slots, plan_windows

WINDOWED = [name for name, a in architectures().items() if a.layout.grids]
SIZE = (44, 38)
"""No multiple of any window."""


@pytest.fixture(scope="module", params=WINDOWED)
def network(request):
    return random_small_network(request.param, 2)


def test_both_kinds_are_tested():
    assert {"pp_swinir_light", "pp_camixersr"} <= set(WINDOWED)


@given(arrays(np.bool_, st.integers(1, 300)), st.data())
@examples(200)
def test_slots_hold_the_first_hard_windows_and_give_them_back(hard, data):
    capacity = data.draw(st.integers(1, len(hard)))
    windows = torch.arange(len(hard), dtype=torch.int32)
    slots = plan_windows(torch.from_numpy(hard), windows, windows[:capacity])
    values = torch.arange(1, len(hard) + 1).float().view(-1, 1, 1)
    written = slots.write(slots.read(values), torch.zeros(())).flatten().numpy()
    held = np.flatnonzero(hard)[:capacity]
    expected = np.zeros(len(hard))
    expected[held] = held + 1
    assert np.array_equal(written, expected)
    assert int(slots.hard) == hard.sum()
    assert slots.source.max() < len(hard)


@given(st.integers(1, 20), st.integers(1, 40))
@examples(50)
def test_a_capacity_in_tokens_is_as_many_windows_as_there_are(windows, capacity):
    tokens = torch.arange(windows * 64, dtype=torch.int32)
    expected = list(range(min(windows, capacity)))
    assert count_slots(tokens, windows, 64, capacity * 64).tolist() == expected


@given(st.sampled_from(WINDOWED), st.data())
@examples(100)
def test_the_host_counts_the_windows_that_the_network_has(arch, data):
    layout = find_architecture(arch).layout
    cells = data.draw(arrays(np.bool_, (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))))
    pure = cells.repeat(layout.window // 2, 0).repeat(layout.window // 2, 1)
    pure = pure[: pure.shape[0] // layout.window * layout.window, : pure.shape[1] // layout.window * layout.window]
    if not pure.size:
        return
    share = data.draw(st.sampled_from([0.1, 0.5, 0.75, 1.0]))
    counts = [
        int((~easy_windows(torch.from_numpy(pure)[None], layout.window, shift, share)).sum()) for shift in layout.grids
    ]
    assert layout.routed(pure, share) == max(counts) * layout.group


def test_the_twin_is_the_network_with_and_without_slots_to_spare(network):
    twin, found = make_twin(network, SIZE), set()
    for item in parity_inputs(SIZE, 2):
        lr = torch.from_numpy(item.lr)
        with torch.no_grad():
            expected, (sr, impure) = network(lr), twin(lr)
            labels, pure = network.pure_pixels(lr)
            tight = max(twin.group, int(impure))
            again, _ = twin(lr, slots=torch.zeros(1, tight))
        assert (expected - sr).abs().max() < 2e-5, item.name
        assert (expected - again).abs().max() < 2e-5, item.name
        assert int(impure) == network.routed(pure[0].numpy())
        assert np.array_equal(twin.pure_pass(twin.pad(lr)).numpy(), pure.flatten().numpy())
        assert labels.shape == pure.shape
        found.add(int(impure))
    assert {0, twin.tokens} <= found
    assert len(found) > 3


def test_without_pure_windows_it_is_the_network_that_it_was_made_of(network):
    lr = torch.from_numpy(next(i for i in parity_inputs(SIZE, 2) if i.name == "coffee").lr)
    base = random_small_network(network.arch.removeprefix("pp_"), 2)
    base.load_state_dict(network.state_dict())
    if network.arch == "pp_camixersr":
        for group in base.body:
            for block in group.body:
                block.mixer.ratio = 1.0
    _, pure = network.pure_pixels(lr)
    assert pure.any()
    with torch.no_grad():
        dense, none = base(lr), torch.zeros_like(pure)
        assert torch.equal(network(lr, mask=none), dense)
        assert (make_twin(network, SIZE)(lr, none.float()[None])[0] - dense).abs().max() < 2e-5
        assert (network(lr) - dense).abs().max() > 1e-3


@pytest.mark.parametrize("arch", WINDOWED)
def test_with_pure_windows_only_queries_and_keys_do_not_matter(arch):
    network = random_small_network(arch, 2)
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pure = torch.ones(1, 32, 32, dtype=torch.bool)
    twin = make_twin(network, (32, 32))
    with torch.no_grad():
        before, (static, impure) = network(lr, mask=pure), twin(lr, pure.float()[None])
        for name, parameter in network.named_parameters():
            if "project_q" in name or "project_k" in name:
                parameter.zero_()
            elif "attn.qkv" in name and arch == "pp_swinir_light":
                # Windows that the shift cuts at the border attend: the first layer has none.
                parameter[: 2 * len(parameter) // 3] *= float("blocks.0." not in name)
        assert torch.equal(network(lr, mask=pure), before)
    assert (static - before).abs().max() < 2e-5
    assert int(impure) == 0


def test_too_few_slots_take_the_last_hard_windows_as_easy(network):
    lr = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    twin = make_twin(network, (32, 48), capacity=2 * network.layout.group)
    with torch.no_grad():
        sr, impure = twin(lr)
        dense = network(lr)
    assert int(impure) == 32 * 48
    assert torch.isfinite(sr).all()
    assert (sr - dense).abs().max() > 1e-3


@pytest.mark.parametrize("compensation", ["value", "zero", "normed"])
def test_what_easy_windows_take_is_an_option(compensation):
    architecture = find_architecture("pp_swinir_light")
    small = random_small_network("pp_swinir_light", 2)
    for layer in small.layers[0].residual_group.blocks:
        layer.compensation = compensation
    twin, lr = make_twin(small, (24, 24)), torch.full((1, 3, 24, 24), 0.3)
    with torch.no_grad():
        assert (twin(lr)[0] - small(lr)).abs().max() < 2e-5
    options = architecture.options()(compensation=compensation)
    layers = [m for m in architecture.build(2, options).modules() if hasattr(m, "compensation")]
    assert {layer.compensation for layer in layers} == {compensation}


def test_a_share_of_pure_pixels_makes_a_window_easy():
    network = random_small_network("pp_camixersr", 2)
    pure = np.zeros((32, 32), np.bool_)
    pure[:16, :8] = True
    counts = {}
    for share in (0.25, 0.5, 0.51, 1.0):
        network.options = network.options.model_copy(update={"share": share})
        lr, mask = torch.rand(1, 3, 32, 32), torch.from_numpy(pure)[None]
        with torch.no_grad():
            sr, impure = make_twin(network, (32, 32))(lr, mask.float()[None])
            assert (sr - network(lr, mask=mask)).abs().max() < 2e-5
        counts[share] = int(impure)
        assert network.routed(pure) == int(impure)
    assert counts == {0.25: 768, 0.5: 768, 0.51: 1024, 1.0: 1024}


def test_a_capacity_set_is_exact_and_chosen_by_the_host(network, tmp_path, monkeypatch):
    size, layout = (32, 40), network.layout
    mask = "input" if len(layout.grids) > 1 else "graph"
    folder = ppexport.export(
        network, backend="onnx", size=size, out=tmp_path / "a", mask=mask, capacities=capacity_set(size, 3, layout)
    )
    with open_artifact(folder) as runner:
        assert runner.artifact.manifest.layout == layout
        items = [i for i in parity_inputs(size, 2) if i.name in ("coffee", "noise", "few_impure", "flat")]
        capacities = {i.name: runner(i.lr).capacity for i in items}
        monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: items)
        report = parity_run.run_parity(network, runner, tmp_path / "run", lambda *_: None)
    assert report.passed, report.to_dict()["pairs"]
    assert capacities["flat"] == capacities["few_impure"] < capacities["noise"] == layout.tokens(size)


def test_a_manifest_says_how_its_network_pads_and_what_takes_slots(tmp_path):
    network = random_small_network("pp_swinir_light")
    folder = ppexport.export(network, backend="onnx", size=(8, 16), out=tmp_path / "a")
    text = (folder / "manifest.json").read_text()
    assert parse_manifest(text, "m").layout == Layout(8, "reflect", 64, (0, 4))
    for old, new, problem in (
        ('"padding": "reflect"', '"padding": "zeros"', "padding 'zeros' is not one of"),
        ('"group": 64', '"group": 60', "not shifts of windows of 60 pixels"),
        ('"multiple": 8', '"multiple": 12', "tokens"),
        ('"window": 8', '"window": 16', "does not divide 8"),
        ("[\n    0,\n    4\n  ]", "[0, 3]", "not shifts of windows"),
    ):
        assert old in text
        with pytest.raises(ppexport.errors.ArtifactError, match=problem):
            parse_manifest(text.replace(old, new), "m")


def test_a_capacity_must_be_whole_windows_and_a_side_long_enough():
    network = random_small_network("pp_swinir_light")
    with pytest.raises(ppexport.errors.TwinError, match="ascending multiples of 64 from 64 to 256"):
        make_twin(network, (16, 16), capacity=96)
    with pytest.raises(ppexport.errors.TwinError, match="by reflection"):
        make_twin(network, (3, 16))
    with pytest.raises(ppexport.errors.TwinError, match="the same for every image"):
        make_twin(random_small_network("swinir_light"), (16, 16), capacity=64)
    with pytest.raises(ppexport.errors.CardError, match="window"):
        ppexport.load_network(arch="pp_swinir_light", scale=2, checkpoint="x.pth", window=16)
