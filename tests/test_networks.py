"""The reference networks: sizes, batches, masks, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import golden_network, photo
from hypothesis import given
from hypothesis import strategies as st
from shared import examples

from ppexport.device.mask import ATD_LAYOUT
from ppexport.device.picture import to_input
from ppexport.networks.architecture import find_architecture
from ppexport.networks.atd.atd_light import ATDLight, PPATDLight
from ppexport.networks.atd.attention import mirror_slots, route
from ppexport.networks.card import PurePassOptions
from ppexport.networks.network import pad


def image(height, width):
    return torch.from_numpy(to_input(photo(height, width)))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (15, 17), (16, 16), (33, 5)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_any_size_comes_out_scaled(size, scale):
    torch.manual_seed(0)
    sr = PPATDLight(scale).eval()(image(*size))
    assert sr.shape == (1, 3, size[0] * scale, size[1] * scale)
    assert torch.isfinite(sr).all()


def test_small_images_are_mirrored_as_often_as_needed():
    x = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    padded = pad(x, ATD_LAYOUT)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2]
    assert torch.equal(padded[0, 0, 0], padded[0, 2, 15])


def test_a_batch_is_its_images(x2):
    batch = torch.cat([image(20, 40), torch.zeros(1, 3, 20, 40), image(20, 40).flip(3), torch.rand(1, 3, 20, 40)])
    together = x2(batch)
    for i in range(4):
        assert (together[i : i + 1] - x2(batch[i : i + 1])).abs().max() <= 1e-5


def test_a_mask_replaces_the_computed_one(x2):
    x = image(32, 32)
    dense = golden_network("atd_light_x2_trained", "atd_light")
    none, everything = (torch.full((1, 32, 32), value) for value in (False, True))
    assert (x2(x, none) - dense(x)).abs().max() <= 1e-6
    assert (x2(x, everything) - dense(x)).abs().max() > 1e-4
    with pytest.raises(ValueError, match="mask"):
        x2(x, torch.zeros(1, 16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        dense(x, none)


def test_compensation_of_an_all_pure_image(x2):
    x = torch.full((1, 3, 16, 16), 0.25)
    pictures = []
    for kind in ("value", "zero", "normed"):
        network = PPATDLight(2, PurePassOptions(compensation=kind)).eval()
        network.load_state_dict(x2.state_dict())
        pictures.append(network(x))
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True))


@pytest.mark.parametrize("network", [ATDLight, PPATDLight])
def test_every_parameter_is_trained(network):
    torch.manual_seed(0)
    model = network(2)
    x = image(32, 48) + torch.rand(1, 3, 32, 48) * 0.1
    with torch.enable_grad():
        model(x).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # The clamp of the learned temperatures and the logits of a cosine have gradients only inside their ranges.
    assert silent == []


@given(st.data())
@examples(60)
def test_routes_are_stable_sorted_groups_with_a_mirrored_tail(data):
    n = data.draw(st.sampled_from([256, 512]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    m = data.draw(st.sampled_from([0, 1, 2, 127, 128, 129, n - 1, n]))
    categories = torch.from_numpy(rng.integers(0, data.draw(st.sampled_from([1, 3, 64])), (1, n)))
    pure = torch.ones(1, n, dtype=torch.bool)
    pure[0, torch.from_numpy(rng.permutation(n)[:m].copy())] = False
    routes = route(categories, pure)
    expected = sorted((i for i in range(n) if not pure[0, i]), key=lambda i: (int(categories[0, i]), i))
    assert routes.tokens.tolist() == expected
    assert len(routes.source) == -(-m // 128) * 128
    assert routes.source[routes.slots].tolist() == expected
    there_and_back = [*range(m), *reversed(range(m))]
    slots = routes.source.tolist()
    assert slots == [expected[there_and_back[p % (2 * m)]] for p in range(len(slots))]


def test_mirror_slots():
    assert mirror_slots(torch.arange(8), 3).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]


atd_cost = find_architecture("atd_light").cost


@pytest.mark.parametrize(
    ("scale", "size", "published", "pure"),
    [(2, (360, 640), 380.01, 375.68), (3, (240, 427), 167.96, 166.05), (4, (180, 320), 100.09, 98.96)],
)
def test_multiply_adds_are_the_published_ones(scale, size, published, pure):
    macs = atd_cost(scale, size)
    assert round(macs.published / 1e9, 2) == published
    assert round(macs.pure / 1e9, 2) == pure


@pytest.mark.parametrize(("scale", "count"), [(2, 753_204), (3, 759_699), (4, 768_792)])
def test_parameters_are_the_published_ones(scale, count):
    assert sum(p.numel() for p in PPATDLight(scale).parameters()) == count


def test_pure_pixels_save_category_attention():
    dense = atd_cost(4, (180, 320))
    tokens = 192 * 320
    none = atd_cost(4, (180, 320), impure=0, colors=8)
    assert none.branches["category"] == 0
    assert none.branches["mask"] == 3 * 8 * tokens
    assert 0.2145 <= dense.branches["category"] / dense.published <= 0.217
    assert atd_cost(4, (180, 320), impure=1).branches["category"] == 24 * (128 * 128 * 48 * 2 + 48 * 48)
