"""Several networks and artifacts on the same pictures: turns, figures, multiply-adds, the table and the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import photo
from sshd_profiles import SIZE, write_enlarger
from test_cli import fails, run
from test_evaluate import bicubic, save
from test_layering import run_without
from test_report import EVIL

from ppexport.backends.backend import open_artifact
from ppexport.device.mask import pure_mask
from ppexport.errors import InputError
from ppexport.imaging.bicubic import resize_bicubic
from ppexport.imaging.upscaling import TileRun
from ppexport.networks.architecture import Macs, find_architecture
from ppexport.networks.cost import cost
from ppexport.networks.load import find_weights, load_untrained
from ppexport.parity.contest import ArtifactContender, Contender, Contest, Measured, NetworkContender, run_contest
from ppexport.parity.evaluation import Score, evaluate, find_pairs
from ppexport.report.figures import quality_against_macs, quality_against_time
from ppexport.report.material import Material
from ppexport.report.page import render


class Enlarger(Contender):
    """Bicubic enlargement that notes when it is called."""

    def __init__(self, label, calls, scale=2):
        self.label, self.calls, self.scale, self.bytes, self.runs_in = label, calls, scale, 1, "a test"
        self.facts = {"arch": "atd_light", "options": {}}

    def upscale(self, lr):
        self.calls.append(self.label)
        return bicubic(lr), ()

    def count(self, lr, tiles):
        return Macs({"all": lr.size}), None


@pytest.fixture
def pictures(tmp_path):
    """Three HR pictures of different sizes."""
    for i, size in enumerate([(40, 48), (64, 40), (44, 44)]):
        save(tmp_path / "hr" / f"{i}.png", photo(*size))
    return tmp_path / "hr"


def test_everything_takes_turns_with_every_picture(pictures):
    calls, pairs = [], find_pairs(pictures, None, 2)
    contest = run_contest([Enlarger(name, calls) for name in "abc"], pairs, pictures)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    own = evaluate(bicubic, pairs, 2)
    for one in contest.measured:
        assert tuple(one.scores) == own.scores
        assert len(one.seconds) == 3
        assert one.mean_macs == 3 * (20 * 24 + 32 * 20 + 22 * 22) / 3
    assert contest.bicubic == (own.mean.psnr_y, own.mean.ssim_y)
    data = contest.to_dict()
    assert [row["subject"] for row in data["subjects"]] == ["a", "b", "c"]
    assert data["subjects"][0]["seconds"] == np.median([row["seconds"] for row in data["subjects"][0]["images"]])
    assert "median" in data["clock"]
    with pytest.raises(InputError, match="one scale, but these have several: a x2, b x3"):
        run_contest([Enlarger("a", []), Enlarger("b", [], 3)], pairs, pictures)


def test_multiply_adds_of_a_network_are_those_of_the_pictures_mask():
    contender = NetworkContender("x2", *find_weights("pp_atd_light_x2", None, None, None, {"colors": "6"}))
    lr = photo(48, 64)
    mask = pure_mask(lr, 6)
    assert 0 < mask.mean() < 1
    assert contender.count(lr, ()) == (cost(contender.network, (48, 64), mask).actual, mask.mean())
    assert contender.bytes == Path(find_weights("pp_atd_light_x2", None, None, None, {})[1]).stat().st_size
    fixed = NetworkContender("a", *find_weights("pp_atd_light_x2", None, None, None, {}))
    sr, tiles = fixed.upscale(photo(20, 24))
    assert sr.shape == (40, 48, 3)
    assert tiles == ()


def test_multiply_adds_of_an_artifact_are_those_of_its_tiles_and_slots(tmp_path):
    with open_artifact(write_enlarger(tmp_path / "enlarger")) as runner:
        contender = ArtifactContender("e", runner)
        lr = photo(SIZE[0], 2 * SIZE[1])
        sr, tiles = contender.upscale(lr)
        assert sr.shape == (2 * SIZE[0], 4 * SIZE[1], 3)
        assert len(tiles) == 3
        dense = find_architecture("atd_light").cost(2, SIZE).published
        macs, share = contender.count(lr, tiles)
        assert macs.published == 3 * dense
        assert share is None
        assert contender.bytes == (tmp_path / "enlarger" / "model.onnx").stat().st_size
        assert contender.runs_in == f"ONNX Runtime on the CPU, tiles of {SIZE[0]}x{SIZE[1]}"
        # A capacity set computes with the slots that each tile gets, not with its impure tokens.
        options = {"colors": 8, "window": 8, "csmf": True, "compensation": "value"}
        m = replace(
            runner.artifact.manifest, arch="pp_atd_light", options=options, mask="graph", capacities=[128, 1536]
        )
        artifact = SimpleNamespace(manifest=m, model_file=runner.artifact.model_file)
        chosen = ArtifactContender("s", SimpleNamespace(artifact=artifact, scale=2, size=SIZE))
        runs = [TileRun((0, 0), 10, 128, 0.1), TileRun((0, 16), 900, 1536, 0.1)]
        expected = [find_architecture("pp_atd_light").cost(2, SIZE, slots, 8).published for slots in (128, 1536)]
        macs, share = chosen.count(lr, runs)
        assert macs.published == sum(expected)
        assert share == pure_mask(lr).mean()
        # Nothing is said of a network of any size, whose sizes only its weights tell.
        artifact.manifest = replace(m, arch="pp_atd")
        chosen = ArtifactContender("s", SimpleNamespace(artifact=artifact, scale=2, size=SIZE))
        assert chosen.count(lr, runs) == (None, share)
        # A fixed share of windows attends, however many slots category attention has.
        m = replace(m, arch="camixer_atd_light", options={"ratio": 0.25}, mask="none", capacities=[1536])
        artifact = SimpleNamespace(manifest=m, model_file=runner.artifact.model_file)
        fixed = ArtifactContender("f", SimpleNamespace(artifact=artifact, scale=2, size=(32, 32)))
        assert fixed.count(lr, runs[1:]) == (find_architecture("camixer_atd_light").cost(2, (32, 32), 256), None)


def test_evaluate_compares_networks_and_artifacts(pictures, tmp_path):
    enlarger, page = write_enlarger(tmp_path / "enlarger"), tmp_path / "page.html"
    subjects = ["pp_atd_light_x2", enlarger, "pp_atd_light_x2,compensation=zero"]
    # One will do.
    for name in "12":
        (pictures / f"{name}.png").unlink()
    save(tmp_path / "lr" / "0.png", resize_bicubic(photo(40, 48), 2))
    data = ["--hr", pictures, "--lr", tmp_path / "lr"]
    told = json.loads(run("evaluate", *subjects, *data, "--plot", page, "--json", "-").stdout)
    own = json.loads(run("evaluate", "pp_atd_light_x2", *data, "--json", "-").stdout)
    first, second, third = told["subjects"]
    assert first["psnr_y"] == own["mean"]["psnr_y"]
    assert first["ssim_y"] == own["mean"]["ssim_y"]
    assert told["bicubic"]["psnr_y"] == own["mean"]["bicubic_psnr_y"]
    assert [row["subject"] for row in told["subjects"]] == [
        "pp_atd_light_x2", "enlarger", "pp_atd_light_x2 compensation=zero",
    ]  # fmt: skip
    assert (first["backend"], second["backend"]) == (None, "onnx")
    assert third["options"]["compensation"] == "zero"
    assert third["psnr_y"] != first["psnr_y"]
    assert len(first["images"]) == told["pictures"] == 1
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert "pp_atd_light_x2 compensation=zero" in text
    assert "Versions and hashes" not in text
    shown = run("evaluate", enlarger, "pp_atd_light_x2", *data, "--threads", 1, COLUMNS="120").stdout
    assert "1 picture x2" in shown
    assert "PyTorch on the CPU, whole pictures, 1 thread: pp_atd_light_x2\n" in shown
    assert ", with 1 thread.\n" in shown
    assert f"ONNX Runtime on the CPU, tiles of {SIZE[0]}x{SIZE[1]}: enlarger\n" in shown
    assert f"{own['mean']['psnr_y']:.3f}" in shown


def test_what_cannot_be_compared(pictures, tmp_path):
    enlarger, weights = write_enlarger(tmp_path / "enlarger"), tmp_path / "mixer.pth"
    torch.save(load_untrained(None, "camixersr", 4, {}).state_dict(), weights)
    data, model = ["--hr", pictures], "pp_atd_light_x2"
    several = "one scale, but these have several: pp_atd_light_x2 x2, enlarger x2, camixersr x4"
    fails("evaluate", model, enlarger, weights, *data, message=several)
    fails("evaluate", model, enlarger, *data, "--option", "colors=6", message="has its weights and options inside")
    for subjects in ([f"{enlarger},ratio=1"], [model, f"{enlarger},ratio=1"]):
        fails("evaluate", *subjects, *data, message="leave ratio=1 out")
    for flag in ("--plot", "--json"):
        fails("evaluate", model, enlarger, *data, flag, weights, message="name another file for the result")
    fails("info", "--checkpoint", weights, "--option", "scale=3", message="scale")
    fails("evaluate", model, f"{model},colors=6", *data, "--record", "set5", message="--record is for one subject")
    fails("evaluate", model, enlarger, *data, "--checkpoint", weights, message="--checkpoint is for one subject")
    fails("evaluate", *data, "--plot", tmp_path / "x.html", message="--plot needs subjects")
    fails("evaluate", model, enlarger, *data, "--plot", tmp_path / "no" / "x.html", message="cannot be written")
    fails("evaluate", model, "pp_atd_light", *data, message="is an architecture, which has no weights")
    fails("evaluate", f"{model},colors=6", *data, "--record", "set5", message="without a checkpoint or options")
    # One weights file is evaluated as ever.
    assert json.loads(run("evaluate", weights, *data, "--json", "-").stdout)["model"] == "camixersr_x4"


@pytest.mark.parametrize("names", ["a", "ab"])
def test_artifacts_need_no_torch(pictures, tmp_path, names):
    artifacts = [str(write_enlarger(tmp_path / name)) for name in names]
    arguments = ["ppexport", "evaluate", *artifacts, "--hr", str(pictures)]
    blocked = ("torch", "onnx", "onnxsim", "safetensors")
    done = run_without(blocked, f"import sys; sys.argv = {arguments!r}\nfrom ppexport.cli import run; run()")
    assert done.returncode == 0, done.stderr
    assert "bicubic" in done.stdout


def contest_of(*points):
    """A contest of (label, dB, seconds, multiply-adds or None)."""
    measured = []
    for label, db, seconds, count in points:
        macs = None if count is None else Macs({"all": count})
        one = Measured(Enlarger(label, []), [Score("a", db, 0.9, 28.0, 0.8)], [seconds], [macs], [None])
        measured.append(one)
    return Contest(2, "Set5", tuple(measured), {"cpu": "a test", "threads": None})


@pytest.mark.parametrize("far", [1.5, 400])
def test_plots_name_every_point_and_hold_no_formula(far):
    contest = contest_of((EVIL, 32.1, 0.5, 10**9), ("b", 32.2, 0.5 * far, 10**9), ("c", 32.2, 0.5, int(far * 10**9)))
    for plot in (quality_against_time(contest), quality_against_macs(contest)):
        assert "<script>" not in plot
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot)
        assert {"b", "c"} <= set(texts)
        assert any(text.startswith("&lt;script&gt;") for text in texts)
        assert not any("math" in text for text in texts)


def test_what_is_not_known_is_left_out():
    contest = contest_of(("a", 32.1, 0.5, None), ("b", 32.2, 0.5, 10**9))
    assert ">a</text>" in quality_against_time(contest)
    assert ">a</text>" not in quality_against_macs(contest)
    assert ">b</text>" in quality_against_macs(contest)
    assert "<svg" in quality_against_macs(contest_of(("a", 32.1, 0.5, None)))
    assert contest.to_dict()["subjects"][0]["macs_published"] is None
    page = render(Material(contests=[contest]), "title")
    assert page.count("<svg") == 2


def test_names_do_not_lie_over_each_other():
    close = [(f"network number {i}", 32 + i / 100, 0.5 + i / 100, 10**9) for i in range(6)]
    plot = quality_against_time(contest_of(*close))
    texts = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>network number', plot)
    places = [tuple(map(float, place)) for place in texts]
    assert len(places) == 6
    # Names of 16 letters of 8 points are about 80 points wide and 10 high.
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) > 60 or abs(y - b) > 7 for a, b in places[:i])
