"""Networks, sizes and capacities that nothing can be made from: refused at once, with what to call instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from conftest import photo

import ppexport
from ppexport.device.capacities import capacity_set, check_capacities, check_size
from ppexport.device.mask import ATD_LAYOUT
from ppexport.device.picture import to_input
from ppexport.errors import InputError
from ppexport.networks.load import card_of


@pytest.mark.parametrize(
    "size",
    [64, "64x64", "88", ("16", "16"), (16.0, 16.0), (True, 16), (16,), (16, 16, 3), [(16, 16)], (0, 16), (-16, 16), ()],
)
def test_sizes_that_are_none(size, x2, tmp_path):
    for make in (
        lambda: ppexport.export(x2, backend="onnx", size=size, out=tmp_path / "a"),
        lambda: ppexport.make_twin(x2, size),
        lambda: capacity_set(size),
    ):
        with pytest.raises(InputError, match=r"a size is \(height, width\) in whole pixels of at least 1x1"):
            make()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "capacities", [128, "128", ["128"], [128.0], [True], [[128]], [-128], [0], [], [128, 128], [None], [100], [384]]
)
@pytest.mark.parametrize("flavour", ["portable", "ort"])
def test_capacities_that_are_none(capacities, flavour, x2, tmp_path):
    with pytest.raises(InputError, match="capacities are ascending multiples of 128 from 128 to 256, not "):
        ppexport.export(x2, backend="onnx", size=(16, 16), out=tmp_path / "a", capacities=capacities, flavour=flavour)
    if isinstance(capacities, list) and len(capacities) == 1 and capacities != [None]:
        with pytest.raises(InputError, match="capacities are ascending multiples of 128 from 128 to 256, not "):
            ppexport.make_twin(x2, (16, 16), capacities[0])
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_other_libraries_are_sizes_and_capacities():
    for size in ((np.int64(37), np.uint8(53)), np.array([37, 53]), torch.Size((37, 53)), [37, 53]):
        assert check_size(size) == (37, 53)
    assert check_capacities(np.array([128, 256]), (16, 16), ATD_LAYOUT) == (128, 256)
    with pytest.raises(InputError, match="a size is"):
        check_size((np.True_, 16))


def with_nan(network):
    network.layers[1].conv.weight[0, 0, 0, 0] = float("nan")


def with_infinity(network):
    network.upsample[0].bias[0] = float("inf")


def pruned(network):
    torch.nn.utils.prune.l1_unstructured(network.conv_first, "weight", amount=0.5)


def hooked(network):
    network.norm.register_forward_hook(lambda module, given, result: result * 2)


def parametrised(network):
    torch.nn.utils.parametrizations.weight_norm(network.conv_first, "weight")


def adapted(network):
    class Adapted(torch.nn.Linear):
        """As adapters of fine-tuning are: a layer with more beside it."""

    network.layers[0].residual_group.layers[0].wqkv.__class__ = Adapted


def replaced(network):
    network.norm.forward = lambda x: x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.half(), r"is torch\.float16, .*: call network\.float\(\) first"),
        (lambda network: network.bfloat16(), r"is torch\.bfloat16, .*: call network\.float\(\) first"),
        (lambda network: network.double(), r"is torch\.float64, .*: call network\.float\(\) first"),
        (lambda network: network.norm.half(), r"'norm\.weight' is torch\.float16, .*: call network\.float\(\) first"),
        (lambda network: network.to("meta"), r"on the device meta and has no values: load weights with load_network"),
        (with_nan, r"'layers\.1\.conv\.weight' holds NaN or infinite values"),
        (with_infinity, r"'upsample\.0\.bias' holds NaN or infinite values"),
        (pruned, r"module 'conv_first' has forward hooks.*torch\.nn\.utils\.prune\.remove"),
        (hooked, r"module 'norm' has forward hooks"),
        (parametrised, r"module 'conv_first' is parametrised: call torch\.nn\.utils\.parametrize\.remove_parametriz"),
        (adapted, r"wqkv' is a Adapted that ppexport does not know.*merge"),
        (replaced, r"module 'norm' is a LayerNorm that ppexport does not know"),
    ],
)  # fmt: skip
def test_networks_that_an_export_would_change_are_refused_at_once(change, message, x2, tmp_path, monkeypatch):
    change(x2)
    monkeypatch.setattr("ppexport.twin.atd_twin.make_atd_twin", lambda *_: pytest.fail("this comes late"))
    for make in (
        lambda: ppexport.export(x2, backend="onnx", size=(16, 16), out=tmp_path / "a"),
        lambda: ppexport.make_twin(x2, (16, 16)),
        lambda: card_of(x2),
    ):
        with pytest.raises(InputError, match=message):
            make()
    assert not list(tmp_path.iterdir())


def test_a_wrapped_network_is_refused_with_the_way_to_the_one_inside(x2):
    with pytest.raises(
        InputError, match="DataParallel is not a network of a registered architecture: pass what it wraps.* module"
    ):
        card_of(torch.nn.DataParallel(x2))


def test_a_twin_does_not_depend_on_the_training_mode(x2):
    lr = torch.from_numpy(to_input(photo(16, 16)))
    assert torch.equal(ppexport.make_twin(x2.train(), (16, 16))(lr)[0], ppexport.make_twin(x2.eval(), (16, 16))(lr)[0])
