"""Every rewrite of the twin against the network's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import golden_network, photo
from hypothesis import given, settings
from hypothesis import strategies as st

import ppexport
from ppexport.errors import TwinError
from ppexport.networks import attention as reference
from ppexport.networks.atd import Trace
from ppexport.networks.routing import route
from ppexport.picture import to_input
from ppexport.twin import windows
from ppexport.twin.counting_sort import CountingSort, count_up, prefix
from ppexport.twin.folded import add_mean, dictionary_temperature, position_table, scale_queries
from ppexport.twin.layers import Shared, StaticCategoryAttention, StaticDictionaryAttention, StaticWindowAttention
from ppexport.twin.routing import Router, plan_slots
from ppexport.twin.window_bias import PositionIndex, ShiftMask

LAYER = golden_network("atd_light_x4_random", "pp_atd_light").layers[1].residual_group.layers[1]


def tokens_to(n):
    return torch.arange(n, dtype=torch.int32)


@pytest.mark.parametrize("size", [32, 256, 768, 4096, 128 * 33])
def test_count_up(size):
    high, low = count_up(size)
    assert torch.equal((high + low).view(-1), tokens_to(size))
    assert high.numel() + low.numel() <= 256 + size // 32


@pytest.mark.parametrize("rows", [1, 8, 128, 129, 250, 1009, 128 * 128])
def test_prefix_is_an_exclusive_running_sum(rows):
    counts = torch.randint(0, 33, (rows, 5)).float()
    assert torch.equal(prefix(counts, tokens_to(max(rows, 128))), counts.cumsum(0) - counts)


@given(st.integers(0, 2**32), st.sampled_from([256, 768, 4096, 256 * 17]), st.sampled_from([1, 2, 65]))
@settings(max_examples=40, deadline=None)
def test_counting_sort_is_a_stable_sort(seed, n, keys):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(0, keys, n) if seed % 2 else rng.geometric(0.3, n) % keys)
    destination, order = CountingSort(n, keys)(values.int(), tokens_to(n))
    expected = values.argsort(stable=True)
    assert torch.equal(order.long(), expected)
    assert torch.equal(destination.long()[expected], torch.arange(n))


def test_counting_sort_of_a_large_image():
    n = 512 * 512
    values = torch.randint(0, 65, (n,))
    _, order = CountingSort(n, 65)(values.int(), tokens_to(n))
    assert torch.equal(order.long(), values.argsort(stable=True))


def test_counting_sort_states_its_limit():
    with pytest.raises(ValueError, match="multiple of 32"):
        CountingSort(100, 65)
    with pytest.raises(ValueError, match="below 16777216"):
        CountingSort(1 << 24, 65)


N = 512
EDGES = [0, 1, 2, 127, 128, 129, 255, 256, 257, N - 1, N]


@st.composite
def masks(draw):
    """Pure masks of N tokens: random ones, and runs at either end, with m at every edge."""
    m = draw(st.sampled_from(EDGES) | st.integers(0, N))
    kind = draw(st.sampled_from(["random", "first", "last"]))
    pure = torch.ones(N, dtype=torch.bool)
    where = np.random.default_rng(draw(st.integers(0, 2**32))).permutation(N) if kind == "random" else np.arange(N)
    pure[torch.from_numpy(where[N - m :] if kind == "last" else where[:m].copy())] = False
    return pure


@st.composite
def routed(draw):
    """Categories, a mask, and a capacity that is enough for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    categories = torch.from_numpy(rng.integers(0, draw(st.sampled_from([1, 2, 64])), N)).int()
    pure = draw(masks())
    least = max(1, math.ceil(int((~pure).sum()) / 128))
    return categories, pure, 128 * draw(st.integers(least, N // 128))


@given(routed())
@settings(max_examples=120, deadline=None)
def test_router_is_the_networks_routing(drawn):
    categories, pure, capacity = drawn
    impure = (~pure).sum().int().view(1)
    slots = plan_slots(tokens_to(N), capacity, impure)
    routes = Router(N, 64)(categories, pure, slots, tokens_to(N))
    expected = route(categories.long().view(1, -1), pure.view(1, -1))
    assert torch.equal(routes.source[: len(expected.source)].long(), expected.source)
    assert torch.equal(routes.routed.view(-1), ~pure)
    assert torch.equal(routes.slot[expected.tokens].long(), expected.slots)
    assert int(routes.slot.max()) < capacity
    assert 0 <= int(routes.source.min()) <= int(routes.source.max()) < N


def shared(pure, capacity):
    empty, tokens = torch.zeros(0), tokens_to(N)
    return Shared(tokens, empty, empty, pure, plan_slots(tokens, capacity, (~pure).sum().int().view(1)))


@given(routed(), st.sampled_from(["value", "zero", "normed"]))
@settings(max_examples=120, deadline=None)
def test_category_branch_is_exact_at_every_sufficient_capacity(drawn, kind):
    categories, pure, capacity = drawn
    with torch.no_grad():
        z = torch.randn(N, 48, generator=torch.Generator().manual_seed(int((~pure).sum())))
        qkv = LAYER.wqkv(z)
        rest = {"value": qkv[:, 96:], "zero": None, "normed": z}[kind]
        expected = LAYER.attn_aca(qkv[None], categories.long()[None], pure[None], None if rest is None else rest[None])[
            0
        ]
        twin = StaticCategoryAttention(LAYER.attn_aca, N, 64, False, folded=1.0)
        assert (twin(qkv, categories, rest, shared(pure, capacity)) - expected).abs().max() <= 2e-5


@given(masks(), st.sampled_from([128, 256, 384]))
@settings(max_examples=60, deadline=None)
def test_beyond_the_capacity_surplus_tokens_count_as_pure(pure, capacity):
    with torch.no_grad():
        categories = torch.randint(0, 64, (N,)).int()
        qkv = LAYER.wqkv(torch.randn(N, 48))
        twin = StaticCategoryAttention(LAYER.attn_aca, N, 64, False, folded=1.0)
        out = twin(qkv, categories, qkv[:, 96:], shared(pure, capacity))
        order = route(categories.long()[None], pure[None]).tokens
        kept = torch.ones(N, dtype=torch.bool)
        kept[order[:capacity]] = False
        expected = LAYER.attn_aca(qkv[None], categories.long()[None], kept[None], qkv[None, :, 96:])[0]
        assert (out - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (64, 16)])
def test_windows(size):
    image = torch.randn(*size, 5)
    parts = windows.partition(image, 16)
    assert torch.equal(parts, reference.window_partition(image[None], 16))
    assert torch.equal(windows.merge(parts, 16, *size), image)
    for shift in (8, -8):
        assert torch.equal(windows.roll(image, shift), image.roll((shift, shift), (0, 1)))


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (64, 16), (48, 48)])
def test_shift_mask_of_every_window(size):
    expected = reference.shift_mask(*size, 16, 8, torch.device("cpu"))
    assert torch.equal(ShiftMask(*size, 16, 8)()[:, 0], expected)


def test_position_index():
    assert torch.equal(PositionIndex(16)().long(), reference.relative_position_index(16))


@pytest.mark.parametrize("shift", [0, 8])
def test_window_branch(shift):
    size, qkv = (32, 48), torch.randn(32 * 48, 144)
    index = reference.relative_position_index(16)
    expected = LAYER.attn_win(qkv[None], size, shift, index)[0]
    folded = qkv.clone()
    folded[:, :48] *= LAYER.attn_win.scale
    common = Shared(torch.zeros(0), PositionIndex(16)(), ShiftMask(*size, 16, 8)(), None, None)
    out = StaticWindowAttention(LAYER.attn_win, size, shift)(folded, common)
    assert (out - expected).abs().max() <= 2e-5


def test_dictionary_branch():
    z, dictionary = torch.randn(256, 48), torch.randn(64, 48)
    expected = LAYER.attn_atd(z[None], dictionary[None])
    for a, b in zip(StaticDictionaryAttention(LAYER.attn_atd)(z, dictionary), expected, strict=True):
        assert (a - b[0]).abs().max() <= 2e-6


def test_folded_constants():
    z = torch.randn(10, 48)
    q, kv = LAYER.wqkv(z).split([48, 96], dim=1)
    folded = scale_queries(LAYER.wqkv, 0.25)(z)
    assert torch.allclose(folded, torch.cat([q * 0.25, kv], dim=1), atol=1e-6)
    scale = LAYER.attn_atd.scale.clamp(0, 1)
    assert torch.allclose(dictionary_temperature(LAYER.attn_atd).view(-1), 1 + scale * math.log(64))
    assert torch.equal(position_table(LAYER.attn_win).t(), LAYER.attn_win.relative_position_bias_table)
    mean = torch.tensor([1.0, 2.0, 3.0])
    conv = torch.nn.Conv2d(4, 3 * 9, 3)
    x = torch.randn(1, 4, 8, 8)
    shuffle = torch.nn.PixelShuffle(3)
    assert torch.allclose(shuffle(add_mean(conv, mean, 3)(x)), shuffle(conv(x)) + mean.view(1, 3, 1, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (16, 16), (50, 37)])
def test_twin_of_any_size(size, x2):
    lr = torch.from_numpy(to_input(photo(*size)))
    sr, _ = ppexport.make_twin(x2, size=size)(lr)
    assert (sr - x2(lr)).abs().max() <= 2e-5


@pytest.mark.parametrize("options", [{"compensation": "zero"}, {"compensation": "normed", "colors": 6, "window": 4}])
def test_twin_follows_the_options(options):
    network = ppexport.load_network("pp_atd_light_x2", **options)
    lr = torch.from_numpy(to_input(photo(32, 32, "chelsea.png", 20, 20)))
    sr, _ = ppexport.make_twin(network, size=(32, 32))(lr)
    assert (sr - network(lr)).abs().max() <= 2e-5


def test_a_capacity_below_n_is_exact_for_images_that_fit(x2):
    lr = torch.full((1, 3, 32, 48), 0.3)
    lr[:, :, :9, :11] = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(1))
    twin = ppexport.make_twin(x2, size=(32, 48), capacity=384)
    sr, impure = twin(lr)
    assert 128 < int(impure) <= 384
    assert (sr - x2(lr)).abs().max() <= 2e-5
    _, impure = twin(torch.rand(1, 3, 32, 48))
    assert int(impure) > twin.capacity


def test_injected_categories_are_used(x2):
    lr = torch.from_numpy(to_input(photo(32, 32)))
    categories = torch.randint(0, 64, (24, 1024))
    traces = Trace(), Trace()
    expected = x2(lr, categories=categories[:, None], trace=traces[0])
    sr, _ = ppexport.make_twin(x2, size=(32, 32))(lr, categories=categories.int(), trace=traces[1])
    assert (sr - expected).abs().max() <= 2e-5
    assert (expected - x2(lr)).abs().max() > 1e-4
    for a, b in zip(traces[0].tokens, traces[1].tokens, strict=True):
        assert (a[0] - b).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("size", "capacity", "message"),
    [
        ((0, 5), None, "at least 1x1"),
        ((16, 16), 100, "multiple of 128"),
        ((16, 16), 384, "256 tokens"),
        ((2000, 2000), None, "smaller tiles"),
    ],
)
def test_impossible_twins(size, capacity, message, x2):
    with pytest.raises(TwinError, match=message):
        ppexport.make_twin(x2, size=size, capacity=capacity)


def test_other_networks_have_no_twin():
    with pytest.raises(TwinError, match="Linear"):
        ppexport.make_twin(torch.nn.Linear(3, 3), size=(16, 16))
    with pytest.raises(TwinError, match="no pure tokens"):
        ppexport.make_twin(golden_network("atd_light_x2_trained", "atd_light"), size=(32, 32), capacity=128)
