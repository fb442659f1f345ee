"""tools/compare_peers.py: its baseline is the network, its statistics are right, and it says what it cannot do.

Nothing here asserts a time.
"""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import golden_network, photo
from shared import ROOT
from typer.testing import CliRunner

# What is imported above lets programs of tools/ be found.
# isort: split
import compare_peers
from peers import cache as caching
from peers import in_openvino, sizes
from peers.arithmetic import Arithmetic, bound_seconds, flop
from peers.cache import Cache
from peers.candidate import Candidate
from peers.child import in_child, peak_bytes
from peers.figures import round_ratios, spread
from peers.in_onnxruntime import FixedCapacity, OurArtifact, PlainOnnx, Repeated
from peers.in_openvino import OpenVino
from peers.in_torch import Source
from peers.lineup import KEYS, check_keys, slots_for
from peers.machine import Machine
from peers.pictures import busy_photo, pure_pixels, with_pure_share
from peers.plain import export_plain
from peers.plot import plot
from peers.race import Heat, Reference, race, turn
from peers.report import RACE, SIZES, Table, fresh, markdown, read_speed, tables, write_speed
from peers.result import Comparison
from peers.saving import saving
from places import insert

from ppexport.cli.options import parse_size
from ppexport.device.artifact import ONNX_FLAVOURS, read_artifact
from ppexport.device.picture import psnr, to_input
from ppexport.errors import ExportError, InputError, PpexportError, UnavailableError
from ppexport.networks.atd.cost import Macs, count_macs
from ppexport.networks.card import PurePassOptions
from ppexport.profile.statistics import Interval, median_interval

OPTIONS = PurePassOptions().model_dump()
MODEL = "pp_atd_light_x2"
LR = np.zeros((1, 3, 4, 4), np.float32)


class Fake(Candidate):
    """Takes the seconds it is given, one after the other, without waiting."""

    def __init__(self, key, seconds=(1.0,), failure=None, reference=None):
        super().__init__(key, f"the {key}", LR)
        self.seconds, self.failure, self.reference = seconds, failure, reference
        self.turns = 0

    def prepare(self):
        if self.failure is not None:
            raise UnavailableError(self.failure)

    def run(self):
        return self.lr

    def time(self):
        self.turns += 1
        return self.seconds[(self.turns - 1) % len(self.seconds)]


def silent(*_):
    """Told what nobody reads."""


# The plain export


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory):
    target = tmp_path_factory.mktemp("plain") / "plain.onnx"
    # One side is no multiple of 16, and the other has windows beside each other for the mask of the shift.
    export_plain(golden_network("atd_light_x2_trained", "atd_light"), (16, 30), target)
    return target


def test_the_plain_graph_is_the_network(plain_file):
    network = golden_network("atd_light_x2_trained", "atd_light")
    lr = to_input(photo(16, 30))
    candidate = PlainOnnx("plain", "plain", lr, plain_file, threads=1)
    candidate.prepare()
    expected = network(torch.from_numpy(lr)).numpy()
    assert psnr(candidate.run(), expected, 1.0) > 90


def test_pure_pass_has_no_plain_export(tmp_path):
    with pytest.raises(InputError, match="of atd_light"):
        export_plain(golden_network("atd_light_x2_trained", "pp_atd_light"), (16, 16), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_not_load_is_a_sentence(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(UnavailableError, match="ONNX Runtime cannot load it"):
        PlainOnnx("plain", "plain", LR, broken, threads=1).prepare()


# Statistics


def test_the_interval_contains_the_median_of_what_was_sampled():
    inside = 0
    for seed in range(50):
        sample = np.random.default_rng(seed).lognormal(mean=np.log(2.0), sigma=0.3, size=40)
        interval = median_interval(sample, seed)
        assert interval.low <= interval.middle <= interval.high
        inside += interval.low <= 2.0 <= interval.high
    # 95 % on average; the bootstrap of a median is a little off.
    assert 43 <= inside <= 50


def test_an_interval_is_the_same_again_and_narrow_where_nothing_varies():
    values = list(np.random.default_rng(1).normal(size=20))
    assert median_interval(values, 3) == median_interval(values, 3)
    assert median_interval([0.5] * 10) == Interval(0.5, 0.5, 0.5)
    assert median_interval([0.7]) == Interval(0.7, 0.7, 0.7)


def test_ratios_are_taken_within_rounds():
    # The machine slows down threefold, and A takes twice as long as B all the time.
    speeds = [1.0, 1.0, 3.0, 2.5]
    a = [[2.0 * s, 2.2 * s] for s in speeds]
    b = [[1.1 * s, 1.0 * s] for s in speeds]
    assert round_ratios(a, b) == pytest.approx([2.0] * 4)
    assert spread(b).median == pytest.approx(np.median([1e3 * t for times in b for t in times]))


def test_turning_an_interval_around_keeps_its_order():
    saved = Interval(0.8, 0.9, 0.95).map(-1, 1)
    assert (saved.low, saved.middle, saved.high) == pytest.approx((0.05, 0.1, 0.2))


# The race


def test_turns_go_forth_and_back():
    candidates = [Fake(key) for key in "abc"]
    assert "".join(key for key, _ in turn(candidates, 0)) == "abccba"
    assert "".join(key for key, _ in turn(candidates, 1)) == "bcaacb"


def test_the_run_after_another_candidate_is_not_timed():
    first, second = Fake("a", (9.0, 1.0)), Fake("b", (7.0, 2.0))
    assert turn([first, second], 0) == [("a", 1.0), ("b", 2.0), ("b", 2.0), ("a", 1.0)]


def test_drift_cancels_within_a_round():
    class Slowing(Fake):
        clock = 0.0

        def time(self):
            Slowing.clock += 1.0
            return 1 + 0.1 * Slowing.clock

    times: dict[str, list[float]] = {}
    for key, seconds in turn([Slowing(key) for key in "abcd"], 2):
        times.setdefault(key, []).append(seconds)
    assert np.ptp([np.mean(both) for both in times.values()]) == pytest.approx(0)


def test_what_cannot_run_is_a_row_and_a_baseline_must(tmp_path):
    heats = [Heat("peers", (Fake("plain", (2.0,)), Fake("ours"), Fake("other", failure="not installed")))]
    outcome = race(heats, [], 3, 60, silent, silent)
    assert outcome.times["peers"] == {"plain": [[2.0, 2.0]] * 3, "ours": [[1.0, 1.0]] * 3}
    assert outcome.skipped == {"other": "not installed"}
    assert outcome.faster("peers", "ours") == Interval(2.0, 2.0, 2.0)
    assert outcome.relative("peers", "ours") == Interval(0.5, 0.5, 0.5)
    assert outcome.faster("peers", "other") is None
    assert outcome.done == 3
    with pytest.raises(UnavailableError, match="gone"):
        race([Heat("peers", (Fake("plain", failure="gone"),))], [], 1, 60, silent, silent)


def test_time_ends_a_race_after_a_whole_round():
    outcome = race([Heat("peers", (Fake("plain"), Fake("ours")))], [], 50, 0, silent, silent)
    assert outcome.done == 1


def test_every_picture_is_compared_with_its_network():
    pictures = [Reference("dense", LR, LR), Reference("pure_pass", LR, LR + np.float32(0.1))]
    heat = Heat("peers", (Fake("plain", reference="dense"), Fake("ours", reference="pure_pass"), Fake("free")))
    outcome = race([heat], pictures, 1, 60, silent, silent)
    assert outcome.decibel == {"plain": np.inf, "ours": pytest.approx(20, abs=1e-3)}
    wrong = Heat("peers", (Fake("plain", reference="pure_pass"),))
    with pytest.raises(ExportError, match="20.0 dB from the network, not 90"):
        race([wrong], pictures, 1, 60, silent, silent)
    # One picture that it gets right is enough: on the other two categories may be tied.
    other = np.ones_like(LR)
    outcome = race([wrong], [*pictures, Reference("pure_pass", other, other)], 1, 60, silent, silent)
    assert outcome.decibel == {"plain": pytest.approx(20, abs=1e-3)}
    assert wrong.candidates[0].lr is LR


# Pictures


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (37, 53), (700, 90)])
def test_the_busy_picture_has_no_pure_pixel(size):
    rgb = busy_photo(size, OPTIONS)
    assert rgb.shape == (*size, 3)
    assert not pure_pixels(rgb, OPTIONS).any()


def test_the_share_of_pure_pixels_is_as_wished():
    mask = pure_pixels(with_pure_share(busy_photo((64, 64), OPTIONS), 0.389), OPTIONS)
    assert mask.sum() == 25 * 64
    busy = busy_photo((32, 32), OPTIONS)
    assert np.array_equal(with_pure_share(busy, 0.0), busy)
    assert pure_pixels(with_pure_share(busy, 1.0), OPTIONS).all()


# Arithmetic


def test_the_bound_of_a_case_by_hand():
    macs = Macs(convolutions=100, qkv=20, dictionary=3, category=7, window=30, ffn=40, refinement=0, mask=0, norms=999)
    # Norms are no matmuls: 200 multiply-adds are 400 operations, at 50 a second 8 s.
    assert flop(macs) == 400
    assert bound_seconds(flop(macs), 50.0) == 8.0
    # 16x16: 256 pixels; 3x3 convolutions 3 -> 48, five times 48 -> 48, and 48 -> 12 for x2.
    assert count_macs(2, (16, 16)).convolutions == 256 * 9 * (3 * 48 + 5 * 48 * 48 + 48 * 12)


def test_the_bound_takes_the_best_of_its_tries(monkeypatch):
    seconds = iter([0.5, 0.25, 1.0])
    monkeypatch.setattr(Candidate, "time", lambda self: next(seconds))
    candidate = Arithmetic("bound", "bound", LR, operations=1 << 31, threads=1, tries=3)
    # 2 * 1024^3 operations in 0.25 s, so as many of the network take as long.
    assert candidate.time() == pytest.approx(0.25)
    assert candidate.rates == [pytest.approx((1 << 31) / 0.25)]


# Our artefacts


def test_our_artifact_runs_as_a_user_runs_it(artifact):
    lr = to_input(photo(37, 53))
    candidate = OurArtifact("ours", "ours", lr, artifact, threads=1, reference="pure_pass")
    candidate.prepare()
    network = Source(MODEL, dense=False).load()
    assert psnr(candidate.run(), network(torch.from_numpy(lr)).numpy(), 1.0) > 90
    assert candidate.capacity == read_artifact(artifact).manifest.capacities[-1]
    assert len(candidate.host_seconds) == 1
    options = candidate._runner.session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    # What the runner chose itself is still there.
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.intra_op_num_threads == 1


def test_dense_is_the_same_weights_without_pure_pass():
    dense, pure_pass = (Source(MODEL, dense).load() for dense in (True, False))
    assert dense.arch == "atd_light"
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), pure_pass.parameters(), strict=True))
    with pytest.raises(InputError, match="no weights"):
        Source("atd_light_x2", dense=True).load()


def test_openvino_that_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(in_openvino, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install openvino"):
        OpenVino("openvino", "OpenVINO", LR, ROOT / "x.onnx", threads=1).prepare()


def test_openvino_computes_the_plain_graph(plain_file):
    pytest.importorskip("openvino")
    lr = to_input(photo(16, 30))
    candidate = OpenVino("openvino", "OpenVINO", lr, plain_file, threads=1)
    candidate.prepare()
    expected = golden_network("atd_light_x2_trained", "atd_light")(torch.from_numpy(lr)).numpy()
    assert psnr(candidate.run(), expected, 1.0) > 90


def test_shares_of_slots_are_whole_groups():
    assert [slots_for(share, 4096) for share in (0.25, 0.5, 0.625, 0.75, 1.0)] == [1024, 2048, 2560, 3072, 4096]
    assert [slots_for(share, 256) for share in (0.25, 0.625, 1.0)] == [128, 256, 256]


# The cache


@pytest.fixture
def exports(monkeypatch, artifact):
    """Folders that were exported; each is a copy of the shared artefact."""
    made = []

    def export(network, *, out, **_):
        made.append(out)
        shutil.copytree(artifact, out, dirs_exist_ok=True)

    monkeypatch.setattr(caching, "export", export)
    return made


def test_an_export_is_used_again_until_something_changes(exports, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "work", MODEL, (37, 53))
    source = Source(MODEL, dense=False)
    first = cache.artifact(source, "portable", None, silent)
    assert cache.artifact(source, "portable", None, silent) == first
    assert exports == [first]
    # Other capacities than the manifest has, a damaged file, and code that changed.
    cache.artifact(source, "portable", [128, 256], silent)
    assert len(exports) == 2
    (first / "model.onnx").write_bytes(b"")
    cache.artifact(source, "portable", None, silent)
    assert exports[2] == first
    monkeypatch.setattr(caching, "our_code", lambda: "0" * 12)
    assert cache.artifact(source, "portable", None, silent) != first
    assert len(exports) == 4


def test_code_has_a_fingerprint(tmp_path):
    assert len({caching.our_code(), caching.plain_code()}) == 2
    (tmp_path / "a.py").write_text("1")
    before = caching.fingerprint(tmp_path.glob("*"))
    (tmp_path / "a.py").write_text("2")
    assert caching.fingerprint(tmp_path.glob("*")) != before


# Processes of their own


def test_a_child_has_its_own_peak():
    # This process has torch loaded and more; a new one's peak must not begin there.
    assert 5 << 20 < in_child(peak_bytes) < 150 << 20 < peak_bytes()


def test_a_child_that_fails_is_a_sentence():
    with pytest.raises(PpexportError, match="^a size is HEIGHTxWIDTH"):
        in_child(parse_size, "x")
    with pytest.raises(UnavailableError, match="SIGKILL"):
        in_child(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="ZeroDivisionError"):
        in_child(divmod, 1, 0)
    with pytest.raises(PpexportError, match=r"more than the 1\.0 GB"):
        in_child(bytes, 4 * 10**9, memory=10**9)


class Linear(Fake):
    """Takes 1 ms per pixel at the smallest size and 10 % more at others."""

    def __init__(self, key, lr, folder, threads, runs):
        pixels = lr.shape[2] * lr.shape[3]
        super().__init__(key, (1e-3 * pixels * (1 if pixels == 256 else 1.1),))
        self.runs = runs


def test_time_and_memory_by_size(monkeypatch, tmp_path):
    def export_alone(folder, model, flavour, size):
        if size == (64, 64):
            raise UnavailableError("needs more than is free")
        return tmp_path

    monkeypatch.setattr(sizes, "export_alone", export_alone)
    monkeypatch.setattr(sizes, "in_child", lambda *_: 2 * 10**6)
    monkeypatch.setattr(sizes, "Repeated", Linear)
    sides = [(16, 16), (32, 32), (64, 64)]
    pictures = [np.zeros((1, 3, *side), np.float32) for side in sides]
    rows = sizes.measure_sizes(tmp_path, MODEL, sides, ONNX_FLAVOURS, pictures, 1, 3, 60, silent, silent)
    assert [row.failure is None for row in rows] == [True] * 2 * len(ONNX_FLAVOURS) + [False] * len(ONNX_FLAVOURS)
    text = sizes.sizes_table(rows).markdown()
    assert f"| {ONNX_FLAVOURS[0]}, 16x16 | 256 | 256 to 256 | 1000.0 | 1.00 (1.00 to 1.00) | 2 |" in text
    assert f"| {ONNX_FLAVOURS[0]}, 64x64 | export: needs more than is free |  |  |  |  |" in text
    second = rows[len(ONNX_FLAVOURS)]
    assert second.relative.middle == pytest.approx(1.1)
    assert second.to_dict()["us_per_pixel"] == pytest.approx(1100)
    assert rows[-1].to_dict()["failure"] == "export: needs more than is free"


def test_a_small_picture_runs_several_times(artifact, monkeypatch):
    taken = iter([1.0, 2.0, 3.0])
    candidate = Repeated("small", LR, artifact, 1, 3)
    monkeypatch.setattr(OurArtifact, "time", lambda self: next(taken))
    assert candidate.time() == 2.0


# The report


@pytest.fixture
def result(artifact):
    """A comparison of candidates that never ran."""
    flavour = ONNX_FLAVOURS[0]
    auto, fixed = (OurArtifact(f"{flavour}-auto-pure", "auto", LR, artifact, 1, None) for _ in range(2))
    auto = type("Auto", (OurArtifact,), {"time": lambda self: 0.9})(
        f"{flavour}-auto-pure", "auto", LR, artifact, 1, None
    )
    auto.prepare, auto.run, auto.capacity, auto.host_seconds = silent, lambda: LR, 640, [0.001, 0.002, 0.003]
    fixed = FixedCapacity(f"{flavour}-set-1/2", f"ours, {flavour}: 512 slots", LR, artifact, 1, 512)
    fixed.prepare, fixed.run, fixed.time, fixed.capacity = silent, lambda: LR, lambda: 0.8, 512
    dense, busy = Fake(f"{flavour}-dense"), Fake(f"{flavour}-auto-busy", (1.03,))
    heats = [
        Heat("peers", (Fake("plain", (5.0, 9.0, 4.0, 9.0)), dense, Fake("openvino-plain", failure="not installed"))),
        Heat(flavour, (dense, fixed, auto, busy)),
    ]
    outcome = race(heats, [], 4, 60, silent, silent)
    candidates = {c.key: c for heat in heats for c in heat.candidates}
    found = saving(flavour, outcome, candidates, pure_share=0.4, macs_saved=0.08)
    machine = Machine("a processor", 2, "Linux", {"torch": "1"}, "2025-01-02T03:04:05+00:00")
    return Comparison(
        "a_model", 2, (32, 32), 2, machine, 0.4, 0.0, 10**9, outcome, candidates, [found], {"plain": 10**7}
    )


def test_the_saving_is_against_dense(result):
    (found,) = result.savings
    assert found.time_saved.middle == pytest.approx(0.1)
    assert found.realised.middle == pytest.approx(1.25)
    assert found.cost_without_pure.middle == pytest.approx(0.03)
    assert found.host_ms == pytest.approx(2.0)
    assert found.capacity == 640


def test_tables_say_what_was_measured(result):
    peers, capacities, pure_pass = tables(result)
    assert peers.rows[0] == ["the plain", "4500", "4000 to 5000", "1.00 (1.00 to 1.00)", "", "10"]
    assert peers.rows[1][3] == "4.50 (4.50 to 4.50)"
    assert peers.rows[2][:2] == ["the openvino-plain", "not installed"]
    assert [row[0] for row in capacities.rows][1] == "512 slots"
    assert pure_pass.rows[0][:3] == [ONNX_FLAVOURS[0], "40.00 %", "640"]
    assert pure_pass.rows[0][3] == "10.0 % (10.0 to 10.0)"
    assert all(len(row) == len(table.columns) for table in (peers, capacities, pure_pass) for row in table.rows)


def test_json_holds_every_time(result):
    data = json.loads(json.dumps(result.to_dict()))
    assert data["rounds"] == 4
    assert data["skipped"] == {"openvino-plain": "not installed"}
    plain = data["heats"]["peers"]["candidates"]["plain"]
    assert np.shape(plain["seconds"]) == (4, 2)
    assert plain["peak_bytes"] == 10**7
    assert data["heats"][ONNX_FLAVOURS[0]]["baseline"] == f"{ONNX_FLAVOURS[0]}-dense"
    assert data["pure_pass"][0]["realised"]["middle"] == pytest.approx(1.25)


def test_markdown_goes_between_its_comments(result, tmp_path):
    path = tmp_path / "SPEED.md"
    text = markdown(result, "speed.png")
    assert "a processor, 2 cores, 2 threads; Linux; torch 1; 2025-01-02" in text
    assert "| the plain | 4500 | 4000 to 5000 |" in text
    write_speed(path, "a_model", SIZES, "sizes")
    write_speed(path, "a_model", RACE, text)
    once = path.read_text()
    assert once.startswith("# Speed of a_model")
    assert "\nsizes\n" in once
    write_speed(path, "a_model", RACE, text)
    assert path.read_text() == once
    path.write_text(once.replace("<!-- /peers -->", ""))
    with pytest.raises(InputError, match="no place for the table"):
        read_speed(path, "a_model", RACE)
    with pytest.raises(InputError, match="is not a folder"):
        read_speed(tmp_path / "none" / "SPEED.md", "a_model", RACE)


def test_what_surrounds_a_place_stays():
    text = "before\n<!-- peers -->old<!-- /peers -->\nafter"
    assert insert(text, RACE, "new", "x") == "before\n<!-- peers -->\n\nnew\n\n<!-- /peers -->\nafter"
    with pytest.raises(InputError):
        insert(fresh("m") + fresh("m"), RACE, "new", "x")


def test_a_table_is_markdown():
    table = Table("title", ["", "ms"], [["a", "1"], ["b", "2"]])
    assert table.markdown() == "**title**\n\n|  | ms |\n| --- | ---: |\n| a | 1 |\n| b | 2 |"


def test_the_plot_is_a_picture(result, tmp_path):
    for i, comparison in enumerate((result, replace(result, outcome=replace(result.outcome, times={"peers": {}})))):
        plot(comparison, tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")


# The command


def run(*arguments, code=0):
    done = CliRunner().invoke(compare_peers.app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model, which SPEED.md may be written into."""
    return shutil.copytree(ROOT / "models" / MODEL, tmp_path / MODEL)


def test_the_command_measures_a_few(model, tmp_path):
    target = tmp_path / "out.json"
    output = run(
        model, "--size", "16x16", "--rounds", "1", "--threads", "1", "--only", "torch-eager,bound,openvino-plain",
        "--work", tmp_path / "work", "--json", target, "--write", "--pure-share", "0",
    )  # fmt: skip
    data = json.loads(target.read_text())
    assert {"plain", "torch-eager", "bound"} <= set(data["heats"]["peers"]["candidates"])
    assert data["heats"]["peers"]["candidates"]["plain"]["decibel"] > 90
    assert data["lr_size"] == [16, 16]
    assert data["machine"]["versions"]["onnxruntime"] == onnxruntime.__version__
    text = (model / "SPEED.md").read_text()
    assert "PyTorch eager" in text
    assert "arithmetic alone" in text
    assert (model / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "written to" in output


def test_mistakes_are_sentences(model, tmp_path):
    assert "'fast' is no candidate" in run(MODEL, "--only", "fast", code=2)
    assert "is no candidate" in run(MODEL, "--without", "x", code=2)
    assert "one --size only" in run(MODEL, "--size", "16x16,32x32", code=2)
    assert "a size is HEIGHTxWIDTH" in run(MODEL, "--size", "16", code=2)
    assert "atd_light_x2 has no weights" in run("atd_light_x2", code=2)
    (model / "SPEED.md").write_text("no place")
    assert "no place for the table" in run(model, "--write", code=2)


def test_keys_are_checked_and_the_baseline_stays():
    assert check_keys([], []) == set(KEYS)
    assert check_keys(["bound"], []) == {"plain", "bound"}
    assert "torch-eager" not in check_keys([], ["torch-eager"])
