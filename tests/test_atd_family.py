"""Networks of the ATD family: weights tell their configuration, and the twin of every configuration is the network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import golden_arrays
from small_networks import MEMBERS, numbered_weights
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ppexport
from ppexport.device.artifact import read_artifact
from ppexport.device.capacities import capacity_set
from ppexport.errors import CheckpointError, InputError, TwinError
from ppexport.networks.architecture import find_architecture, place_of
from ppexport.networks.atd.atd_light import ATDLight, AtdOptions, PPATDLight
from ppexport.networks.atd.config import CLASSICAL, AtdConfig
from ppexport.networks.card import PurePassOptions
from ppexport.networks.load import card_of, shapes_of
from ppexport.parity.references import reference_network
from ppexport.quantize.recipe import group_of
from ppexport.twin.folded import spread

LIMIT = 2e-5
CONFIGS = [
    AtdConfig(30, (2, 1), 3, 16, 12, 7, 45, 5, extra, group, upsampler, residual)
    for upsampler, residual, extra, group in itertools.product(
        ("pixelshuffledirect", "pixelshuffle", "nearest+conv"), ("1conv", "3conv"), (0, 5), (128, 256)
    )
]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.upsampler}-{c.residual}-v{1 + c.is_second}-{c.category_size}"
)


def scale_for(config):
    """One that the upsampler has; 4 takes two steps of `pixelshuffle`, 3 one of its own."""
    return 3 if config.upsampler == "pixelshuffledirect" else 4


def member(config, pure_pass=False):
    """A network of *config* with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = (PPATDLight if pure_pass else ATDLight)(scale_for(config), config=config)
    return numbered_weights(network, 1)


def image(height=17, width=20):
    """Noise beside a flat part, (1, 3, h, w)."""
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    lr[:, :, : height // 2] = 0.4
    return lr


@every_config
def test_weights_alone_tell_their_network(config, tmp_path):
    network, lr = member(config), image()
    path = tmp_path / "net.pth"
    torch.save({"params_ema": network.state_dict()}, path)
    found = find_architecture("atd").detect(shapes_of(network.state_dict()))
    assert (replace(found.architecture.config, category_size=config.category_size), found.scale) == (
        config,
        network.scale,
    )
    again = ppexport.load_network(checkpoint=path, category_size=config.category_size)
    assert (again.arch, again.scale, again.config) == ("atd", network.scale, config)
    assert torch.equal(again(lr), network(lr))
    # The manifest keeps architecture, scale and options, from which parity loads the network again.
    card = card_of(again)
    rebuilt = ppexport.load_network(arch=card.arch, scale=card.scale, checkpoint=path, **card.model_dump()["options"])
    assert rebuilt.config == config


@every_config
def test_the_twin_is_the_network(config):
    lr = image()
    for pure_pass, flavours in ((True, ("portable", "ort", "tensorrt")), (False, ("portable",))):
        network = member(config, pure_pass)
        expected = network(lr)
        for flavour in flavours:
            sr, impure = ppexport.make_twin(network, size=lr.shape[2:], flavour=flavour)(lr)
            assert (sr - expected).abs().max() <= LIMIT
            assert (int(impure) < 32 * 32) == pure_pass


@every_config
def test_the_cost_is_what_the_network_multiplies(config):
    network, lr = member(config).requires_grad_(False), image(32, 32)
    with FlopCounterMode(display=False) as counted:
        network(lr)
    assert 2 * network.architecture.cost(network.scale, (32, 32)).pure == counted.get_total_flops()


@pytest.mark.parametrize("name", MEMBERS)
def test_members_and_their_twins_are_the_authors(name):
    scale, config = MEMBERS[name]
    arrays = golden_arrays("atd_members")
    lr, expected = torch.from_numpy(arrays["lr"]), torch.from_numpy(arrays[f"{name}.sr"])
    network = numbered_weights(ATDLight(scale, config=config), int(arrays[f"{name}.seed"]))
    assert (network(lr) - expected).abs().max() <= LIMIT
    assert (ppexport.make_twin(network, size=lr.shape[2:])(lr)[0] - expected).abs().max() <= LIMIT
    # What no weight tells counts, too.
    other = replace(config, category_size=128 if config.category_size == 256 else 256)
    network = numbered_weights(ATDLight(scale, config=other), int(arrays[f"{name}.seed"]))
    assert (network(lr) - expected).abs().max() > 10 * LIMIT


def test_interpolation_and_convolution_are_one_convolution():
    conv, x = nn.Conv2d(5, 7, 3, padding=1), torch.randn(2, 5, 4, 6)
    expected = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    assert (F.pixel_shuffle(spread(conv)(x), 2) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(("scale", "millions"), [(2, 20.1), (3, 20.3), (4, 20.3)])
def test_the_classical_network_is_the_published_one(scale, millions):
    with torch.device("meta"):
        network = find_architecture("atd").build(scale, None)
    assert (network.arch, network.config) == ("atd", CLASSICAL)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_only_published_light_networks_have_names_of_their_own():
    assert (ATDLight(2).arch, ATDLight(2).options) == ("atd_light", None)
    light = ATDLight(2, AtdOptions(category_size=64))
    assert (light.arch, light.config) == ("atd", AtdConfig(category_size=64))
    pure = PPATDLight(2, PurePassOptions(colors=6), replace(AtdConfig(), category_size=64))
    assert card_of(pure).model_dump()["options"] == {
        "colors": 6, "window": 8, "csmf": True, "centres": "fixed", "compensation": "value", "category_size": 64,
    }  # fmt: skip
    assert pure.arch == "pp_atd"
    with pytest.raises(ValueError, match=r"nearest\+conv is not made for scale 2"):
        ATDLight(2, config=AtdConfig(upsampler="nearest+conv"))


LAYER = "layers.0.residual_group.layers.0"
STATE = member(CONFIGS[0]).state_dict()
REFUSED = [
    ({"upsample.0.weight": None}, r"its upsampler is not nearest\+conv or pixelshuffle or pixelshuffledirect"),
    ({"conv_up1.weight": torch.zeros(64, 64, 3, 3)}, "no key 'conv_before_upsample.0.weight', which atd needs"),
    ({"layers.0.conv.weight": None}, "its residual connection is not 1conv or 3conv"),
    ({"layers.0.residual_group.td": torch.zeros(12)}, r"td' has shape \(12,\), which is not one of 2 sides"),
    (
        {f"{LAYER}.attn_atd.wq.weight": None},
        "no key .*wq.weight', which networks with a token dictionary have",
    ),
    ({f"{LAYER}.attn_win.relative_position_bias_table": torch.zeros(225, 3)}, "its windows are 8x8"),
    ({f"{LAYER}.attn_win.relative_position_bias_table": torch.zeros(961, 4)}, "30 channels do not divide into 4 heads"),
    ({f"{LAYER}.convffn.dwconv.depthwise_conv.0.weight": torch.zeros(45, 1, 4, 4)}, "even side, 4"),
    ({"layers.1.residual_group.layers.0.wqkv.weight": torch.zeros(96, 32)}, r"has shape \(96, 32\), not \(90, 30\)"),
    ({"layers.0.residual_group.td": torch.zeros(12, 600)}, r"\(90, 30\), not \(1800, 600\)"),
    ({"layers.0.residual_group.td": torch.zeros(1025, 30)}, "1025 entries of the dictionary, .* at most 1024"),
    ({f"{LAYER}.attn_atd.scale": torch.zeros(11)}, r"scale' has shape \(11,\), not \(12,\)"),
    ({"layers.1.residual_group.layers.0.attn_atd.wq.bias": torch.zeros(8)}, r"has shape \(8,\), not \(7,\)"),
    ({f"layers.0.residual_group.layers.{n}.wqkv.weight": torch.zeros(90, 30) for n in range(100)}, "it has 101 layers"),
    ({"upsample.0.weight": torch.tensor(1.0)}, "belongs to a scale"),
    ({"upsample.0.weight": torch.zeros(75, 30, 3, 3)}, "the scale of atd is one of 2, 3, 4, not 5"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_weights_that_tell_no_network_are_refused_with_one_sentence(changes, message, tmp_path):
    state = {key: value for key, value in {**STATE, **changes}.items() if value is not None}
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises((CheckpointError, InputError), match=message) as error:
        ppexport.load_network(checkpoint=tmp_path / "bad.pth")
    assert "\n" not in str(error.value)


def test_a_light_name_does_not_take_other_sizes(tmp_path):
    torch.save(STATE, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="weights of atd, not of pp_atd_light: say --arch atd"):
        ppexport.load_network(arch="pp_atd_light", scale=3, checkpoint=tmp_path / "net.pth")


@pytest.mark.parametrize(("residual", "ends"), [("1conv", [""]), ("3conv", [".0", ".2", ".4"])])
def test_roles_cover_both_residual_connections(residual, ends):
    network = member(AtdConfig(8, (1, 1), 2, residual=residual))
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    half = find_architecture("atd").half.items()
    for path, group in (("layers.1.conv", "block_conv"), ("conv_after_body", "body_conv")):
        assert [name for name in convolutions if name.startswith(path)] == [path + end for end in ends]
        for end in ends:
            assert group_of(path + end) == group
            assert any("Conv" in kinds and place_of(role, path + end) is not None for role, kinds in half)


def test_slots_come_in_whole_groups():
    network = member(CONFIGS[1], pure_pass=True)
    with pytest.raises(TwinError, match="multiples of 256 from 256 to 1024"):
        ppexport.make_twin(network, size=(32, 32), capacity=384)
    lr = image(32, 32)
    sr, impure = ppexport.make_twin(network, size=(32, 32), capacity=768)(lr)
    assert 256 < int(impure) <= 768
    assert (sr - network(lr)).abs().max() <= LIMIT
    with pytest.raises(ValueError, match="C a multiple of 256 up to 1024"):
        ppexport.make_twin(network, size=(32, 32))(lr, slots=torch.zeros(1, 384))


@pytest.mark.parametrize("options", [{}, {"flavour": "ort"}])
def test_an_artifact_passes_its_check_and_tells_its_network(options, tmp_path):
    config = AtdConfig(30, (1,), 3, 16, 12, 7, 45, 5, 5, 64, "nearest+conv", "3conv")
    torch.save(member(config).state_dict(), tmp_path / "net.pth")
    network = ppexport.load_network(checkpoint=tmp_path / "net.pth", category_size=64)
    folder = ppexport.export(network, backend="onnx", size=(16, 16), out=tmp_path / "a", **options)
    artifact = read_artifact(folder)
    assert artifact.manifest.options == {"category_size": 64}
    assert reference_network(artifact, tmp_path / "net.pth").config == config
    lr = image(16, 16)
    with ppexport.open_artifact(folder) as runner:
        sr, impure, capacity = runner(lr.numpy())
    assert (impure, capacity) == (256, 256)
    assert (torch.from_numpy(sr) - network(lr)).abs().max() <= LIMIT


@pytest.mark.parametrize("flavour", ["portable", "ort"])
def test_a_capacity_set_of_groups_of_256(flavour, tmp_path):
    config, lr = AtdConfig(30, (1,), 3, 16, 12, 7, 45, 5, 0, 256, "pixelshuffle", "1conv"), image(32, 32)
    network = member(config, pure_pass=True)
    slots = capacity_set((32, 32), 4, network.layout)
    folder = ppexport.export(
        network, backend="onnx", size=(32, 32), out=tmp_path / "a", capacities=slots, flavour=flavour
    )
    with ppexport.open_artifact(folder) as runner:
        sr, impure, capacity = runner(lr.numpy())
    assert (256 < impure <= 768, capacity) == (True, -(-impure // 256) * 256)
    assert (torch.from_numpy(sr) - network(lr)).abs().max() <= LIMIT
