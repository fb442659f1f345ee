"""Padded heads compute the same picture."""

from __future__ import annotations

import pytest
import torch
from conftest import golden_network
from tensorrt_models import random_network, shorten

import ppexport
from ppexport.twin.padded_heads import pad_columns, pad_rows


def both(network, size, capacity=None):
    lr = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    lr[:, :, : size[0] // 2] = 0.5
    return [
        ppexport.make_twin(network, size=size, capacity=capacity, flavour=flavour)(lr)
        for flavour in ("portable", "tensorrt")
    ]


@pytest.mark.parametrize("compensation", ["value", "normed", "zero"])
def test_padding_is_exact(compensation):
    (sr, impure), (padded, padded_impure) = both(shorten(random_network("pp_atd_light", 2, compensation)), (32, 48))
    assert 0 < int(impure) < 32 * 48
    assert int(padded_impure) == int(impure)
    assert (padded - sr).abs().max() <= 1e-6


def test_padding_is_exact_without_pure_pass_and_on_trained_weights():
    for arch in ("atd_light", "pp_atd_light"):
        (sr, _), (padded, _) = both(golden_network("atd_light_x2_trained", arch), (17, 20))
        assert (padded - sr).abs().max() <= 1e-6


def test_padded_layers_have_heads_of_sixteen_channels():
    twin = ppexport.make_twin(shorten(random_network("pp_atd_light", 2)), size=(16, 16), flavour="tensorrt")
    layer = twin.layers[0].residual_group.layers[0]
    assert layer.wqkv.out_features == 3 * 4 * 16
    assert layer.attn_win.proj.in_features == layer.attn_aca.proj.in_features == 4 * 16


def test_what_is_padded_is_zero():
    linear = torch.nn.Linear(6, 6)
    rows = pad_rows(linear, 2)
    assert rows.weight.view(2, 8, 6)[:, 3:].abs().sum() == 0
    assert rows.bias.view(2, 8)[:, 3:].abs().sum() == 0
    columns = pad_columns(linear, 2)
    assert columns.weight.view(6, 2, 8)[:, :, 3:].abs().sum() == 0
    x = torch.rand(5, 6)
    padded = torch.zeros(5, 2, 8)
    padded[:, :, :3] = x.view(5, 2, 3)
    assert torch.allclose(columns(padded.view(5, -1)), linear(x), atol=1e-6)
