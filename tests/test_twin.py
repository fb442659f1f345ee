"""Every rewrite of the twin against the network's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import golden_network, photo
from hypothesis import given
from hypothesis import strategies as st
from shared import examples
from small_networks import random_small_network

import ppexport
from ppexport.device.picture import to_input
from ppexport.errors import InputError, TwinError
from ppexport.networks.atd import attention as reference
from ppexport.networks.atd.attention import route
from ppexport.networks.network import Trace
from ppexport.twin.blocks import BlockCut, PositionIndex, from_blocks, kinds_of, to_blocks
from ppexport.twin.counting_sort import CountingSort, count_up, prefix, total
from ppexport.twin.folded import add_mean, dictionary_temperature, fold_norm, position_table, scale_queries
from ppexport.twin.layers import Shared, StaticCategoryAttention, StaticDictionaryAttention, StaticWindowAttention
from ppexport.twin.ort_layers import RowCategoryAttention, RowLayer, RowWindowAttention, Standardise
from ppexport.twin.ort_routing import sort_grid, sorted_places
from ppexport.twin.routing import Router, plan_slots

LAYER = golden_network("atd_light_x4_random", "pp_atd_light").layers[1].residual_group.layers[1]


def tokens_to(n):
    return torch.arange(n, dtype=torch.int32)


@pytest.mark.parametrize("size", [32, 256, 768, 4096, 128 * 33])
def test_count_up(size):
    high, low = count_up(size)
    assert torch.equal((high + low).view(-1), tokens_to(size))
    assert high.numel() + low.numel() <= 256 + size // 32


@pytest.mark.parametrize("rows", [1, 8, 64, 65, 128, 250, 1009, 128 * 128])
def test_prefix_is_an_exclusive_running_sum_and_total_its_end(rows):
    counts = torch.randint(0, 33, (rows, 5))
    before, all_rows = prefix(counts.float(), tokens_to(rows))
    assert before.dtype == all_rows.dtype == torch.int32
    assert torch.equal(before.long(), counts.cumsum(0) - counts)
    assert torch.equal(all_rows.long(), counts.sum(0, keepdim=True))
    assert torch.equal(total(counts.float()), all_rows)


@given(st.integers(0, 2**32), st.sampled_from([256, 768, 4096, 256 * 17]), st.sampled_from([1, 2, 65]))
@examples(40)
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
@examples(120)
def test_router_is_the_networks_routing(drawn):
    categories, pure, capacity = drawn
    impure = (~pure).sum().int().view(1)
    slots = plan_slots(tokens_to(N), capacity, pure, impure, 64)
    source, rank, mixed = Router(N, 64)(categories, slots, tokens_to(N))
    expected = route(categories.long().view(1, -1), pure.view(1, -1), 128)
    assert torch.equal(source[: len(expected.source)].long(), expected.source)
    assert torch.equal(mixed, ~pure)
    assert torch.equal(rank[expected.tokens].long(), expected.slots)
    assert int((rank * mixed).max()) < capacity
    assert 0 <= int(source.min()) <= int(source.max()) < N


def shared(pure, capacity):
    tokens = tokens_to(N)
    return Shared(tokens, {}, pure, plan_slots(tokens, capacity, pure, (~pure).sum().int().view(1), 64))


@given(routed(), st.sampled_from(["value", "zero", "normed"]))
@examples(120)
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
@examples(60)
def test_beyond_the_capacity_surplus_tokens_count_as_pure(pure, capacity):
    with torch.no_grad():
        categories = torch.randint(0, 64, (N,)).int()
        qkv = LAYER.wqkv(torch.randn(N, 48))
        twin = StaticCategoryAttention(LAYER.attn_aca, N, 64, False, folded=1.0)
        out = twin(qkv, categories, qkv[:, 96:], shared(pure, capacity))
        order = route(categories.long()[None], pure[None], 128).tokens
        kept = torch.ones(N, dtype=torch.bool)
        kept[order[:capacity]] = False
        expected = LAYER.attn_aca(qkv[None], categories.long()[None], kept[None], qkv[None, :, 96:])[0]
        assert (out - expected).abs().max() <= 2e-5


SIZES = [(16, 16), (32, 48), (64, 16), (16, 64), (48, 48)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 8])
def test_blocks_are_the_windows_that_the_mask_leaves(size, shift):
    """Two tokens are in one block exactly where the network's shifted windows let them see each other."""
    h, w = size
    kinds = kinds_of(h, w, 16, shift)
    tokens = torch.arange(h * w).view(h, w, 1)
    blocks = [to_blocks(tokens, kind) for kind in kinds]
    assert torch.equal(from_blocks(blocks, kinds), tokens)
    together = torch.zeros(h * w, h * w, dtype=torch.bool)
    for kind in blocks:
        for block in kind.view(len(kind), -1):
            together[block.unsqueeze(1), block] = True
    windows = reference.window_partition(tokens.roll((-shift, -shift), (0, 1))[None], 16).view(-1, 256)
    seen = torch.zeros_like(together)
    masks = reference.shift_mask(h, w, 16, 8, torch.device("cpu")) if shift else torch.zeros(len(windows), 256, 256)
    for window, mask in zip(windows, masks, strict=True):
        seen[window.unsqueeze(1), window] = mask == 0
    assert torch.equal(together, seen)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 8])
def test_the_order_of_blocks_and_its_inverse(size, shift):
    n = size[0] * size[1]
    cut = BlockCut(size, 16, shift)(torch.arange(n, dtype=torch.int32))
    blocks = [to_blocks(torch.arange(n).view(*size, 1), kind).view(-1) for kind in cut.kinds]
    assert torch.equal(cut.order.long(), torch.cat(blocks))
    assert torch.equal(cut.place[cut.order.long()], torch.arange(n, dtype=torch.int32))


def test_position_index():
    (window,) = kinds_of(32, 32, 16, 0)
    index = reference.relative_position_index(16)
    assert torch.equal(PositionIndex(window, 16)().long(), index.view(-1))
    for kind in kinds_of(48, 48, 16, 8):
        picked = torch.arange(256).view(16, 16)[: kind.height, : kind.width].reshape(-1)
        expected = index.view(256, 256)[picked][:, picked]
        assert torch.equal(PositionIndex(kind, 16)().long(), expected.reshape(-1))


@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("size", [(32, 48), (16, 16)])
def test_window_branch(size, shift):
    n = size[0] * size[1]
    qkv, index = torch.randn(n, 144), reference.relative_position_index(16)
    expected = LAYER.attn_win(qkv[None], size, shift, index)[0]
    folded = qkv.clone()
    folded[:, :48] *= LAYER.attn_win.scale
    cut = BlockCut(size, 16, shift)(tokens_to(n))
    out = StaticWindowAttention(LAYER.attn_win, size, shift)(folded, Shared(tokens_to(n), {shift: cut}, None, None))
    assert (out - expected).abs().max() <= 2e-5


@given(st.integers(0, 2**32), st.sampled_from([128, 256, 768, 4096]), st.sampled_from([1, 2, 65]))
@examples(40)
def test_sorted_places_are_a_stable_sort(seed, n, keys):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(0, keys, n) if seed % 2 else rng.geometric(0.3, n) % keys)
    place = sorted_places(values.int(), sort_grid(tokens_to(n), keys))
    assert torch.equal(place[values.argsort(stable=True)], torch.arange(n))


def shared_rows(pure, capacity, shift=0):
    """What layers of the flavour `ort` share for N tokens, 16 wide."""
    tokens = tokens_to(N)
    common = Shared(tokens, {shift: BlockCut((N // 16, 16), 16, shift)(tokens)}, pure)
    impure = torch.tensor([N] if pure is None else [int((~pure).sum())], dtype=torch.int32)
    RowLayer.prepare(common, capacity, impure, 64)
    return common


def row_branch(z, categories, rest, common, shift):
    """Category attention of the flavour `ort` on tokens *z* in the order of the picture."""
    cut = common.cuts[shift]
    order = cut.order.long()
    rows = tuple(x[order] for x in LAYER.wqkv(z).split(48, dim=1))
    twin = RowCategoryAttention(LAYER.attn_aca, folded=1.0, bias=torch.zeros(48))
    return twin(rows, categories, None if rest is None else rest[order], cut, common.rows)[cut.place.long()]


@given(routed(), st.sampled_from(["value", "zero", "normed"]), st.sampled_from([0, 8]))
@examples(120)
def test_category_branch_on_rows_is_exact_at_every_sufficient_capacity(drawn, kind, shift):
    categories, pure, capacity = drawn
    with torch.no_grad():
        z = torch.randn(N, 48, generator=torch.Generator().manual_seed(int((~pure).sum())))
        qkv = LAYER.wqkv(z)
        rest = {"value": qkv[:, 96:], "zero": torch.zeros(N, 48), "normed": z}[kind]
        expected = LAYER.attn_aca(qkv[None], categories.long()[None], pure[None], rest[None])[0]
        out = row_branch(z, categories, rest, shared_rows(pure, capacity, shift), shift)
        assert (out - expected).abs().max() <= 2e-5


@given(masks(), st.sampled_from([128, 256, 384]))
@examples(60)
def test_beyond_the_capacity_the_last_impure_tokens_count_as_pure_on_rows(pure, capacity):
    with torch.no_grad():
        categories = torch.randint(0, 64, (N,)).int()
        z = torch.randn(N, 48)
        qkv = LAYER.wqkv(z)
        kept = torch.ones(N, dtype=torch.bool)
        kept[(~pure).nonzero().flatten()[:capacity]] = False
        expected = LAYER.attn_aca(qkv[None], categories.long()[None], kept[None], qkv[None, :, 96:])[0]
        out = row_branch(z, categories, qkv[:, 96:], shared_rows(pure, capacity), 0)
        assert (out - expected).abs().max() <= 2e-5


def test_category_branch_on_rows_without_a_mask():
    with torch.no_grad():
        z, categories = torch.randn(N, 48), torch.randint(0, 64, (N,)).int()
        expected = LAYER.attn_aca(LAYER.wqkv(z)[None], categories.long()[None])[0]
        assert (row_branch(z, categories, None, shared_rows(None, N, 8), 8) - expected).abs().max() <= 2e-5


def test_slots_hold_the_impure_tokens_first():
    pure = torch.ones(N, dtype=torch.bool)
    pure[100:230] = False
    slots = shared_rows(pure, 384).rows.slots
    assert torch.equal(slots.tokens[:130], torch.arange(100, 230, dtype=torch.int32))
    assert slots.tokens.unique().numel() == 384
    assert int(slots.mixed.sum()) == 130
    assert slots.past.unique().tolist() == [0, 64]


@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("size", [(32, 48), (16, 16)])
def test_window_branch_on_rows(size, shift):
    n = size[0] * size[1]
    qkv, index = torch.randn(n, 144), reference.relative_position_index(16)
    expected = LAYER.attn_win(qkv[None], size, shift, index)[0]
    folded = qkv.clone()
    folded[:, :48] *= LAYER.attn_win.scale
    cut = BlockCut(size, 16, shift)(tokens_to(n))
    mixed = RowWindowAttention(LAYER.attn_win)(folded[cut.order.long()].split(48, dim=1), cut)
    assert (LAYER.attn_win.proj(mixed[cut.place.long()]) - expected).abs().max() <= 2e-5


def test_standardised_rows_and_the_folded_norm():
    x, norm, linear = torch.randn(256, 48) * 3 + 1, torch.nn.LayerNorm(48), torch.nn.Linear(48, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    rows = Standardise(norm)(x, torch.ones(256), torch.zeros(256))
    assert (rows * norm.weight + norm.bias - norm(x)).abs().max() <= 1e-5
    assert (fold_norm(linear, norm)(rows) - linear(norm(x))).abs().max() <= 1e-5


def test_dictionary_branch():
    z, dictionary = torch.randn(256, 48), torch.randn(64, 48)
    x = torch.randn(256, 48)
    expected, similarity = LAYER.attn_atd(z[None], dictionary[None])
    found = StaticDictionaryAttention(LAYER.attn_atd)(x, z, dictionary)
    for a, b in zip(found, (x + expected[0], similarity[0]), strict=True):
        assert (a - b).abs().max() <= 2e-6


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


@pytest.mark.parametrize("flavour", ["portable", "ort"])
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (16, 16), (50, 37)])
def test_twin_of_any_size(size, flavour, x2):
    lr = torch.from_numpy(to_input(photo(*size)))
    sr, _ = ppexport.make_twin(x2, size=size, flavour=flavour)(lr)
    assert (sr - x2(lr)).abs().max() <= 2e-5


@pytest.mark.parametrize("flavour", ["portable", "ort"])
@pytest.mark.parametrize("options", [{"compensation": "zero"}, {"compensation": "normed", "colors": 6, "window": 4}])
def test_twin_follows_the_options(options, flavour):
    network = ppexport.load_network("pp_atd_light_x2", **options)
    lr = torch.from_numpy(to_input(photo(32, 32, "chelsea.png", 20, 20)))
    sr, _ = ppexport.make_twin(network, size=(32, 32), flavour=flavour)(lr)
    assert (sr - network(lr)).abs().max() <= 2e-5


def test_an_atd_light_twin_for_onnx_runtime():
    network = golden_network("atd_light_x2_trained", "atd_light")
    lr, traced = torch.from_numpy(to_input(photo(32, 48))), Trace()
    expected = network(lr, trace=traced)
    # Two similarities of this picture are 9e-9 apart, so the network's choices are given.
    categories = torch.cat(traced.categories).int()
    sr, _ = ppexport.make_twin(network, size=(32, 48), flavour="ort")(lr, categories=categories)
    assert (sr - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("size", [(8, 8), (5, 24), (8, 40), (21, 16), (40, 33)])
def test_a_swinir_twin_for_onnx_runtime(size):
    """One window, which a shift cuts into four corners; one row or column of them; and all kinds of blocks."""
    network = random_small_network("swinir_light", layers=4)
    lr = torch.from_numpy(to_input(photo(*size)))
    sr, _ = ppexport.make_twin(network, size=size, flavour="ort")(lr)
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
        ((16, 16), 100, "multiples of 128"),
        ((16, 16), 384, "from 128 to 256"),
        ((2000, 2000), None, "smaller tiles"),
    ],
)
def test_impossible_twins(size, capacity, message, x2):
    with pytest.raises(TwinError, match=message):
        ppexport.make_twin(x2, size=size, capacity=capacity)


def test_other_networks_have_no_twin():
    with pytest.raises(TwinError, match="portable, ort"):
        ppexport.make_twin(golden_network("atd_light_x2_trained", "atd_light"), size=(32, 32), flavour="strawberry")
    with pytest.raises(InputError, match="Linear is not a network of a registered architecture"):
        ppexport.make_twin(torch.nn.Linear(3, 3), size=(16, 16))
    with pytest.raises(TwinError, match="no pure tokens"):
        ppexport.make_twin(golden_network("atd_light_x2_trained", "atd_light"), size=(32, 32), capacity=128)
