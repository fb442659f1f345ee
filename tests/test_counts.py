"""Labels, masks, counts, ranks and slots are right on processors that compute every float in fp16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import examples
from small_networks import random_small_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

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
