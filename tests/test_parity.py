"""Parity: what passes, what fails, and how near ties are told from faults."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import photo
from onnx import numpy_helper
from PIL import Image
from rich.console import Console
from small_networks import ROUTING, SIZE, small_network
from test_upscale import artifact as make_artifact

import ppexport
from ppexport.backends.backend import ChosenFrom, Gate
from ppexport.backends.onnx import onnx_probe
from ppexport.cli.parity import show
from ppexport.device.artifact import MANIFEST
from ppexport.device.picture import psnr_y, ssim_y, to_uint8
from ppexport.device.runner import Result, Runner
from ppexport.errors import ArtifactError, InputError
from ppexport.files import sha256_file
from ppexport.parity import against as parity_against
from ppexport.parity import run as parity_run
from ppexport.parity.against import run_against
from ppexport.parity.columns import ArtifactColumn, ChosenAgain, Column, Sample, load_column, load_inputs, save_entries
from ppexport.parity.compare import compare_columns, compare_pictures
from ppexport.parity.inputs import ParityInput, parity_inputs
from ppexport.parity.pair import measure
from ppexport.parity.references import TwinColumn, choose_again, first_bad_layer, reference_network
from ppexport.twin.twin import make_twin

N = 256
GATE = Gate(psnr=90.0, max_abs=1e-3, task_change=0.001)
ITEM = ParityInput("a", np.zeros((1, 3, 16, 16), np.float32))


def sample(shift=0.0, flip=(), gap=0.5, pure=(), impure=N):
    """A sample whose picture is off by *shift* and whose categories are flipped at the *flip* tokens of layer 1."""
    categories = np.zeros((2, N), np.uint8)
    categories[1, list(flip)] = 1
    gaps = np.full((2, N), gap, np.float32)
    mask = np.zeros(N, bool)
    mask[list(pure)] = True
    sr = np.full((1, 3, 32, 32), 0.5 + shift, np.float32)
    return Sample(sr, impure - len(pure), categories, gaps, mask, np.zeros(N, np.uint8))


class Fixed(Column):
    """A column of samples that are given, as is what comes of injecting categories and of choosing again."""

    def __init__(self, name, samples, rerun=None, look=None):
        super().__init__(name, samples)
        self.injects, self.rerun, self.look = rerun is not None, rerun, look

    def sample(self, item, categories=None):
        return self.rerun(item, categories)

    def choose_again(self, item, categories, other):
        return self.look


def compared(inputs, reference, other, gate=GATE, rerun=None, follow=None, look=None, names=("r", "o")):
    return compare_columns(Fixed(names[0], reference, follow, look), Fixed(names[1], other, rerun), inputs, gate)


def judge(reference, other, rerun=None, gate=GATE):
    return compared([ITEM], {"a": reference}, {"a": other}, gate, rerun).rows[0]


def shown(pairs):
    """The lines that the command prints of *pairs* on a terminal of 80 columns."""
    report = SimpleNamespace(pairs=pairs, units={}, routes=True, over_capacity=[], host_mask_differs=[], left_out=[],
                             passed=False, file="f", error_map="m")  # fmt: skip
    out = io.StringIO()
    show(report, Console(file=out, width=80, soft_wrap=True, highlight=False, markup=False))
    return out.getvalue().splitlines()


def test_equal_samples_pass_and_errors_fail():
    assert judge(sample(), sample()).passed
    row = judge(sample(), sample(shift=1e-3))
    assert not row.passed
    assert "60.0 dB" in row.reason


def test_what_is_not_finite_fails_whatever_the_same_routing_gives():
    other = sample(flip=[3], gap=1e-9)
    reference = sample(gap=1e-9)
    assert judge(reference, other, lambda item, categories: reference).passed
    for bad in (np.nan, np.inf):
        other.sr[0, 0, 0, 0] = bad
        row = judge(reference, other, lambda item, categories: reference)
        assert (row.passed, row.reason) == (False, "the picture holds NaN or infinite values")


def test_an_engine_that_overflows_is_reported_and_fails_on_synthetic_inputs_too():
    class Overflowing(Runner):
        def _run(self, prepared):
            return Result(np.full((1, 3, 32, 32), np.nan, np.float32), N, N)

    artifact = make_artifact((16, 16), 2)
    engine = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, backend="tensorrt"))
    column = ArtifactColumn(Overflowing(engine))
    gate = dataclasses.replace(GATE, near_tie=1e-3)
    column.samples["a"] = column.sample(ITEM)
    pair = compare_pictures(Column("r", {"a": sample()}), column, [ITEM], gate)
    assert (pair.passed, pair.rows[0].reason) == (False, "the picture holds NaN or infinite values")


def test_the_worst_input_is_named_with_its_place():
    other = sample()
    other.sr[0, 1, 20, 7] += 0.2
    pair = compared([ITEM], {"a": sample()}, {"a": other}, GATE)
    assert (pair.worst.name, pair.worst.errors.at) == ("a", (20, 7))
    assert "worst input: a, most at row 20, column 7 of the result; first bad layer" in " ".join(shown([pair]))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_input_that_moved_the_task_metric_is_named(sign):
    hr = np.full((32, 32, 3), 128, np.uint8)
    items = [ParityInput(name, ITEM.lr, hr) for name in "abc"]
    # From 20 levels off to nearer or farther; the gate on pictures lets all of this pass.
    base = {name: sample(shift=20 / 255) for name in "abc"}
    moved = {name: sample(shift=(20 + sign * step) / 255) for name, step in zip("abc", (0, 3, 1), strict=True)}
    gate = Gate(psnr=1.0, task_change=0.001)
    pair = compared(items, base, moved, gate)
    assert not pair.passed
    assert all(row.passed for row in pair.rows)
    assert pair.worst.name == "b"


def test_ground_truth_is_compared_by_psnr_y_and_ssim_y():
    item = ParityInput("a", ITEM.lr, photo(32, 32))
    columns = {"a": sample()}, {"a": sample(shift=0.05)}
    pair = compared([item], *columns, GATE)
    first, second = (to_uint8(column["a"].sr) for column in columns)
    row = pair.rows[0]
    assert row.task == (psnr_y(first, item.hr, 2), psnr_y(second, item.hr, 2))
    assert row.task_ssim == (ssim_y(first, item.hr, 2), ssim_y(second, item.hr, 2))
    assert pair.mean_change("task_ssim") == row.task_ssim[1] - row.task_ssim[0] != 0
    assert pair.to_dict()["rows"][0]["task_ssim"] == list(row.task_ssim)


def test_a_flip_of_a_near_tie_passes_when_the_injected_picture_is_equal():
    row = judge(sample(gap=1e-7), sample(shift=0.02, flip=[3]), lambda item, categories: sample(flip=[3]))
    assert row.passed
    assert row.flips == [0, 1]
    assert "1 near tie (gap" in row.reason


@pytest.mark.parametrize(("shift", "passed"), [(0.02, True), (0.3, False)])
def test_flips_of_a_copy_elsewhere_excuse_no_picture_that_is_further_off(shift, passed):
    """A browser's picture is judged by the flips of a copy in ONNX Runtime, which is off by 0.02."""
    reference, other = sample(gap=1e-7), sample(shift, flip=[5])
    column = Fixed("o", {"a": other}, lambda item, categories: sample())
    column.copies = {"a": sample(0.02).sr}
    (row,) = compare_columns(Fixed("r", {"a": reference}), column, [ITEM], GATE).rows
    assert row.passed is passed
    assert ("near tie" if passed else "its copy, whose flips were examined, has 34.0 dB") in row.reason


def test_a_flip_that_an_earlier_flip_explains_needs_no_near_tie():
    assert judge(sample(gap=0.3), sample(flip=[3]), lambda item, categories: sample()).passed


@pytest.mark.parametrize(
    ("gap", "again", "reason"),
    [
        (1e-3, {"flip": [3]}, "sure of it"),
        (1e-7, {"shift": 0.02, "flip": [3]}, "even with the reference's categories"),
    ],
)
def test_a_flip_is_no_excuse(gap, again, reason):
    row = judge(sample(gap=gap), sample(flip=[3]), lambda item, categories: sample(**again))
    assert not row.passed
    assert reason in row.reason


HALF_GATE = dataclasses.replace(GATE, near_tie=1e-3)


@pytest.mark.parametrize(
    ("chosen", "tokens_db", "gate", "reason"),
    [
        ([3], 100.0, HALF_GATE, ""),
        ([], 100.0, HALF_GATE, "sure of it by 3.0e-01"),
        ([3], 80.0, HALF_GATE, "tokens of a layer are off"),
        ([3], 100.0, GATE, "sure of it by 3.0e-01"),
    ],
)
def test_a_flip_in_half_precision_passes_if_the_reference_makes_it_too(chosen, tokens_db, gate, reason):
    again = sample(flip=[3], gap=0.3)
    seen = ChosenAgain(sample(flip=chosen).categories, again.gaps, tokens_db, 20.0)
    pair = compared([ITEM], {"a": sample(gap=0.3)}, {"a": again}, gate, lambda item, categories: again, look=seen)
    assert pair.rows[0].passed is (not reason)
    assert reason in pair.rows[0].reason
    assert pair.agreement == [1, 1 - 1 / N]


def near_the_truth(shift):
    """An input whose ground truth the picture of `sample(shift)` almost meets."""
    hr = to_uint8(sample(shift).sr)
    hr[::2] += 2
    return ParityInput("a", ITEM.lr, hr)


@pytest.mark.parametrize(
    ("as_run", "injected", "failed"),
    [
        (0.0, 0.0, []),
        (0.02, 0.0, ["task"]),
        (0.0, 0.02, ["task_same_routing"]),
        (0.02, 0.02, ["task", "task_same_routing"]),
    ],
)
def test_half_precision_meets_the_task_gate_as_it_runs_and_with_the_same_routing(as_run, injected, failed):
    other, again = sample(shift=as_run, flip=[3], gap=0.3), sample(shift=injected, gap=0.3)
    seen = ChosenAgain(again.categories, again.gaps, 100.0, 20.0)
    gate, columns = Gate(psnr=10.0, task_change=0.02, near_tie=1e-3), ({"a": sample(gap=0.3)}, {"a": other})
    pair = compared([near_the_truth(0)], *columns, gate, lambda item, categories: again, look=seen)
    assert pair.rows[0].passed, "injection alone saves every one of them"
    assert pair.failed_tasks == failed
    assert pair.passed is (not failed)
    hr, pictures = near_the_truth(0).hr, {shift: to_uint8(sample(shift).sr) for shift in (0.0, as_run, injected)}
    own = psnr_y(pictures[0.0], hr, 2)
    assert pair.mean_change("task") == psnr_y(pictures[as_run], hr, 2) - own
    assert pair.mean_change("task_same_routing") == psnr_y(pictures[injected], hr, 2) - own
    assert pair.mean_change("task_ssim") == ssim_y(pictures[as_run], hr, 2) - ssim_y(pictures[0.0], hr, 2)
    assert pair.mean_change("task_ssim_same_routing") == ssim_y(pictures[injected], hr, 2) - ssim_y(
        pictures[0.0], hr, 2
    )
    assert pair.worst.name == "a"
    saved = json.loads(json.dumps(pair.to_dict(), allow_nan=False))
    assert (saved["psnr_y_change"], saved["psnr_y_change_same_routing"]) == (
        pair.mean_change("task"), pair.mean_change("task_same_routing")
    )  # fmt: skip


@pytest.mark.parametrize(("near_tie", "failed"), [(1e-6, []), (1e-3, ["task"]), (math.inf, ["task"])])
def test_near_ties_of_fp32_are_judged_with_the_same_routing(near_tie, failed):
    other, again = sample(shift=0.02, flip=[3]), sample()
    gate = Gate(psnr=10.0, task_change=0.02, near_tie=near_tie)
    columns = {"a": sample(gap=1e-7)}, {"a": other}
    pair = compared([near_the_truth(0)], *columns, gate, lambda item, categories: again)
    assert pair.failed_tasks == failed
    assert pair.mean_change("task") < -0.02
    assert pair.mean_change("task_same_routing") == 0


def test_an_engine_that_tells_no_category_is_judged_as_it_runs():
    columns = ({"a": dataclasses.replace(sample(shift), categories=None, gaps=None)} for shift in (0, 0.02))
    pair = compared([near_the_truth(0)], *columns, Gate(psnr=10.0, task_change=0.02))
    assert pair.failed_tasks == ["task"]
    assert pair.mean_change("task_same_routing") is None


def test_a_narrow_terminal_shows_names_figures_and_reasons_whole():
    items = [dataclasses.replace(near_the_truth(0), name=name) for name in ("hubble_deep_field", "chelsea")]
    base = {item.name: sample(gap=0.3) for item in items}
    other = {"hubble_deep_field": sample(shift=0.02, flip=[3]), "chelsea": sample(shift=0.02)}
    gate = Gate(psnr=55.0, task_change=0.02, near_tie=1e-3)
    pair = compared(items, base, other, gate, lambda item, _: sample(flip=[3]), names=("twin", "onnx-fp16"))
    lines = shown([pair])
    assert any(re.search(r"│ hubble_deep_field +│ FAIL +│", line) for line in lines), lines
    assert max(len(line) for line in lines if "│" in line) <= 80
    assert "hubble_deep_field: FAIL, a category flipped although the reference was sure of it by 3.0e-01" in lines
    assert "chelsea: FAIL, 34.0 dB, largest error 2.0e-02" in lines
    change, same = pair.mean_change("task"), pair.mean_change("task_same_routing")
    assert f"changes by {change:+.4f} dB on average as it runs" in "\n".join(lines)
    assert f"changes by {same:+.4f} dB on average with the same routing" in "\n".join(lines)
    assert sum(": more than 0.02 dB" in line for line in lines) == 2


def test_where_nothing_can_be_injected_the_reference_follows():
    other = sample(shift=0.02, flip=[3])
    for followed, passed in ((sample(shift=0.02, gap=1e-8), True), (sample(gap=1e-8), False)):
        follow = lambda item, categories, found=followed: found  # noqa: E731
        pair = compared([ITEM], {"a": sample()}, {"a": other}, follow=follow)
        assert pair.rows[0].passed is passed


def test_flips_that_cannot_be_injected_fail():
    assert not judge(sample(gap=1e-9), sample(flip=[3])).passed


def test_flips_of_pure_tokens_do_not_count():
    row = judge(sample(pure=[3]), sample(pure=[3], flip=[3]))
    assert row.passed
    assert row.flips == [0, 0]


def test_masks_and_labels_must_be_equal():
    assert not judge(sample(pure=[3]), sample()).passed
    assert not judge(sample(pure=[3]), sample(pure=[4])).passed
    other = dataclasses.replace(sample(), labels=np.ones(N, np.uint8))
    row = judge(sample(), other)
    assert not row.passed
    assert row.equal_labels == 0.0


def test_the_task_metric_has_its_own_gate():
    rng = np.random.default_rng(0)
    hr = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    item = ParityInput("a", ITEM.lr, hr)
    good = (hr.transpose(2, 0, 1)[None] / 255 + rng.normal(0, 0.01, (1, 3, 32, 32))).astype(np.float32)
    samples = [dataclasses.replace(sample(), sr=sr) for sr in (good, good * np.float32(0.99))]
    columns = [{"a": s} for s in samples]
    pair = compared([item], *columns, Gate(psnr=10, task_change=0.001))
    assert pair.rows[0].passed
    assert not pair.passed
    assert pair.mean_change("task") < -0.1
    json.dumps(pair.to_dict(), allow_nan=False)


def test_measure():
    errors = measure(np.zeros((1, 3, 8, 8), np.float32), np.full((1, 3, 8, 8), 0.1, np.float32))
    assert errors.psnr == pytest.approx(20, abs=1e-4)
    assert errors.max_abs == pytest.approx(0.1)
    assert errors.ssim is None


@pytest.mark.parametrize(("size", "scale"), [((37, 53), 2), ((1, 1), 4), ((300, 400), 4)])
def test_inputs_cover_photographs_and_hard_cases(size, scale):
    inputs = {item.name: item for item in parity_inputs(size, scale)}
    assert {"astronaut", "rocket", "flat", "noise", "greys", "black", "white", "gradient"} <= set(inputs)
    for item in inputs.values():
        assert item.lr.shape == (1, 3, *size)
        assert item.lr.dtype == np.float32
        assert 0 <= item.lr.min() <= item.lr.max() <= 1
        assert item.hr is None or item.hr.shape == (size[0] * scale, size[1] * scale, 3)
    if size == (37, 53):
        shares = {n: ppexport.pure_mask(i.lr[0].transpose(1, 2, 0)).mean() for n, i in inputs.items()}
        assert shares["flat"] == 1
        assert shares["noise"] == 0
        assert 0 < shares["short_of_pure"] < 1
        assert 0.9 < shares["few_impure"] < 1
        assert inputs["astronaut"].hr is not None


def test_columns_survive_a_file(tmp_path):
    save_entries(tmp_path / "c.npz", {"a": sample(flip=[2]), "b": Sample(sample().sr, 7)})
    column = load_column(tmp_path / "c.npz").samples
    assert np.array_equal(column["a"].categories, sample(flip=[2]).categories)
    assert column["b"].impure == 7
    assert column["b"].gaps is None
    save_entries(tmp_path / "i.npz", {"a": ITEM})
    assert [i.name for i in load_inputs(tmp_path / "i.npz", (16, 16))] == ["a"]
    with pytest.raises(InputError, match="needed is float32"):
        load_inputs(tmp_path / "i.npz", (16, 32))


def test_hostile_columns(tmp_path):
    np.savez(tmp_path / "p.npz", **{"a.sr": np.array([{"x": 1}], dtype=object)})
    (tmp_path / "t.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:50])
    np.savez(tmp_path / "e.npz", **{"../a.lr": np.zeros((1, 3, 16, 16), np.float32)})
    np.savez(tmp_path / "i.npz", **{"a.sr": np.zeros((1, 3, 8, 8), np.float32), "a.impure": np.array("many")})
    for name in ("p.npz", "t.npz", "i.npz", "absent.npz"):
        with pytest.raises(InputError, match=name):
            load_column(tmp_path / name)
    with pytest.raises(InputError, match="e.npz"):
        load_inputs(tmp_path / "e.npz", (16, 16))


def quiet(what, done, total):
    assert 0 <= done <= total


def test_a_run_passes_and_can_be_continued_elsewhere(tmp_path, monkeypatch):
    kept = {"coffee", "few_impure", "noise"}
    monkeypatch.setattr(
        parity_run, "parity_inputs", lambda *given: [i for i in parity_inputs(*given) if i.name in kept]
    )
    # A size that is no multiple of 16.
    network = small_network(layers=2)
    runner = ppexport.open_artifact(ppexport.export(network, backend="onnx", size=(13, 21), out=tmp_path / "a"))
    report = parity_run.run_parity(network, runner, tmp_path / "run", quiet)
    assert report.passed, report.to_dict()
    saved = json.loads((tmp_path / "run" / "report.json").read_text())
    assert saved["passed"]
    assert [p["other"] for p in saved["pairs"]] == ["twin", "onnx-fp32"]
    assert all(
        row["passed"] and row["equal_mask"] == row["equal_labels"] == 1 for p in saved["pairs"] for row in p["rows"]
    )
    names = ["inputs.npz", "network.npz", "onnx-fp32.npz", "report.json", "twin.npz", "worst.png"]
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == names
    with Image.open(tmp_path / "run" / "worst.png") as image:
        assert image.width > 4 * 256
    before = {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir() if f.name != "onnx-fp32.npz"}
    again = run_against(runner, tmp_path / "run", quiet)
    assert again.passed
    assert {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir() if f.name in before} == before
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == sorted(
        [*names, "report-onnx-fp32.json", "worst-onnx-fp32.png"]
    )
    assert json.loads((tmp_path / "run" / "report-onnx-fp32.json").read_text())["pairs"][0]["reference"] == "twin"
    assert [p.reference for p in again.pairs] == ["twin"]


def rewritten(folder, model):
    """The artifact *folder* with *model* in it and a manifest that agrees, opened."""
    onnx.save(model, folder / "model.onnx")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {"model.onnx": sha256_file(folder / "model.onnx")}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return ppexport.open_artifact(folder)


def test_an_artifact_whose_routing_collapses_fails_although_injection_saves_it(tmp_path, monkeypatch):
    """A broken dictionary sends all tokens into category 0. The twin does so too, if it is given that dictionary."""
    network = small_network(layers=2)
    last = network.layers[0].residual_group.layers[1]
    with torch.no_grad():
        # The dictionary of the last layer then does nothing but choose the categories.
        for parameter in last.attn_atd.wv.parameters():
            parameter.zero_()
    lr = next(item for item in parity_inputs(SIZE, 2) if item.name == "noise").lr
    hr = to_uint8(make_twin(network, SIZE)(torch.from_numpy(lr))[0].numpy())
    # So far from the picture that rounding to fp16 moves PSNR-Y by a thousandth.
    hr[::2] ^= 16
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: [ParityInput("noise", lr, hr)])
    folder = ppexport.export(network, backend="tensorrt", precision="fp16", size=SIZE, out=tmp_path / "a")
    model = onnx.load(folder / "model.onnx")
    names = [node.name for node in model.graph.node]
    at = names.index("/layers.0/residual_group/layers.1/attn_atd/wk/Gemm")
    keys = model.graph.node[at]
    broken = onnx.helper.make_node("Mul", [keys.input[0], "zero"], ["collapsed"], name="/collapse/Mul")
    keys.input[0] = "collapsed"
    model.graph.node.insert(at, broken)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    report = parity_run.run_parity(network, rewritten(folder, model), tmp_path / "run", quiet)
    pair = report.pairs[-1]
    (row,) = pair.rows
    assert pair.agreement == [1.0, 0.0]
    assert row.passed, "the flips alone are excused"
    assert row.injected.psnr > 55
    assert abs(pair.mean_change("task_same_routing")) < 0.02
    assert pair.mean_change("task") < -0.02
    assert pair.failed_tasks == ["task"]
    assert not report.passed
    assert pair.first_bad_layer == "layers.0.residual_group.layers.1"


@pytest.fixture(scope="module")
def small_half(tmp_path_factory):
    """A network of two layers, its artifact in fp16 and what a parity run on a workstation left, on one input."""
    root, network = tmp_path_factory.mktemp("half"), small_network(layers=2)
    folder = ppexport.export(network, backend="tensorrt", precision="fp16", size=SIZE, out=root / "a")
    runner = ppexport.open_artifact(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_run, "parity_inputs", lambda *_: [i for i in parity_inputs(SIZE, 2) if i.name == "noise"])
        assert parity_run.run_parity(network, runner, root / "run", quiet).passed
    return network, runner, root / "run"


def edited(folder, **changes):
    """Change the saved report in *folder*."""
    data = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**data, **changes}))
    return data


@pytest.mark.parametrize(
    ("measured", "passed", "reason"), [(0.8e-3, True, "gap below 0.0016"), (None, False, "sure of it by 1.5e-03")]
)
def test_how_sure_a_flip_may_be_is_what_the_saved_run_measured(small_half, tmp_path, measured, passed, reason):
    network, runner, saved = small_half
    folder = shutil.copytree(saved, tmp_path / "run")
    # A twin that chose otherwise for one token, and was sure of it by 1.5e-3.
    (item,) = load_inputs(folder / "inputs.npz", SIZE)
    column = load_column(folder / "twin.npz").samples
    categories = load_column(folder / "onnx-fp16.npz").samples["noise"].categories.copy()
    categories[1, 7] ^= 1
    gaps = column["noise"].gaps.copy()
    gaps[1, 7] = 1.5e-3
    forced = TwinColumn(make_twin(network, SIZE), [256]).sample(item, categories)
    save_entries(folder / "twin.npz", {"noise": dataclasses.replace(forced, categories=categories, gaps=gaps)})
    pairs = edited(folder)["pairs"]
    assert pairs[-1]["rows"][0]["passed"]
    pairs[-1]["rows"][0]["surest"] = measured
    edited(folder, pairs=pairs)
    (row,) = run_against(runner, folder, quiet).pairs[0].rows
    assert row.passed is passed
    assert reason in row.reason


def test_what_a_run_measured_of_flips_is_saved(small_half, tmp_path):
    saved = json.loads((small_half[2] / "report.json").read_text())
    rows = saved["pairs"][-1]["rows"]
    assert all((row["surest"] is None) is (not any(row["flips"])) for row in rows)
    assert judge(sample(gap=1e-7), sample(flip=[3]), lambda item, _: sample(flip=[3])).surest == np.float32(1e-7)
    _, flipped = parity_against.examined(saved, tmp_path)
    assert flipped == {row["name"]: row["errors"]["psnr"] for row in rows if any(row["flips"])}
    assert parity_against.examined({"pairs": []}, tmp_path) == (0, {})
    row = {"name": "a", "passed": True, "surest": math.inf, "errors": {"psnr": 50.0}}
    for bad in ({}, {"pairs": [{"reference": "twin", "rows": [row]}]}):
        with pytest.raises(InputError, match=r"report\.json"):
            parity_against.examined(bad, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"file": "w", "sha256": "0" * 64}}, "run of other weights"),
        ({"options": {"colors": 4}}, "run of other options"),
        ({"precision": "fp32"}, "run of other precision: 'fp32', the artifact has 'fp16'"),
        ({"capacities": [128, 256]}, "run of other capacities"),
        ({"scale": 4}, "run of other scale"),
        ({"size": [32, 32]}, "run of other size"),
        ({"weights": 3}, "run of other weights"),
        ({"version": 1}, "saved by another version of ppexport: run `ppexport parity`"),
        ({"format": "x"}, "holds no parity run"),
    ],
)
def test_a_saved_run_must_be_the_artifacts(small_half, tmp_path, changes, message):
    folder = shutil.copytree(small_half[2], tmp_path / "run")
    edited(folder, **changes)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match=message):
        run_against(small_half[1], folder, quiet)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_without_onnx_pictures_and_counts_are_compared(small_half, tmp_path, monkeypatch):
    folder = shutil.copytree(small_half[2], tmp_path / "run")
    monkeypatch.setattr("ppexport.backends.onnx.find_spec", lambda name: None)
    pair = run_against(small_half[1], folder, quiet).pairs[0]
    # The runtime on a CPU computes fp16 in fp32, and the column of the workstation stays.
    assert pair.other == "onnx-fp16-weights"
    assert pair.rows[0].flips is None
    assert (folder / "onnx-fp16.npz").read_bytes() == (small_half[2] / "onnx-fp16.npz").read_bytes()


def test_a_near_tie_that_nothing_can_look_into_is_named():
    item = ParityInput("noise", ITEM.lr)
    reference, engine = sample(gap=1e-7, pure=range(250)), sample(shift=0.02, pure=range(250))
    engine = dataclasses.replace(engine, categories=None, gaps=None, pure=None, labels=None)
    pair = compare_pictures(Column("twin", {"noise": reference}), Column("e", {"noise": engine}), [item], GATE)
    assert not pair.passed
    assert "e does not tell whether one of the 12 near ties of this input flipped" in pair.rows[0].reason


def test_loosened_gates_are_refused_before_any_work(small_half, tmp_path, monkeypatch):
    network, runner, _ = small_half
    manifest = dataclasses.replace(runner.artifact.manifest, gates={"twin": {"psnr": 1.0}})
    monkeypatch.setattr(runner, "artifact", dataclasses.replace(runner.artifact, manifest=manifest))
    monkeypatch.setattr(parity_run, "compute", lambda *_: pytest.fail("work was done"))
    with pytest.raises(InputError, match="the gate 'twin' of .*: psnr 1 asks for less"):
        parity_run.run_parity(network, runner, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_the_first_layer_that_is_off_is_named():
    names = [f"layers.{b}.residual_group.layers.{i}" for b, i in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))]
    ones = [np.ones((4, 3), np.float32)] * 5
    bad = [*ones[:3], np.full((4, 3), 1.1, np.float32), *ones[:1]]
    assert first_bad_layer(names, ones, bad, 55.0) == "layers.1.residual_group.layers.1"
    assert first_bad_layer(names, ones, ones, 55.0) == "after the last layer"
    assert first_bad_layer([], [], [], 55.0) == "", "a network without routing has no such layers"
    assert list(make_twin(small_network(layers=2), SIZE).routed_layers()) == names[:2]


def test_layers_that_are_all_zero_are_compared():
    names = [f"layers.0.residual_group.layers.{i}" for i in range(3)]
    zero, one = np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32)
    assert first_bad_layer(names, [zero, zero, one], [zero, one, one], 55.0) == names[1]
    assert first_bad_layer(names, [one, zero, zero], [one, zero, zero], 55.0) == "after the last layer"
    assert first_bad_layer(names, [one, one, one], [one, zero, one], 55.0) == names[1]
    assert first_bad_layer(names, [zero, one, one], [zero, one, np.full_like(one, np.nan)], 55.0) == names[2]


def test_the_reference_must_be_the_artifacts(artifact, tmp_path):
    runner = ppexport.open_artifact(artifact)
    other = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    state = copy.deepcopy(reference_network(runner.artifact, None).state_dict())
    state["norm.bias"] += 1
    save_file(state, other)
    with pytest.raises(InputError, match="not the weights file"):
        reference_network(runner.artifact, other)
    manifest = dataclasses.replace(runner.artifact.manifest, weights={"file": "mine.pth", "sha256": "0" * 64})
    with pytest.raises(InputError, match="mine.pth.*--checkpoint"):
        reference_network(dataclasses.replace(runner.artifact, manifest=manifest), None)


def test_foreign_graphs_cannot_be_looked_into(artifact, tmp_path):
    model = onnx.load(artifact / "model.onnx")
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    with pytest.raises(ArtifactError, match="node names"):
        onnx_probe.OnnxProbe(tmp_path / "nameless.onnx", ROUTING)


def test_a_twin_chooses_again_as_the_command_line_runs_it():
    # Outside of tests gradients are on, and the dictionary that a block starts with is a parameter.
    twin, lr = make_twin(small_network(), SIZE), np.full((1, 3, *SIZE), 0.5, np.float32)
    given = ChosenFrom(np.zeros((256, 48), np.float32), None)
    with torch.enable_grad():
        seen = choose_again(twin, lr, np.zeros((1, 256), np.uint8), [given])
    assert seen.categories.shape == seen.gaps.shape == (1, 256)
    assert (seen.tokens_db, seen.dictionary_db) == (0, np.inf)
