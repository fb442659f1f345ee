"""Pure-Pass in NumPy, in PyTorch and in the twin: the same bits."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import photo
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shared import examples
from small_networks import shortened

import ppexport
from ppexport.device import mask as host
from ppexport.device.artifact import MANIFEST, parse_manifest
from ppexport.device.centers import CENTRES, adaptive_centers
from ppexport.device.mask import ATD_LAYOUT
from ppexport.device.picture import to_input
from ppexport.errors import ArtifactError, InputError, TwinError
from ppexport.imaging.upscaling import upscale_array
from ppexport.networks import pure_pass
from ppexport.networks.card import PurePassOptions
from ppexport.networks.network import pad
from ppexport.parity.run import run_parity
from ppexport.twin.static_pure_pass import StaticPurePass

options = st.tuples(st.integers(2, 16), st.sampled_from(host.WINDOWS), st.booleans(), st.sampled_from(CENTRES))
shapes = st.tuples(st.integers(1, 50), st.integers(1, 50))


def pictures(shape):
    # Few levels, so that uniform windows and exact greys occur.
    return st.one_of(
        arrays(np.uint8, (*shape, 3), elements=st.sampled_from([0, 23, 127, 128, 230, 255])),
        arrays(np.uint8, (*shape, 1)).map(lambda grey: grey.repeat(3, axis=2)),
        st.tuples(*[st.integers(0, 255)] * 3).map(lambda c: np.full((*shape, 3), c, np.uint8)),
        arrays(np.float32, (*shape, 3), elements=st.floats(-0.5, 1.5, width=32)),
    )


@given(options, shapes.flatmap(pictures))
@examples(150)
def test_three_implementations_agree(chosen, rgb):
    colors, window, csmf, centres = chosen
    labels = host.pixel_labels(rgb, colors, centres=centres)
    pure = host.pure_mask(rgb, colors, window, csmf, centres=centres)
    padded = pad(torch.from_numpy(to_input(rgb)), ATD_LAYOUT)
    assert np.array_equal(pure_pass.pixel_labels(padded, colors, centres).numpy()[0], labels)
    assert np.array_equal(pure_pass.pure_mask(padded, colors, window, csmf, centres).numpy()[0], pure)
    twin = StaticPurePass(PurePassOptions(colors=colors, window=window, csmf=csmf, centres=centres), *labels.shape)
    with torch.no_grad():
        assert np.array_equal(twin.labels(padded).numpy()[0, 0], labels)
        assert np.array_equal(twin(padded).numpy(), pure.ravel())


def slow_labels(rgb, colors, centers=None):
    """Straight from the definition, pixel by pixel, in Python integers."""
    centers = (host.color_centers(colors) if centers is None else centers).tolist()

    def score(p, c):
        return 2 * sum(a * b for a, b in zip(p, c, strict=True)) - sum(b * b for b in c)

    flat = [max(range(colors), key=lambda k: (score(p, centers[k]), -k)) for p in rgb.reshape(-1, 3).tolist()]
    return np.array(flat, np.uint8).reshape(rgb.shape[:2])


@given(st.integers(2, 16), arrays(np.uint8, (16, 16, 3)))
@examples(30)
def test_labels_follow_the_definition(colors, rgb):
    assert np.array_equal(host.pixel_labels(rgb, colors), slow_labels(rgb, colors))


def test_exact_greys_take_the_lowest_of_equal_labels():
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(host.pixel_labels(greys), slow_labels(greys, 8))


def test_csmf_adds_windows_of_the_shifted_grid_only():
    rgb = np.full((32, 32, 3), (40, 90, 200), np.uint8)
    rgb[:4] = rgb[12:] = rgb[:, :4] = rgb[:, 12:] = np.random.default_rng(0).integers(0, 256, 3)
    rgb[0, 0], rgb[20, 20], rgb[3, 12], rgb[12, 3] = (200, 40, 30), (200, 40, 30), (9, 250, 3), (9, 250, 3)
    grid, fused = host.pure_mask(rgb, csmf=False), host.pure_mask(rgb, csmf=True)
    assert fused[4:12, 4:12].all()
    assert not grid[4:8, 4:8].any()
    assert (fused | grid == fused).all()


def test_no_shifted_window_in_an_image_of_one_window():
    rgb = np.full((16, 16, 3), 7, np.uint8)
    rgb[0, 0] = (0, 0, 255)
    assert not host.pure_mask(rgb, window=16, csmf=True).any()


def slow_centers(pixels, colors):
    """Straight from the docstring of `adaptive_centers`, in Python integers."""
    boxes = sorted(Counter(tuple(v // 16 * 16 + 8 for v in p) for p in pixels.reshape(-1, 3).tolist()).items())

    def distance(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    centers = [max(boxes, key=lambda box: box[1])[0]]
    while len(centers) < colors:
        centers.append(max(boxes, key=lambda box: box[1] * min(distance(box[0], c) for c in centers))[0])
    for _ in range(8):
        members = [[] for _ in centers]
        for box, count in boxes:
            members[min(range(colors), key=lambda k: distance(box, centers[k]))].append((box, count))
        for k, inside in enumerate(members):
            total = sum(count for _, count in inside)
            if total:
                sums = [sum(box[c] * count for box, count in inside) for c in range(3)]
                centers[k] = tuple((2 * s + total) // (2 * total) for s in sums)
    return np.array(centers, np.int32)


@given(
    st.integers(2, 16),
    st.one_of(pictures((9, 12)), arrays(np.uint8, (9, 12, 3))).filter(lambda rgb: rgb.dtype == np.uint8),
    st.randoms(use_true_random=False),
)
@examples(60)
def test_adaptive_centres_follow_the_definition_in_integers_and_whatever_the_order_of_the_pixels(colors, rgb, random):
    centers = adaptive_centers(rgb, colors)
    assert centers.dtype == np.int32
    assert np.array_equal(centers, slow_centers(rgb, colors))
    order = list(range(9 * 12))
    random.shuffle(order)
    assert np.array_equal(adaptive_centers(rgb.reshape(-1, 3)[order].reshape(12, 9, 3), colors), centers)


def test_adaptive_centres_of_a_photograph_are_the_same_on_every_machine():
    rgb = photo(96, 128)
    assert adaptive_centers(rgb, 4).tolist() == [[220, 139, 60], [247, 230, 214], [169, 54, 20], [121, 27, 9]]
    half = np.zeros((16, 16, 3), np.uint8)
    half[8:] = (200, 100, 3)
    # Two colours, so two distinct centres, of which the second and the third are equal.
    assert adaptive_centers(half, 3).tolist() == [[8, 8, 8], [200, 104, 8], [8, 8, 8]]
    assert host.pure_mask(half, 3, centres="adaptive").all()


extreme = st.sampled_from([0, 1, 127, 128, 254, 255])


@given(st.integers(2, 16).flatmap(lambda k: arrays(np.int32, (k, 3), elements=extreme)), arrays(np.uint8, (16, 16, 3)))
@examples(60)
def test_labels_of_any_centres_are_exact_and_equal_centres_give_the_first(centers, rgb):
    assert np.array_equal(
        host.pixel_labels(rgb, len(centers), centres=centers), slow_labels(rgb, len(centers), centers)
    )


def test_no_number_on_the_way_to_a_key_of_any_centres_leaves_the_range_of_fp32():
    corners = np.array(list(np.ndindex(2, 2, 2)), np.int32) * 255
    weights, offsets = host.key_weights(np.tile(corners, (2, 1)))
    products = weights[:, None] * corners.astype(np.int64)
    keys = products.sum(axis=2) + offsets[:, None]
    assert products.sum(axis=2).max() < 1 << 23
    assert abs(offsets).max() < 1 << 23
    assert abs(keys).max() < 1 << 22
    assert all(len(set(column)) == 16 for column in keys.T.tolist())


@pytest.mark.parametrize("bad", ["other", np.zeros((8, 3)), np.zeros((4, 3), int), np.full((8, 3), 256), [[0] * 3] * 8])
def test_bad_centres_are_refused(bad):
    with pytest.raises(ValueError, match="centres are"):
        host.pixel_labels(np.zeros((4, 4, 3), np.uint8), 8, centres=bad)


def test_bad_pixels_have_no_adaptive_centres():
    with pytest.raises(ValueError, match="takes uint8 pixels"):
        adaptive_centers(np.zeros((4, 4, 3), np.float32))


def test_every_image_of_a_batch_chooses_its_own_centres():
    rgb = photo(32, 48), photo(64, 96)[32:, 48:]
    batch = torch.from_numpy(np.concatenate([to_input(image) for image in rgb]))
    labels = pure_pass.pixel_labels(batch, 5, "adaptive")
    for image, found in zip(rgb, labels.numpy(), strict=True):
        assert np.array_equal(found, host.pixel_labels(image, 5, centres="adaptive"))


def test_a_graph_with_adaptive_centres_is_not_traced():
    twin = StaticPurePass(PurePassOptions(centres="adaptive"), 16, 16)
    with pytest.raises(TwinError, match="a graph cannot choose adaptive colour centres"):
        torch.jit.trace(twin, torch.zeros(1, 3, 16, 16))
    with pytest.raises(Exception, match="adaptive colour centres"):
        torch.export.export(twin, (torch.zeros(1, 3, 16, 16),))


@pytest.mark.parametrize(("colors", "window"), [(1, 8), (17, 8), (8, 3), (8, 32), (8, 0)])
def test_options_outside_the_exact_range_are_refused(colors, window):
    with pytest.raises(ValueError, match="Pure-Pass"):
        host.pure_mask(np.zeros((16, 16, 3), np.uint8), colors, window)
    with pytest.raises(ValueError, match="colors|window"):
        PurePassOptions(colors=colors, window=window)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_bad_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="pixel_labels takes"):
        host.pixel_labels(bad)


def test_nan_has_no_label():
    with pytest.raises(ValueError, match="NaN"):
        host.pixel_labels(np.full((4, 4, 3), np.nan, np.float32))


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    """A small network with adaptive centres, and its artifact for 40x40 pixels, which pad to 48x48."""
    network = shortened(ppexport.load_network("pp_atd_light_x2", centres="adaptive", colors=4), 2)
    folder = tmp_path_factory.mktemp("adaptive") / "artifact"
    return network, ppexport.export(network, backend="onnx", size=(40, 40), capacities=[512, 2304], out=folder)


def test_an_artifact_with_adaptive_centres_has_the_networks_labels_masks_and_pictures(adaptive, tmp_path):
    network, folder = adaptive
    with ppexport.open_artifact(folder) as runner:
        manifest = runner.artifact.manifest
        assert (manifest.mask, manifest.options["centres"]) == ("input", "adaptive")
        report = run_parity(network, runner, tmp_path / "run", lambda *_: None)
        assert report.passed
        assert report.host_mask_differs == []


def test_tiles_have_the_centres_of_their_picture(adaptive):
    _, folder = adaptive
    rgb = photo(60, 90)
    with ppexport.open_artifact(folder) as runner:
        seen = []
        real = runner.prepare

        def noting(lr, centers=None):
            seen.append(centers)
            return real(lr, centers)

        runner.prepare = noting
        upscale_array(runner, rgb)
        assert len(seen) > 1
        assert all(np.array_equal(centers, adaptive_centers(rgb, 4)) for centers in seen)
        seen.clear()
        upscale_array(runner, rgb[:40, :40])
        assert [centers.tolist() for centers in seen] == [adaptive_centers(rgb[:40, :40], 4).tolist()]
        lr = to_input(rgb[:40, :40])
        own, given = real(lr), real(lr, adaptive_centers(rgb, 4))
        assert np.array_equal(own.pure, host.pure_mask(rgb[:40, :40], 4, centres="adaptive"))
        assert np.array_equal(given.pure, host.pure_mask(rgb[:40, :40], 4, centres=adaptive_centers(rgb, 4)))
        assert not np.array_equal(own.pure, given.pure)
        with pytest.raises(InputError, match="centres are 4x3 integers"):
            real(lr, np.zeros((8, 3), np.int32))


def test_fixed_centres_are_not_exchanged(artifact):
    with ppexport.open_artifact(artifact) as runner, pytest.raises(InputError, match="no adaptive colour centres"):
        runner.prepare(np.zeros((1, 3, *runner.size), np.float32), np.zeros((8, 3), np.int32))


def test_a_graph_cannot_hold_a_mask_of_adaptive_centres(adaptive, tmp_path):
    network, folder = adaptive
    with pytest.raises(InputError, match="chosen outside the graph, so the mask is an input"):
        ppexport.export(network, backend="onnx", size=(40, 40), mask="graph", out=tmp_path / "out")
    stored = json.loads((folder / MANIFEST).read_text())
    with pytest.raises(ArtifactError, match="with adaptive centres the mask is an input, not 'graph'"):
        parse_manifest(json.dumps({**stored, "mask": "graph"}), "m")
    with pytest.raises(ArtifactError, match="'centres' is one of fixed, adaptive, not 'moving'"):
        parse_manifest(json.dumps({**stored, "options": {**stored["options"], "centres": "moving"}}), "m")
    older = {name: value for name, value in stored["options"].items() if name != "centres"}
    manifest = parse_manifest(json.dumps({**stored, "options": older}), "m")
    rgb = photo(40, 40)
    assert manifest.centers(rgb) is None
    assert np.array_equal(manifest.labels(rgb), host.pixel_labels(rgb, 4))
