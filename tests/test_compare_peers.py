"""tools/compare_peers.py: its baseline is the network, its statistics are right, and it says what it cannot do.

Nothing here asserts a time.
"""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import golden_network, photo
from shared import ROOT
from small_networks import random_small_network, shortened
from typer.testing import CliRunner

# What is imported above lets programs of tools/ be found.
# isort: split
import compare_networks
import compare_peers
import peers
from compare_peers import (
    choose,
    heat_table,
    heats_of,
    markdown,
    peak_of,
    pure_pass_table,
    warm_up,
)
from peers import (
    FLAVOURS,
    FLOP,
    NAMES,
    UNTOLD,
    Lineup,
    Peer,
    busy_photo,
    export_plain,
    in_openvino,
    load,
    our_artifact,
    plain_graph,
    race,
    with_pure_share,
)

from ppexport.device.artifact import read_artifact
from ppexport.device.mask import pure_mask
from ppexport.device.measure import Query
from ppexport.device.picture import psnr, to_input
from ppexport.device.target import Target
from ppexport.errors import ExportError, InputError, UnavailableError
from ppexport.networks.architecture import find_architecture

MODEL = "pp_atd_light_x2"
LR = np.zeros((1, 3, 16, 16), np.float32)


def silent(*_):
    """Takes what nobody reads."""


class Fake(Peer):
    """Says what it was asked to do instead of taking time; *ms* are its times, one for every round."""

    def __init__(self, key, ms=(1.0,), failure=None, reference=None, sr=LR, log=None):
        super().__init__(key, LR, self.open, reference)
        self.failure, self.sr, self.log = failure, sr, [] if log is None else log
        self.rounds = [[value, value] for value in ms]

    def open(self):
        if self.failure is not None:
            raise UnavailableError(self.failure)
        self.log.append(f"open {self.name}")
        return self.compute

    def compute(self, lr):
        self.log.append(self.name)
        return self.sr, UNTOLD


# The plain export


@pytest.fixture(scope="module")
def dense():
    """The first two layers of ATD-light, of which one is shifted."""
    return shortened(copy.deepcopy(golden_network("atd_light_x2_trained", "atd_light")), 2)


@pytest.fixture(scope="module")
def plain_file(dense, tmp_path_factory):
    target = tmp_path_factory.mktemp("plain") / "plain.onnx"
    # Windows beside each other, for the mask of the shift.
    export_plain(dense, (16, 32), target)
    return target


@pytest.mark.parametrize("open_it", [
    lambda path: plain_graph(path, 1, flush=False),
    lambda path: plain_graph(path, 1, flush=True),
    lambda path: in_openvino(path, 1),
], ids=["plain", "flushed", "openvino"])  # fmt: skip
def test_the_plain_graph_is_the_network(dense, plain_file, open_it):
    reached = []
    try:
        run = open_it(plain_file)
    except UnavailableError as error:
        pytest.skip(str(error))
    for left in (100, 150, 200):
        lr = to_input(photo(16, 32, left=left))
        sr, told = run(lr)
        reached.append(psnr(sr, dense(torch.from_numpy(lr)).numpy(), 1.0))
        assert told == UNTOLD
    # Where two categories are closer than rounding, a right graph may take the other one; a wrong one is always wrong.
    assert np.median(reached) > 100, reached


def test_a_graph_that_does_not_load_is_a_sentence(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(UnavailableError, match="ONNX Runtime cannot load it"):
        plain_graph(broken, 1, flush=False)


def test_what_the_exporter_refuses_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("beyond 2 GB\nat some line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match="does not export at 16x16: beyond 2 GB$"):
        export_plain(golden_network("atd_light_x2_trained", "atd_light"), (16, 16), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


# The race


def test_turns_go_forth_and_back_and_the_run_after_another_program_is_not_timed():
    log = []
    heat = [Fake(key, (), log=log) for key in "abc"]
    race([heat], 2, silent)
    # Opened anew for every round, the first run of each; then every run twice, the next one first in the next round.
    first, second = ["open a", "a", "open b", "b", "open c", "c"], ["open b", "b", "open c", "c", "open a", "a"]
    assert log == [*first, *"aabbccccbbaa", *second, *"bbccaaaaccbb"]
    assert [len(times) for peer in heat for times in peer.rounds] == [2] * 6
    assert all(len(peer.told) == 4 and peer.run is None for peer in heat)


def test_torch_stays_open():
    log = []
    heat = [Fake("a", (), log=log), Fake("b", (), log=log)]
    heat[1].keep = True
    race([heat], 2, silent)
    assert (log.count("open a"), log.count("open b")) == (2, 1)


def test_ratios_are_taken_within_rounds():
    # The machine slows down threefold, and A takes twice as long as B all the time.
    speeds = [1.0, 1.0, 3.0, 2.5]
    a, b = Fake("a", [2.0 * s for s in speeds]), Fake("b", speeds)
    ratio = a.relative(b)
    assert (ratio.low, ratio.middle, ratio.high) == pytest.approx((2, 2, 2))
    assert b.spread[1] == pytest.approx(np.median(speeds))


def test_what_cannot_run_is_a_row_and_a_baseline_must(monkeypatch):
    lineup = Lineup(MODEL, (16, 16), ROOT, 1, 0.5, silent)
    monkeypatch.setattr(compare_peers, "load", lambda model, dense: lambda lr: lr)
    heat = {"plain": Fake("plain", reference="dense"), "ours": Fake("ours"), "other": Fake("other", failure="missing")}
    # Equal on its own picture, whatever it makes of the other one: two categories may be tied there.
    assert warm_up(lineup, {"peers": heat}) == {"other": "missing"}
    assert list(heat) == ["plain", "ours"]
    assert heat["plain"].decibel == np.inf
    assert heat["ours"].decibel is None
    wrong = {"plain": Fake("plain", reference="dense", sr=LR + np.float32(0.5))}
    with pytest.raises(ExportError, match="dB from the network, not 90: it is wrong"):
        warm_up(lineup, {"peers": wrong})
    with pytest.raises(UnavailableError, match="gone"):
        warm_up(lineup, {"peers": {"plain": Fake("plain", failure="gone")}})


# Pictures and programs


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (704, 96)])
@pytest.mark.parametrize("window", [4, 8, 16])
def test_the_busy_picture_has_no_pure_pixel(size, window):
    rgb = busy_photo(size, window)
    assert rgb.shape == (*size, 3)
    assert not pure_mask(rgb, 8, window, True).any()


def test_the_share_of_pure_pixels_is_as_asked():
    busy = busy_photo((64, 64), 8)
    assert pure_mask(with_pure_share(busy, 0.389)).sum() == 25 * 64
    assert np.array_equal(with_pure_share(busy, 0.0), busy)
    assert pure_mask(with_pure_share(busy, 1.0)).all()


def test_our_artifact_runs_as_a_user_runs_it(artifact):
    lr = to_input(photo(37, 53))
    target = Target(str(artifact), "onnxruntime", "CPU", 1)
    sr, told = our_artifact(target)(lr)
    assert psnr(sr, load(MODEL, dense=False)(torch.from_numpy(lr)).numpy(), 1.0) > 90
    assert told.capacity == read_artifact(artifact).manifest.capacities[-1]
    assert told.host_ns > 0
    # A new process has no torch, and its peak does not begin with this one's.
    assert 5 << 20 < peak_of(target, lr) < 500 << 20


def test_dense_is_the_same_weights_without_pure_pass():
    dense, pure_pass = (load(MODEL, dense) for dense in (True, False))
    assert dense.arch == "atd_light"
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), pure_pass.parameters(), strict=True))
    with pytest.raises(InputError, match="no weights"):
        load("atd_light_x2", dense=True)


@pytest.fixture
def lineup(tmp_path, monkeypatch, artifact):
    """A lineup whose exports are copies of the shared artifact, or empty files; `made` lists them."""
    made = Lineup(MODEL, (64, 64), tmp_path / "work", 1, 0.389, silent)
    made.made = []

    def export(network, *, out, **options):
        made.made.append((network.arch, options["flavour"], options["capacities"]))
        shutil.copytree(artifact, out)

    monkeypatch.setattr(peers, "export", export)
    monkeypatch.setattr(peers, "export_plain", lambda network, size, out: out.write_bytes(network.arch.encode()))
    return made


def test_an_export_is_used_again_until_something_changes(lineup, monkeypatch):
    first = lineup.ours("portable", dense=False)
    assert lineup.ours("portable", dense=False) == first
    assert lineup.made == [("pp_atd_light", "portable", None)]
    lineup.ours("portable", dense=True)
    lineup.ours("portable", dense=False, slots=[128, 256])
    assert lineup.made[1:] == [("atd_light", "portable", None), ("pp_atd_light", "portable", [128, 256])]
    assert lineup.plain().read_bytes() == b"atd_light"
    monkeypatch.setattr(peers, "our_code", lambda: "changed")
    assert lineup.ours("portable", dense=False) != first
    assert len(lineup.made) == 4


def test_every_program_is_what_its_key_says(lineup):
    made = {key: lineup.peer(key) for key in NAMES}
    slots = [made[f"ort-set-{share}"].open_it.args[1] for share in peers.SHARES]
    assert slots == [1024, 2048, 2560, 3072, 4096]
    assert [key for key, peer in made.items() if peer.reference is None] == [
        key for key in NAMES if key == "bound" or "-set-" in key
    ]
    assert made["openvino-portable"].target.runtime == "openvino"
    assert [key for key, peer in made.items() if peer.lr is lineup.busy] == [f"{f}-auto-busy" for f in FLAVOURS]
    assert made["bound"].part == pytest.approx(2 * find_architecture("atd_light").cost(2, (64, 64)).pure / FLOP)
    assert {arch for arch, _, _ in lineup.made} == {"atd_light", "pp_atd_light"}


def test_heats_compare_with_what_they_should(lineup):
    small = Lineup(MODEL, (16, 16), lineup.work, 1, 0.389, silent)
    heats = heats_of([small, lineup], choose("ort-dense,ort-auto-pure,bound"))
    assert {name: list(heat) for name, heat in heats.items()} == {
        "peers": ["plain", "ort-dense", "bound"],
        "ort": ["ort-dense", "ort-auto-pure"],
        "ort, by size": ["16x16", "64x64"],
    }
    assert heats["ort, by size"]["64x64"].part == 1 / 16
    assert list(heats_of([small], ["plain"])) == ["peers"]


def test_keys_are_checked_and_the_baseline_stays():
    assert choose("") == list(NAMES)
    assert choose("bound") == ["plain", "bound"]
    with pytest.raises(InputError, match="'fast' is not one of"):
        choose("fast")


# The report


def test_tables_say_what_was_measured():
    plain, ours = Fake("plain", (5000.0, 9000.0, 4000.0)), Fake("ours", (1000.0, 3000.0, 1000.0))
    plain.peak, ours.decibel = 10**7, 101.234
    title, columns, rows = heat_table("All", "plain ONNX", {"plain": plain, "ours": ours}, {"other": "missing"})
    assert rows[0] == ["plain", "5000", "4000 to 9000", "1.00 (1.00 to 1.00)", "", "10"]
    assert rows[1] == ["ours", "1000", "1000 to 3000", "4.00 (3.00 to 5.00)", "101.23", ""]
    assert rows[2][:2] == ["other", "missing"]
    assert all(len(row) == len(columns) for row in rows)
    assert markdown((title, ["", "ms"], [["a", "1"]])) == "**All**\n\n|  | ms |\n| --- | ---: |\n| a | 1 |"


def test_the_saving_is_against_dense(monkeypatch):
    lineup = Lineup(MODEL, (64, 64), ROOT, 1, 0.389, silent)
    auto = Fake("auto", (0.9, 1.8))
    auto.told = [Query(1_000_000, 640, 600), Query(3_000_000, 640, 600)]
    heat = {"ort-dense": Fake("dense", (1.0, 2.0)), "ort-auto-pure": auto, "ort-auto-busy": Fake("busy", (1.03, 2.06))}
    _, columns, (row,) = pure_pass_table(lineup, {"peers": {}, "ort": heat})
    assert len(columns) == len(row)
    # 39.06 % of the pixels save 8.19 % of the multiply-adds, as SPEED.md says.
    assert row[:5] == ["ort", "39.06 %", "640", "10.0 % (10.0 to 10.0)", "8.19 %"]
    assert row[5:] == ["1.22 (1.22 to 1.22)", "3.0 % (3.0 to 3.0)", "2.00"]


# The command


def run(*arguments, code=0, app=compare_peers.app):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model, which SPEED.md may be written into."""
    return shutil.copytree(ROOT / "models" / MODEL, tmp_path / MODEL)


def test_the_command_measures_a_few(model, tmp_path):
    target = tmp_path / "out.json"
    output = run(
        model, "--size", "16x16", "--rounds", "1", "--threads", "1", "--only", "torch-eager,bound",
        "--work", tmp_path / "work", "--json", target, "--write", "--memory", "--pure-share", "0",
    )  # fmt: skip
    data = json.loads(target.read_text())
    heat = data["heats"]["peers"]
    assert list(heat) == ["plain", "torch-eager", "bound"]
    assert heat["plain"]["decibel"] > 90
    assert np.shape(heat["plain"]["ms"]) == (1, 2)
    assert data["skipped"] == {}
    text = (model / "SPEED.md").read_text()
    assert f"onnxruntime {onnxruntime.__version__}" in text
    assert "LR 16x16, 1 rounds; 0.00 % of the picture is pure." in text
    assert "| PyTorch eager |" in text
    assert "written to" in output


# tools/compare_networks.py


def test_the_plain_graphs_of_other_networks_are_theirs(tmp_path):
    lr = to_input(photo(16, 32))
    for arch in ("atd_light_v2", "swinir_light", "camixersr", "camixer_atd_light"):
        network = random_small_network(arch)
        export_plain(network, (16, 32), tmp_path / f"{arch}.onnx")
        sr, _ = plain_graph(tmp_path / f"{arch}.onnx", 1, flush=False)(lr)
        assert psnr(sr, network(torch.from_numpy(lr)).numpy(), 1.0) > 100, arch


def test_networks_are_timed_beside_their_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_networks, "make_network", random_small_network)
    target = tmp_path / "out.json"
    options = ["--rounds", "1", "--threads", "1", "--only", "swinir_light,camixersr", "--work", tmp_path / "work"]
    output = run("--size", "16x16", *options, "--processor", "--json", target, app=compare_networks.app)
    data = json.loads(target.read_text())
    flavours = {"swinir_light": ["ort", "portable"], "camixersr": ["portable"]}
    for arch, heat in data["heats"].items():
        assert [key for key in heat if key != "openvino"] == ["bound", *flavours[arch], "plain"]
        assert min(peer["decibel"] for key, peer in heat.items() if key != "bound") > 90
        assert ("openvino" in heat) or ("OpenVINO" in str(data["skipped"][arch]))
    assert "LR 16x16, x2, processor time with --threads 1, 1 rounds" in output


def test_a_network_s_times_are_divided_by_those_of_its_arithmetic():
    heat = {"bound": Fake("arithmetic alone", (2.0, 6.0)), "ort": Fake("flavour ort", (5.0, 15.0))}
    rows = compare_networks.network_rows("swinir_light", heat, {"portable, in OpenVINO": "missing"})
    assert [row[4] for row in rows] == ["1.00 (1.00 to 1.00)", "2.50 (2.50 to 2.50)", ""]
    assert rows[2][:3] == ["swinir_light", "portable, in OpenVINO", "missing"]


def test_processor_time_is_that_of_the_journal():
    peer = Fake("a", ())
    peer.rounds = [[]]
    for processor in (False, True):
        peers._Records([peer], processor).write("q", 0, 0, 0, 3_000_000, 2_000_000, *UNTOLD)
    assert peer.rounds == [[3.0, 2.0]]


def test_mistakes_of_networks_are_sentences():
    app = compare_networks.app
    assert "'vdsr' is not one of atd_light" in run("--only", "vdsr", code=2, app=app)
    assert "multiples of 16" in run("--size", "16x24", code=2, app=app)
    assert "is for --threads 1" in run("--processor", code=2, app=app)


def test_mistakes_are_sentences(model):
    assert "'fast' is not one of" in run(MODEL, "--only", "fast", code=2)
    assert "a size is HEIGHTxWIDTH" in run(MODEL, "--size", "16", code=2)
    assert "multiples of 16" in run(MODEL, "--size", "16x24", code=2)
    assert "atd_light_x2 has no weights" in run("atd_light_x2", code=2)
    (model / "SPEED.md").write_text("no place")
    assert "no place for the table" in run(model, "--write", code=2)
