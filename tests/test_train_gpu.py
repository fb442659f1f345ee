"""The trainer's way on a GPU, which differs in the device alone and so is run on the CPU; pictures; make targets."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shared import FREE_IMAGES, ROOT
from small_networks import small_network
from train_runs import entries, start, train, two_photos, wait_for_step
from typer.testing import CliRunner

# What is imported above lets programs of tools/ be found.
# isort: split
import train_data
from training.data import Pair, PatchSampler, center_crop, find_images, load_pair, split_holdout
from training.gpu import use_gpu_modules
from training.state import write_weights

from ppexport.device.picture import psnr_y
from ppexport.imaging.bicubic import enlarge_bicubic
from ppexport.networks.network import Trace

HALF = ("--precision", "bf16", "--lr", "1e-3", "--warmup", "2", "--ema", "0.5")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with two small pictures."""
    return two_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def networks():
    """Two bundled layers as they are, and as they train in bf16."""
    plain = small_network(2, layers=2)
    half = copy.deepcopy(plain).train()
    # Of each layer both attentions, the linear layers wqkv, proj twice, fc1 and fc2, and the depthwise convolution;
    # and the convolutions behind the layers and behind all blocks.
    assert use_gpu_modules(half, half=True) == 2 * 8 + 2
    return plain, half


@pytest.fixture(scope="module")
def lr():
    with Image.open(FREE_IMAGES / "coffee.png") as image:
        pixels = np.asarray(image.convert("RGB"))[100:132, 100:148]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255


def test_layers_train_in_bf16_but_what_chooses_categories_is_full_precision(networks, lr):
    plain, half = networks
    types = {}
    for name, module in half.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: types.update({name: out}))
    seen = []
    depthwise = half.layers[0].residual_group.layers[1].convffn.dwconv.depthwise_conv[0]
    depthwise.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    plain_trace, half_trace = Trace(), Trace()
    expected = plain(lr, trace=plain_trace)
    out = half(lr, trace=half_trace)
    layer = "layers.0.residual_group.layers.1"
    halves = ("wqkv", "attn_win", "attn_win.proj", "attn_aca.proj", "convffn", "convffn.dwconv.depthwise_conv.0")
    assert {types[f"{layer}.{name}"].dtype for name in halves} == {torch.bfloat16}
    fulls = ("conv_first", "patch_embed", f"{layer}.norm1", f"{layer}.attn_atd.wq", "norm", "upsample.0")
    assert {types[name].dtype for name in fulls} == {torch.float32}
    similarities = [types[f"layers.0.residual_group.layers.{i}.attn_atd"][1] for i in range(2)]
    assert {x.dtype for x in (*similarities, *half_trace.tokens, *half_trace.gaps, out)} == {torch.float32}
    # Tokens are seen as a picture in channels-last order, which no copy makes.
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    # Nothing is rounded in front of the first choice; later ones see what bf16 has rounded.
    assert torch.equal(half_trace.categories[0], plain_trace.categories[0])
    assert (half_trace.categories[1] == plain_trace.categories[1]).float().mean() > 0.95
    error = (out - expected).square().mean().sqrt()
    assert 1e-5 < error < 3e-3


def test_a_step_waits_for_no_device_and_mixes_no_two(networks):
    # Tensors on "meta" have shapes and no numbers: whatever asks for one fails, and so does an operand on the CPU.
    network = copy.deepcopy(networks[0]).train()
    use_gpu_modules(network, half=False)
    pixels = np.zeros((40, 48, 3), dtype=np.uint8)
    pair = Pair("x", pixels.repeat(2, axis=0).repeat(2, axis=1), pixels)
    lr, hr = PatchSampler([pair], [32], 2048, "meta").batch(torch.Generator().manual_seed(0))
    with torch.enable_grad():
        loss = torch.nn.functional.l1_loss(network.to("meta")(lr), hr)
        loss.backward()
    assert (loss.device.type, tuple(hr.shape)) == ("meta", (2, 3, 64, 64))


def test_weights_and_gradients_stay_full_precision_and_so_does_validation(networks, lr):
    plain, half = networks
    with torch.enable_grad():
        half(lr).square().mean().backward()
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in half.parameters() if p.grad is not None} == {torch.float32}
    assert half.state_dict().keys() == plain.state_dict().keys()
    assert (copy.deepcopy(half).eval()(lr) - plain(lr)).abs().max() < 5e-6


def test_a_stopped_run_in_bf16_ends_with_the_same_weights(photos, tmp_path):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    output = train(undisturbed, photos, *HALF, "--steps", "16")
    assert "throughput: " in output
    assert "the 1 steps left take about" in output
    losses = [entry["loss"] for entry in entries(undisturbed, "train")]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    process = start(stopped, photos, *HALF, "--steps", "16")
    wait_for_step(stopped, 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert "continuing after step" in train(stopped, photos, *HALF, "--steps", "16")
    ours, theirs = (load_file(run / "weights.safetensors") for run in (stopped, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [e["loss"] for e in entries(stopped, "train")] == losses


def test_what_diverged_is_not_saved(photos, tmp_path):
    options = ("--precision", "bf16", "--lr", "1e30", "--warmup", "0", "--steps", "20", "--log-every", "20")
    output = train(tmp_path, photos, *options, "--save-every", "1", code=2)
    assert "training diverged at step" in output
    assert "with a lower --lr" in output
    if (tmp_path / "state.pt").is_file():
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert all(bool(torch.isfinite(p).all()) for p in state["network"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_in_a_sentence(photos, tmp_path):
    output = train(tmp_path, photos, "--steps", "1", "--device", "cuda", code=3)
    assert "--device cuda needs an NVIDIA GPU" in output
    assert "Traceback" not in output


def test_options_that_contradict_each_other_are_refused(photos, tmp_path):
    assert "--plain computes in fp32" in train(tmp_path, photos, *HALF, "--steps", "1", "--plain", code=2)


def copy_data(source, target, code=0):
    result = CliRunner().invoke(train_data.app, [str(source), str(target)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_pictures_are_copied_beside_each_other(photos, tmp_path):
    source, target = tmp_path / "more photos", tmp_path / "train-data"
    (source / "deep").mkdir(parents=True)
    shutil.copy(photos / "a.png", source / "deep" / "a.png")
    # Files that other systems leave beside pictures, and that no trainer may stumble over.
    (source / "deep" / "._a.png").write_bytes(b"nothing")
    assert "2 pictures, 0.0 million pixels" in copy_data(photos, target)
    assert f"holds {3} pictures" in copy_data(source, target)
    assert "already" in copy_data(photos, target)
    found = [p.relative_to(target).as_posix() for p in find_images([target])]
    assert found == ["more photos/deep/a.png", f"{photos.name}/a.png", f"{photos.name}/b.png"]
    shutil.copy(photos / "b.png", source / "deep" / "b.png")
    assert "delete it, or rename" in copy_data(source, target, code=2)
    assert "cannot be copied into" in copy_data(tmp_path, target, code=2)
    assert len(find_images([target])) == 3


@pytest.mark.parametrize("name", ["Set5", "broken"])
def test_pictures_that_nobody_may_or_can_train_on_are_not_copied(photos, tmp_path, name):
    source = tmp_path / "source" / name
    shutil.copytree(photos, source)
    if name == "broken":
        (source / "b.png").write_bytes((source / "b.png").read_bytes()[:1000])
    output = copy_data(source.parent, tmp_path / "train-data", code=2)
    assert {"Set5": "never trained on", "broken": "b.png cannot be used"}[name] in output
    assert not (tmp_path / "train-data").exists()


@pytest.fixture
def project(tmp_path):
    """A project of its own, whose train-data/ and runs/ nobody misses."""
    for name in ("Makefile", "tools", "ppexport", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def make(project, *arguments, code=0, **more):
    environment = {k: v for k, v in os.environ.items() if k not in ("OUT", "MAKEFLAGS", "MFLAGS")} | more
    command = ["make", "-s", "-C", str(project), *arguments, f"PYTHON={sys.executable}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_targets_fill_a_folder_and_train_from_it(project, photos, tmp_path):
    assert "FROM=DIR" in make(project, "train-data", code=2)
    assert f"train-data/{photos.name}: 2 pictures" in make(project, "train-data", f"FROM={photos}")
    small = "TRAIN=--pixels 256 --holdout 1 --threads 1 --precision bf16"
    options = ("train-gpu", "DEVICE=cpu", "PATCH=16", small)
    output = make(project, *options, "MINUTES=0.05")
    assert "starting from models/pp_atd_light_x2/weights.safetensors" in output
    run = project / "runs" / "pp_atd_light_x2-gpu"
    assert f"h: runs/{run.name}/weights.safetensors" in output
    files = ["log.jsonl", "loss.png", "state.pt", "weights.safetensors"]
    assert sorted(p.name for p in run.iterdir()) == files
    before, *_, after = (entry["psnr_y"] for entry in entries(run, "validation"))
    assert abs(after - before) < 1
    # Copied elsewhere the same run continues; its schedule has ended.
    shutil.copytree(run, tmp_path / "out" / run.name)
    assert "continuing after step" in make(project, *options, "MINUTES=0.05", OUT=str(tmp_path / "out"))
    # x4 starts from x2.
    init = f"INIT=runs/{run.name}/weights.safetensors"
    assert "all but the last convolution" in make(project, *options, "MINUTES=0.01", "MODEL=pp_atd_light_x4", init)
    assert (project / "runs" / "pp_atd_light_x4-gpu" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_three_minutes_of_training_beat_bicubic(tmp_path):
    # The first two layers of the bundled network alone are worse than bicubic by 9 dB, and were 1.7 dB better then.
    init = tmp_path / "init.safetensors"
    write_weights(small_network(2, layers=2).state_dict(), init, {})
    options = ("--precision", "bf16", "--lr", "2e-3", "--warmup", "20", "--ema", "0.98", "--pixels", "512")
    output = train(tmp_path / "run", FREE_IMAGES, *options, "--init", str(init), "--minutes", "3", "--log-every", "50")
    assert "more steps fit into the" in output
    assert "finished after" in output
    held = split_holdout(find_images([FREE_IMAGES]), 1)[1][0]
    pair = center_crop(load_pair(held, 2), 128)
    bicubic = psnr_y(enlarge_bicubic(pair.lr, 2), pair.hr, 2)
    assert entries(tmp_path / "run", "validation")[-1]["psnr_y"] > bicubic + 1
