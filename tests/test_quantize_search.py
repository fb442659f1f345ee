"""The search: what it chooses, that it goes on after a kill, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import FREE_IMAGES
from small_networks import ROUTING as ROLES
from tensorrt_models import random_network, shorten

import ppexport
from ppexport.backends.onnx.collect import calibrate, is_of
from ppexport.backends.onnx.onnx_probe import OnnxProbe
from ppexport.backends.onnx.qdq import write_int8
from ppexport.backends.onnx.quantised import quantised
from ppexport.device.artifact import read_artifact
from ppexport.device.picture import psnr_y, to_uint8
from ppexport.errors import InputError
from ppexport.networks.card import find_card
from ppexport.profile.statistics import Interval
from ppexport.quantize.calibration import load_calibration
from ppexport.quantize.crops import cut_crops, read_sources
from ppexport.quantize.recipe import GROUPS, Quantisation, Recipe, read_recipe, recipe_for, write_recipe
from ppexport.search import search as steps
from ppexport.search.search import (
    COLUMNS,
    Outcome,
    choose,
    found_recipe,
    markdown,
    order_of,
    pareto,
    plot,
    rows,
    run_search,
    to_dict,
)
from ppexport.search.trials import RUNTIMES, Search, SearchOptions, Trial, compare_times

SIZE = (16, 32)


def trial(name="t", change=-0.01, time=0.9, size=3_000_000, groups=("qkv",), spread=0.01, error=0.001) -> Trial:
    ratio = Interval(time - spread, time, time + spread)
    return Trial(name, groups, "max", change, error, change - 0.01, (1.0, 0.9), size, ratio)


trials = st.lists(
    st.builds(trial, st.text("ab", min_size=1), st.sampled_from([-0.2, -0.1, 0.0]), st.sampled_from([0.8, 1.0, 1.2]),
              st.sampled_from([1, 2, 3])),
    min_size=1,
)  # fmt: skip


@given(trials)
def test_nothing_in_the_pareto_set_is_beaten_and_all_else_is(every):
    def figures(t):
        return (-t.change, t.time.middle, t.bytes)

    def beats(a, b):
        return figures(a) != figures(b) and all(x <= y for x, y in zip(figures(a), figures(b), strict=True))

    kept = pareto(every)
    assert kept
    assert not any(beats(other, t) for t in kept for other in every)
    left = [t for t in every if not any(t is k for k in kept)]
    assert all(any(beats(other, t) for other in every) for t in left)


def test_the_fastest_within_the_budget_is_chosen_if_it_is_surely_faster():
    fast, small = trial("fast", -0.04, 0.8), trial("small", -0.04, 0.95, 1_000_000, spread=0.2)
    slow, costly = trial("slow", -0.01, 1.3, 2_000_000), trial("costly", -0.2, 0.5)
    routing = trial("routing", 0.0, 0.1, 10, ("similarity",))
    assert choose([fast, small, slow, costly, routing], 0.05) == (fast, "the fastest within the budget")
    chosen, reason = choose([small, slow, costly, routing], 0.05)
    assert chosen is small
    better = trial("better", -0.02, 0.95, 1_000_000, spread=0.2)
    assert choose([small, better, slow], 0.05)[0] is better
    assert reason.startswith("none was surely faster than fp32")
    with pytest.raises(InputError, match=r"no placement costs at most 0\.05 dB; the best, costly, costs 0\.200 dB"):
        choose([costly, routing], 0.05)


def test_the_budget_counts_the_standard_error():
    sure, doubtful = trial("sure", -0.04, 0.9, error=0.006), trial("doubtful", -0.02, 0.5, error=0.02)
    assert (sure.cost, doubtful.cost) == pytest.approx((0.04987, 0.0529))
    assert choose([sure, doubtful], 0.05)[0] is sure
    assert choose([sure, doubtful], 0.053)[0] is doubtful
    with pytest.raises(InputError, match=r"the best, sure, costs 0\.040 dB, and up to 0\.050 dB .*--crops"):
        choose([sure, doubtful], 0.045)


def test_a_change_that_rounds_to_zero_is_not_negative():
    even = trial(change=-0.00004)
    assert rows(Outcome(30.0, 4_000_000, [even], even, ""))[1][1] == "+0.0000 ± 0.0010"


def test_groups_join_by_what_they_save_for_what_they_cost():
    cheap, dear, useless = trial("a", -0.001, 0.9), trial("b", -0.1, 0.8), trial("c", -0.001, 1.2, 4_000_000)
    assert order_of([useless, dear, cheap], 4_000_000) == [cheap, dear, useless]


def test_what_looked_fast_by_chance_is_timed_again_and_not_chosen(search_in, tmp_path, monkeypatch):
    again, groups = [], GROUPS[:4]

    def measure(self, name, groups, calibrator):
        # On a busy machine: two look faster than fp32, one of them is.
        middle = {f"{GROUPS[0]} alone": 0.6, f"{GROUPS[1]} alone": 0.8}.get(name, 1.2)
        return trial(name, -0.01, middle, groups=tuple(groups))

    def timed(self, path, rounds):
        again.append(rounds)
        return Interval(1.05, 1.1, 1.15) if len(again) == 1 else Interval(0.85, 0.9, 0.95)

    monkeypatch.setattr(steps, "GROUPS", groups)
    monkeypatch.setattr(Search, "_measure", measure)
    monkeypatch.setattr(Search, "_time", timed)
    for _ in range(2):
        outcome = run_search(search_in(tmp_path), lambda what, done, total: None)
        assert (outcome.chosen.name, outcome.chosen.time.middle) == (f"{GROUPS[1]} alone", 0.9)
        assert {t.name: t.time.middle for t in outcome.trials}[f"{GROUPS[0]} alone"] == 1.1
        # The second search finds the times of the first.
        assert again == [15, 15]


@pytest.fixture(scope="module")
def search_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    network = shorten(random_network("pp_atd_light", 2))
    artifact = read_artifact(ppexport.export(network, backend="onnx", size=SIZE, out=folder / "fp32"))
    sources = read_sources(FREE_IMAGES)
    calibrate(artifact, sources, cut_crops(sources, SIZE, 2, 3), [], folder / "c.npz")
    crops = cut_crops(sources, SIZE, 2, 3, "search")

    def make(out, precision="int8"):
        out.mkdir(exist_ok=True)
        options = SearchOptions("onnxruntime", 2, 3, 100.0, precision=precision)
        return Search(artifact, load_calibration(folder / "c.npz"), crops, options, out)

    return make


def test_a_search_measures_every_step_once_goes_on_and_reports(search_in, tmp_path, monkeypatch):
    measured = []
    plain = Search._measure

    def counted(self, name, groups, calibrator):
        measured.append(name)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return plain(self, name, groups, calibrator)

    groups = GROUPS[:4]
    # Another network's comes with them, of which this one has no layer.
    assert "mixer_out" in GROUPS
    monkeypatch.setattr(steps, "GROUPS", (*groups, "mixer_out"))
    monkeypatch.setattr(Search, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run_search(search_in(tmp_path), lambda what, done, total: None)
    seen = []
    outcome = run_search(search_in(tmp_path), lambda what, done, total: seen.append((done, total)))
    # The one that was killed is the only one that began twice.
    assert len(measured) == len(outcome.trials) + 1
    assert seen[-1][0] == len(outcome.trials)
    assert seen[-1][0] == seen[-1][1]
    names = [t.name for t in outcome.trials]
    assert "similarity alone" in names
    assert {f"{g} alone" for g in groups} <= set(names)
    assert "mixer_out alone" not in names
    assert all(set(t.groups) <= {*groups, "similarity"} for t in outcome.trials)
    assert outcome.chosen.placeable
    assert all(len(t.agreement) == 2 and 0 <= min(t.agreement) <= 1 for t in outcome.trials)
    table = markdown(outcome, "about")
    assert table.count("\n|") == len(outcome.trials) + 3
    assert all(len(row) == len(COLUMNS) for row in rows(outcome))
    plot(tmp_path / "p.png", outcome, "title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(to_dict(outcome)))["chosen"] == outcome.chosen.name


def test_what_a_search_goes_on_with(search_in, tmp_path):
    search = search_in(tmp_path)

    def key(crops=search.crops, **changes):
        return Search(search.artifact, search.calibration, crops, replace(search.options, **changes), tmp_path).key

    assert key(budget=0.1) == search.key, "another budget measures nothing anew"
    assert key(weight_bits=7) != search.key
    assert key(precision="mixed") != search.key
    first, *others = search.crops
    assert key([replace(first, hr=first.hr ^ 1), *others]) != search.key, "a picture that was changed under its name"


def test_a_calibration_of_other_pictures_is_not_taken_for_this_one(search_in, tmp_path):
    search = search_in(tmp_path)
    sources = read_sources(FREE_IMAGES)
    crops = cut_crops(sources, SIZE, 2, 3)
    assert is_of(search.calibration, search.artifact, sources, crops)
    assert not is_of(search.calibration, search.artifact, sources, cut_crops(sources, SIZE, 2, 4))
    assert not is_of(search.calibration, search.artifact, sources, cut_crops(sources[1:], SIZE, 2, 3))


def test_a_trial_says_what_its_file_does(search_in, tmp_path):
    search = search_in(tmp_path)
    found = search.measure("one", ["qkv"], "max")
    model = write_int8(search.model, search.calibration, Recipe(calibrator="max", groups=("qkv",)))
    assert found.bytes == model.ByteSize()
    onnx.save(model, tmp_path / "int8.onnx")
    run = RUNTIMES["onnxruntime"](tmp_path / "int8.onnx", 1)
    base = RUNTIMES["onnxruntime"](search.artifact.model_file, 1)
    changes = [
        psnr_y(to_uint8(run({"lr": c.lr})), c.hr, 2) - psnr_y(to_uint8(base({"lr": c.lr})), c.hr, 2)
        for c in search.crops
    ]
    assert found.change == pytest.approx(np.mean(changes), abs=0.02)


def test_a_search_in_mixed_measures_mixed_files(search_in, tmp_path):
    search = search_in(tmp_path, "mixed")
    found = search.measure("one", ["qkv"], "max")
    request = Quantisation("mixed", search.architecture, search.calibration, Recipe(calibrator="max", groups=("qkv",)))
    model, _ = quantised(search.model, request)
    assert found.bytes == model.ByteSize()
    onnx.save(model, tmp_path / "mixed.onnx")
    rounded = OnnxProbe(tmp_path / "mixed.onnx", ROLES, rounds=True)
    base = RUNTIMES["onnxruntime"](search.artifact.model_file, 1)
    changes = [
        psnr_y(to_uint8(rounded.run({"lr": c.lr}).sr), c.hr, 2) - psnr_y(to_uint8(base({"lr": c.lr})), c.hr, 2)
        for c in search.crops
    ]
    assert found.change == pytest.approx(np.mean(changes), abs=0.02)


def test_a_recipe_lists_the_pictures_that_chose_it(search_in, tmp_path):
    search, chosen = search_in(tmp_path), trial(groups=("ffn_in",))
    pictures = [{"name": f"photograph number {n} ü.png", "sha256": f"{n:064x}"} for n in range(4096)]
    found = found_recipe(Outcome(30.0, 1, [chosen], chosen, "why"), search, pictures, "0" * 64)
    write_recipe(tmp_path / "r.yaml", found)
    read = read_recipe(tmp_path / "r.yaml")
    assert (read.groups, read.measured["images"]) == (("ffn_in",), pictures)
    assert (read.measured["precision"], read.measured["budget_db"]) == ("int8", 100.0)
    assert read.measured["calibration_sha256"] == search.calibration.sha256


@pytest.mark.parametrize("scale", [2, 4])
def test_bundled_recipes_list_the_pictures_that_chose_them_and_are_within_the_budget(scale):
    found = recipe_for(find_card(f"pp_atd_light_x{scale}")[0], None)[0].measured
    assert len({(picture["name"], picture["sha256"]) for picture in found["images"]}) == 24
    assert trial(change=found["psnr_y_change_db"], error=found["standard_error_db"]).cost <= 0.05


def test_damaged_state_and_foreign_runtimes(search_in, tmp_path):
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(InputError, match=r"search\.json is damaged"):
        search_in(tmp_path)
    with pytest.raises(InputError, match="a runtime is one of onnxruntime, openvino"):
        SearchOptions("tensorrt", 2, 3, 0.05)
    with pytest.raises(InputError, match="a precision is one of int8, mixed"):
        SearchOptions("openvino", 2, 3, 0.05, precision="fp16")


def test_times_are_compared_in_turns():
    order = []
    ratio = compare_times(lambda i: order.append("a"), lambda i: order.append("b"), {}, 3)
    assert "".join(order[2:]) == "bbaaaabb" * 3
    assert ratio.low <= ratio.middle <= ratio.high
