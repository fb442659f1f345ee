"""tools/train.py: it learns, survives being killed, and its compiled kernels give the numbers of the networks."""

from __future__ import annotations

import copy
import shutil
import signal
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shared import FREE_IMAGES
from small_networks import shortened
from train_runs import entries, start, train, two_photos, wait_for_step
from training.data import EVALUATION_SETS, Pair, PatchSampler, center_crop, find_images, load_pair, split_holdout
from training.fast import category_slots, speed_up
from training.gpu import use_gpu_modules
from training.loop import Schedule, StepClock
from training.state import Ema, RunState, build, rewind_log, start_from, write_weights

from ppexport.errors import CheckpointError, InputError
from ppexport.imaging.bicubic import resize_bicubic
from ppexport.networks.atd.attention import CategoryAttention, route

has_compiler = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="there is no C compiler")


def use_sdpa(network):
    return use_gpu_modules(network, half=False)


WAYS = [pytest.param(speed_up, marks=has_compiler), use_sdpa]
"""What makes a network faster: on a CPU, and on a GPU in full precision."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with two small pictures."""
    return two_photos(tmp_path_factory.mktemp("photos"))


TEN_STEPS = ("--steps", "10", "--save-every", "2", "--lr", "1e-3", "--warmup", "2", "--ema", "0.5")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run of ten steps that nothing disturbed, saved every two."""
    run = tmp_path_factory.mktemp("finished")
    return run, train(run, photos, *TEN_STEPS)


def test_the_loss_falls_and_everything_is_written(finished):
    run, output = finished
    losses = [entry["loss"] for entry in entries(run, "train")]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    before, after = (entry["psnr_y"] for entry in entries(run, "validation"))
    assert after > before + 1
    assert "finished after 10 steps" in output
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    weights = load_file(run / "weights.safetensors")
    assert weights.keys() == shortened(build("pp_atd_light", 2), 2).state_dict().keys()


def test_a_killed_run_ends_with_the_same_weights(finished, photos, tmp_path):
    process = start(tmp_path, photos, *TEN_STEPS)
    wait_for_step(tmp_path, 5, process)
    process.kill()
    process.communicate()
    assert "continuing after step" in train(tmp_path, photos, *TEN_STEPS)
    undisturbed = finished[0]
    ours, theirs = (load_file(run / "weights.safetensors") for run in (tmp_path, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[(e["step"], e["loss"]) for e in entries(run, "train")] for run in (tmp_path, undisturbed)]
    assert losses[0] == losses[1]


def test_a_signal_saves_and_a_run_folder_has_one_process(photos, tmp_path):
    # Without the compiled kernels, which take seconds to compile in every process.
    options = ("--steps", "100000", "--save-minutes", "60", "--plain")
    process = start(tmp_path, photos, *options)
    wait_for_step(tmp_path, 2, process)
    assert "another process is training" in train(tmp_path, photos, *options, code=2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM after" in output
    assert (tmp_path / "state.pt").is_file()
    assert (tmp_path / "weights.safetensors").is_file()
    other = RunState({"arch": "pp_atd_light", "scale": 3}, *[None] * 5)
    with pytest.raises(CheckpointError, match="choose another run folder"):
        other.load(tmp_path / "state.pt")


@pytest.mark.parametrize("name", ["Set5", "set14_HR", "BSD100", "bsds100", "B100", "Urban100", "x/manga_109/y"])
def test_evaluation_folders_are_refused(photos, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    shutil.copy(photos / "a.png", folder)
    with pytest.raises(InputError, match="never trained on"):
        find_images([folder])
    with pytest.raises(InputError, match="never trained on"):
        find_images([tmp_path])
    link = tmp_path / "innocent"
    link.symlink_to(folder)
    with pytest.raises(InputError, match="never trained on"):
        find_images([link])


@pytest.mark.parametrize("name", ["dataset5", "bsds400_train", "kodak24", "set512", "offset14"])
def test_other_folders_are_not(name):
    assert EVALUATION_SETS.search(name) is None


def test_the_program_says_why_it_refuses(photos, tmp_path):
    folder = tmp_path / "Set5"
    folder.mkdir()
    shutil.copy(photos / "a.png", folder)
    assert "looks like the test set Set5" in train(tmp_path / "run", folder, "--steps", "1", code=2)


def test_averaged_weights_follow_the_network():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(0.0)
        ema = Ema(network, decay=0.5)
        network.weight.fill_(1.0)
    ema.update(step=1)
    # The first step counts 1 - 2/11, more than the decay says, as nothing was averaged before it.
    assert ema.weights["weight"].item() == pytest.approx(9 / 11)
    ema.update(step=1000)
    assert ema.weights["weight"].item() == pytest.approx((9 / 11 + 1) / 2)


def test_a_log_cut_off_by_a_kill_is_wound_back(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    rewind_log(log, 4)
    assert log.read_text() == '{"step": 2}\n{"step": 4}\n'


def test_unknown_networks_and_scales_are_refused():
    with pytest.raises(InputError, match="is no network"):
        build("edsr", 2)
    with pytest.raises(InputError, match="not made for scale 8"):
        build("atd_light", 8)


def test_another_scale_gives_all_but_the_last_convolution(tmp_path):
    source = build("atd_light", 2)
    path = tmp_path / "x2.safetensors"
    write_weights(source.state_dict(), path, {"scale": "2"})
    target = build("pp_atd_light", 4)
    fresh = copy.deepcopy(target.state_dict())
    assert start_from(target, path) is False
    for name, value in target.state_dict().items():
        expected = fresh[name] if name.startswith("upsample.0.") else source.state_dict()[name]
        assert torch.equal(value, expected), name
    assert start_from(build("atd_light", 2), path) is True


def test_weights_of_another_network_are_refused(tmp_path):
    weights = build("atd_light", 2).state_dict()
    path = tmp_path / "broken.safetensors"
    write_weights({k: v for k, v in weights.items() if not k.startswith("norm.")}, path, {})
    with pytest.raises(CheckpointError, match=r"has no key 'norm\.weight'"):
        start_from(build("atd_light", 2), path)
    write_weights(weights | {"norm.weight": torch.zeros(3)}, path, {})
    with pytest.raises(CheckpointError, match="has shape"):
        start_from(build("atd_light", 2), path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        start_from(build("atd_light", 2), path)


def test_lr_is_made_of_the_whole_picture(photos):
    pair = load_pair(photos / "b.png", 2)
    assert pair.hr.shape == (80, 80, 3)
    assert np.array_equal(pair.lr, resize_bicubic(pair.hr, 2))
    middle = center_crop(pair, 16)
    assert np.array_equal(middle.lr, pair.lr[12:28, 12:28])
    assert np.array_equal(middle.hr, pair.hr[24:56, 24:56])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_and_hr_patches_belong_together(scale):
    lr = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    pair = Pair("x", lr.repeat(scale, axis=0).repeat(scale, axis=1), lr)
    sampler = PatchSampler([pair], [16, 32], 1024)
    generator = torch.Generator().manual_seed(3)
    sides = set()
    for _ in range(30):
        small, large = sampler.batch(generator)
        sides.add(tuple(small.shape))
        assert torch.equal(large, small.repeat_interleave(scale, 2).repeat_interleave(scale, 3))
    assert sides == {(4, 3, 16, 16), (1, 3, 32, 32)}


def test_patches_are_turned_pieces_of_pictures():
    # Every pixel tells where it is: row, column, picture.
    pairs = []
    for number, (h, w) in enumerate([(40, 30), (33, 60)]):
        row, column = np.mgrid[:h, :w]
        lr = np.stack([row, column, np.full((h, w), number)], axis=2).astype(np.uint8)
        pairs.append(Pair("x", lr.repeat(2, axis=0).repeat(2, axis=1), lr))
    sampler = PatchSampler(pairs, [16], 16 * 256)
    generator = torch.Generator().manual_seed(3)
    turns, corners, pictures = set(), set(), []
    for _ in range(40):
        for row, column, picture in (sampler.batch(generator)[0] * 255).round().int():
            assert (picture == picture[0, 0]).all()
            down, right = row[1, 0] - row[0, 0], row[0, 1] - row[0, 0]
            across = column[1, 0] - column[0, 0], column[0, 1] - column[0, 0]
            i, j = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
            assert torch.equal(row, row[0, 0] + down * i + right * j)
            assert torch.equal(column, column[0, 0] + across[0] * i + across[1] * j)
            turns.add(tuple(int(x) for x in (down, right, *across)))
            corners.add((int(picture[0, 0]), int(row.min()), int(column.min())))
            pictures.append(int(picture[0, 0]))
    one = [((0, a), (b, 0)) for a in (-1, 1) for b in (-1, 1)]
    assert turns == {(*x, *y) for x, y in one} | {(*y, *x) for x, y in one}
    # From the first row and column to the last ones, and as often as a picture has pixels: 1200 and 1980.
    for number, last in enumerate([(24, 14), (17, 44)]):
        found = np.array([(row, column) for picture, row, column in corners if picture == number])
        assert (*found.min(axis=0), *found.max(axis=0)) == (0, 0, *last)
    assert np.mean(pictures) == pytest.approx(1980 / 3180, abs=0.06)


def test_patches_that_no_picture_holds_are_refused(photos):
    pair = load_pair(photos / "a.png", 2)
    with pytest.raises(InputError, match="multiples of 16"):
        PatchSampler([pair], [24], 1024)
    with pytest.raises(InputError, match="smaller patches"):
        PatchSampler([pair], [64], 4096)


def test_holdout_takes_images_at_even_distances():
    images = [Path(str(i)) for i in range(10)]
    rest, held = split_holdout(images, 2)
    assert [p.name for p in held] == ["2", "7"]
    assert sorted([*rest, *held]) == images
    assert split_holdout(images, 0) == (images, [])
    with pytest.raises(InputError, match="cannot be held out"):
        split_holdout(images, 10)


def test_time_spent_stopped_does_not_count():
    clock = StepClock()
    counted = [clock.count(seconds, 1000) for seconds in [1.0] * 10 + [3600.0] + [1.5] * 3]
    assert sum(counted) == pytest.approx(10 + 1 + 4.5)
    # Larger patches are no outliers, and a machine that has become slow is believed in the end.
    assert clock.count(5.0, 5000) == 5.0
    assert [clock.count(10.0, 1000) for _ in range(60)][-1] == 10.0


def test_schedules_end_when_they_should():
    now = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
    by_steps = Schedule(1e-3, 1e-6, 10, steps=100)
    assert by_steps.advance(0.0, 50, 0.0, 1.0, now) == 0.5
    assert by_steps.rate(0.0, 0) == pytest.approx(1e-4)
    assert by_steps.rate(0.5, 50) == pytest.approx((1e-3 + 1e-6) / 2)
    assert by_steps.rate(1.0, 100) == pytest.approx(1e-6)
    assert Schedule(1e-3, 0, 0, hours=2).advance(0.0, 7, 1800.0, 1.0, now) == 0.25

    until = Schedule(1e-3, 0, 0, until=now + timedelta(hours=1))
    progress, moment, values = 0.0, now, []
    while progress < 1:
        # Stopped for half an hour in the middle: no jump, and the end is kept.
        moment += timedelta(minutes=31 if len(values) == 15 else 1)
        progress = until.advance(progress, len(values), 0.0, 60.0, moment)
        values.append(progress)
    assert now + timedelta(minutes=58) <= moment <= now + timedelta(hours=1)
    assert values[14] == pytest.approx(0.25)
    steps = np.diff([0.0, *values[:-1]])
    assert steps.max() < 0.06
    assert (steps > 0).all()
    with pytest.raises(InputError, match="one of --steps"):
        Schedule(1e-3, 0, 0, steps=3, hours=1)
    with pytest.raises(InputError, match="learning rate falls"):
        Schedule(1e-3, 1e-2, 0, steps=3)


@pytest.fixture
def _with_gradients():
    """Other tests run without."""
    with torch.enable_grad():
        yield


def gradients(network, x):
    network.zero_grad()
    out = network(x)
    # A smooth loss: the gradient of L1 jumps where an output crosses its target.
    (out - 0.5).square().mean().backward()
    # What only a third layer would read has none.
    return out.detach(), {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make_faster", WAYS)
@pytest.mark.usefixtures("_with_gradients")
@pytest.mark.parametrize("arch", ["atd_light", "pp_atd_light"])
def test_fast_networks_have_the_outputs_and_gradients_of_plain_ones(arch, make_faster):
    torch.manual_seed(0)
    plain = shortened(build(arch, 2), 2)
    for name, parameter in plain.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    fast = copy.deepcopy(plain)
    # Two attentions a layer, and the compiled depthwise convolution.
    assert make_faster(fast) == (6 if make_faster is speed_up else 4)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    with Image.open(FREE_IMAGES / "coffee.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    x = torch.stack([torch.from_numpy(pixels[y : y + 32, y : y + 48].copy()) for y in (0, 150)])
    x = x.permute(0, 3, 1, 2).float() / 255
    (out, ours), (expected, theirs) = gradients(fast, x), gradients(plain, x)
    assert (out - expected).abs().max() < 5e-6
    assert ours.keys() == theirs.keys()
    scale = max(float(g.norm()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-6 * scale, name


@pytest.mark.parametrize("make_faster", WAYS)
@pytest.mark.usefixtures("_with_gradients")
@pytest.mark.parametrize("impure", [None, 512, 300, 256, 129, 128, 127, 1, 0])
def test_fast_category_attention_skips_pure_tokens_alike(impure, make_faster):
    generator = torch.Generator().manual_seed(5)
    plain = CategoryAttention(48, 4, 128)
    fast = torch.nn.ModuleList([copy.deepcopy(plain)])
    assert make_faster(fast) == 1
    qkv = torch.randn(2, 512, 144, generator=generator)
    categories = torch.randint(64, (2, 512), generator=generator)
    pure = None if impure is None else torch.rand(2, 512, generator=generator).argsort(dim=1) >= impure
    results = []
    for module in (plain, fast[0]):
        x = qkv.clone().requires_grad_()
        out = module(x, categories, pure, None if pure is None else x[..., 96:])
        out.square().sum().backward()
        results.append((out.detach(), x.grad, module.logit_scale.grad, module.proj.weight.grad))
    for ours, theirs in zip(results[1], results[0], strict=True):
        if theirs is not None and ours is not None:
            # One impure token meets copies of itself alone: gradients of q, k and scale are zero but for rounding.
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-3 if impure == 1 else 2e-4)


@pytest.mark.parametrize("impure", [None, 300, 128, 1, 0])
def test_compiled_attention_has_the_slots_of_the_plain_one(impure):
    generator = torch.Generator().manual_seed(5)
    categories = torch.randint(64, (2, 512), generator=generator)
    pure = None if impure is None else torch.rand(2, 512, generator=generator).argsort(dim=1) >= impure
    source, target = category_slots(categories, pure)
    routes = route(categories, pure, 128)
    assert torch.equal(source.flatten().long(), routes.source)
    assert torch.equal(target.flatten()[target.flatten() >= 0].long(), routes.tokens)
