"""CAMixer-ATD-light, a reading without weights: what it computes, what it costs, and how it is recognised."""

from __future__ import annotations

import pytest
import torch
from small_networks import lively, random_small_network
from torch.utils.flop_counter import FlopCounterMode

import ppexport
import ppexport.errors
from ppexport.networks.architecture import find_architecture, place_of
from ppexport.networks.atd.atd_light import ATDLight
from ppexport.networks.camixer.camixersr import CAMixerOptions
from ppexport.networks.camixer_atd.camixer_atd_light import CAMixerATDLight, WindowMixer
from ppexport.networks.cost import cost
from ppexport.networks.load import load_untrained
from ppexport.parity.inputs import parity_inputs
from ppexport.twin.twin import make_twin

SIZE = (44, 38)
"""Padded to nine windows, no multiple of any."""
NAME = "camixer_atd_light"


def mixers(network):
    return [module for module in network.modules() if isinstance(module, WindowMixer)]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_the_twin_is_the_network(ratio):
    network = random_small_network(NAME, 2)
    for mixer in mixers(network):
        mixer.ratio = ratio
    twin = make_twin(network, SIZE)
    for item in parity_inputs(SIZE, 2):
        lr = torch.from_numpy(item.lr)
        with torch.no_grad():
            expected, (sr, impure) = network(lr), twin(lr)
        assert (expected - sr).abs().max() < 2e-5, item.name
        assert int(impure) == twin.tokens


def test_the_windows_that_attend_are_the_chosen_share_of_every_picture_of_a_batch():
    network, lr = random_small_network(NAME, 2), torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (network(lr) - torch.cat([network(one) for one in lr.split(1)])).abs().max() < 2e-5
        pictures = []
        for ratio in (0.1, 0.5, 1.0):
            for mixer in mixers(network):
                mixer.ratio = ratio
            pictures.append(network(lr))
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])


def test_where_all_windows_attend_and_nothing_follows_it_is_atd_light_without_shift():
    mixing, plain = lively(CAMixerATDLight(2, CAMixerOptions(ratio=1))), ATDLight(2).eval()
    for mixer in mixers(mixing):
        for parameter in mixer.conv_sptial.parameters():
            torch.nn.init.zeros_(parameter)
    shared = plain.state_dict().keys()
    plain.load_state_dict({key: value for key, value in mixing.state_dict().items() if key in shared})
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = mixing(lr)
        assert (plain(lr) - expected).abs().max() > 1e-3
        for block in plain.layers:
            for layer in block.residual_group.layers:
                layer.shift = 0
        assert (plain(lr) - expected).abs().max() < 2e-5


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_the_cost_is_what_the_network_multiplies(ratio):
    network = CAMixerATDLight(3, CAMixerOptions(ratio=ratio)).requires_grad_(False)
    with FlopCounterMode(display=False) as counted:
        network(torch.zeros(1, 3, 30, 32))
    assert 2 * cost(network, (30, 32)).dense.pure == counted.get_total_flops()


def test_the_ratio_changes_the_cost_of_window_attention_alone():
    half, all_of_them = (
        cost(load_untrained(None, NAME, 2, {"ratio": ratio}), (64, 64)).dense.branches for ratio in (0.5, 1.0)
    )
    assert {name for name in half if half[name] != all_of_them[name]} == {"window"}
    assert all_of_them["window"] == 2 * half["window"]
    assert half == find_architecture(NAME).cost(2, (64, 64)).branches


def test_weights_are_told_apart_from_those_of_atd_light(tmp_path):
    mixing, plain = tmp_path / "mixing.pth", tmp_path / "plain.pth"
    torch.save(CAMixerATDLight(3).state_dict(), mixing)
    torch.save(ATDLight(3).state_dict(), plain)
    network = ppexport.load_network(checkpoint=mixing, ratio=0.25)
    assert (network.arch, network.scale, network.options.ratio) == (NAME, 3, 0.25)
    assert {mixer.ratio for mixer in mixers(network)} == {0.25}
    assert ppexport.load_network(checkpoint=plain).arch == "atd_light"
    for other in ("atd_light", "atd", "pp_atd"):
        with pytest.raises(ppexport.errors.CheckpointError, match=f"weights of {NAME}, not of {other}: say --arch"):
            ppexport.load_network(arch=other, scale=3, checkpoint=mixing)
    with pytest.raises(ppexport.errors.CheckpointError, match=f"weights of atd_light, not of {NAME}: say --arch"):
        ppexport.load_network(arch=NAME, scale=3, checkpoint=plain)


def test_the_roles_are_those_of_modules_of_the_twin():
    architecture, twin = find_architecture(NAME), make_twin(random_small_network(NAME), SIZE)
    modules = [name for name, _ in twin.named_modules()]
    branches = {name: architecture.branch_of(name, moves=False)[1] for name in modules}
    assert set(branches.values()) <= set(architecture.branches)
    layer = "layers.0.residual_group.layers.0.attn_win"
    assert {branches["global_predictor"], branches[f"{layer}.route.in_conv.0"]} == {"predictor"}
    assert {branches[f"{layer}.conv_sptial.1"], branches[f"{layer}.proj"]} == {"mixer convolutions"}
    assert branches[layer] == "window attention"
    depthwise = architecture.int8_groups["mixer_depthwise"]
    for roles in (architecture.half, architecture.half_modules):
        assert depthwise in roles
        assert any(place_of(depthwise, name) for name in modules)
        assert not any(place_of(role, f"{layer}.route.in_conv.0") for role in roles)
    # Scores and ranks are in the mixer itself, which Core ML must not take to fp16 as a whole.
    assert not any(place_of(role, layer) for role in architecture.half_modules)


def test_every_category_token_needs_a_slot():
    with pytest.raises(ppexport.errors.TwinError, match=f"{NAME} has no pure tokens"):
        make_twin(random_small_network(NAME), SIZE, capacity=128)
    with pytest.raises(ValueError, match=f"{NAME} takes no mask"):
        random_small_network(NAME)(torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.bool))
