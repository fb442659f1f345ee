"""tools/ablation.py: what is compared, what is kept, what the tables say, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_network
from PIL import Image
from shared import ROOT, TOOLS
from typer.testing import CliRunner

# What is imported above lets programs of tools/ be found.
# isort: split
import ablation
from ablation import (
    PLACE,
    Figures,
    Store,
    Variant,
    change,
    check_names,
    cost_at,
    held_out,
    measure,
    parse_data_set,
    render,
    variants,
    with_options,
)
from figures.places import Place
from training.data import find_images, split_holdout

import ppexport
from ppexport.device.mask import pure_mask
from ppexport.errors import InputError, UnavailableError
from ppexport.imaging.bicubic import resize_bicubic
from ppexport.networks.atd.atd_light import PPATDLight
from ppexport.networks.card import PurePassOptions, bundled_cards, read_card
from ppexport.parity.evaluation import evaluate, find_pairs, network_upscaler

BEGIN, END = "<!-- ablation -->", "<!-- /ablation -->"


@pytest.fixture(autouse=True)
def _one_thread():
    """Pictures this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """hr/ and lr/ with two small pictures, half of each one colour, so that masks differ and are not trivial."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, (h, w) in {"a": (66, 64), "b": (64, 96)}.items():
        hr = generator.integers(0, 256, (h, w, 3), dtype=np.uint8)
        hr[:, : w // 2] = generator.integers(100, 106, (h, w // 2, 3)) + np.array([80, 0, 20])
        for kind, picture in (("hr", hr), ("lr", resize_bicubic(hr, 2))):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / kind / f"{name}.png")
    return folder


@pytest.fixture
def pictures(folders):
    return parse_data_set(f"two={folders / 'hr'}", 2)


def network() -> PPATDLight:
    return golden_network("atd_light_x2_trained", "pp_atd_light")


def test_one_factor_differs_at_a_time_and_nothing_is_measured_twice():
    found = variants(PurePassOptions())
    assert [v.name for v in found] == [
        "default (value, CSMF on, K 8, w 8)",
        *("compensation zero", "compensation normed", "CSMF off", "K 6", "w 4", "w 16"),
        "no Pure-Pass",
    ]
    assert len({v.options for v in found}) == len(found)
    default = PurePassOptions().model_dump()
    for variant in found[1:-1]:
        changed = {key for key, value in variant.options.model_dump().items() if value != default[key]}
        assert len(changed) == 1
    assert found[-1].options is None
    # A default that is no value of the lists has all of theirs beside it.
    assert [v.name for v in variants(PurePassOptions(colors=12))][3:6] == ["CSMF off", "K 6", "K 8"]


def test_variants_share_the_weights():
    lr = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    zero = with_options(network(), PurePassOptions(compensation="zero"))
    assert zero.options.compensation == "zero"
    assert torch.equal(with_options(network(), PurePassOptions())(lr), network()(lr))
    dense = with_options(network(), None)
    assert torch.equal(dense(lr), golden_network("atd_light_x2_trained", "atd_light")(lr))
    assert network().options.compensation == "value"


def test_figures_are_those_of_evaluate_and_of_the_mask(folders, pictures):
    options = PurePassOptions(csmf=False, window=4)
    figures = measure(network(), options, pictures)
    loaded = ppexport.load_network(
        arch="pp_atd_light", scale=2, checkpoint=GOLDEN / "atd_light_x2_trained.safetensors", csmf=False, window=4
    )
    expected = evaluate(network_upscaler(loaded), find_pairs(folders / "hr", None, 2), 2)
    # The compiled kernels round otherwise than PyTorch.
    assert figures.psnr_y == pytest.approx([s.psnr_y for s in expected.scores], abs=1e-3)
    assert figures.mean_psnr_y == pytest.approx(expected.mean.psnr_y, abs=1e-3)
    lrs = [np.asarray(Image.open(folders / "lr" / f"{name}.png")) for name in "ab"]
    assert figures.pure == tuple(float(pure_mask(lr, 8, 4, False).mean()) for lr in lrs)
    assert 0.2 < figures.mean_pure < 0.6
    given = parse_data_set(f"two={folders / 'hr'}:{folders / 'lr'}", 2)
    assert measure(network(), options, given) == figures


def test_without_a_compiler_it_is_slower_and_says_so(monkeypatch, folders, tmp_path):
    def missing(network):
        raise UnavailableError("no C compiler (gcc) was found")

    monkeypatch.setattr(ablation, "speed_up", missing)
    monkeypatch.setattr(ablation, "variants", lambda default: variants(default)[:1])
    arguments = ("pp_atd_light_x2", "--state", tmp_path / "s.json", "--data", f"two={folders / 'hr'}", "--threads", 1)
    output = run(*arguments, code=0).stdout
    assert output.startswith("measuring takes three times as long: no C compiler (gcc) was found\n")
    assert "| default (value, CSMF on, K 8, w 8) | " in output


def test_without_pure_pass_nothing_is_pure(pictures):
    figures = measure(network(), None, pictures)
    assert figures.pure == (0.0, 0.0)
    assert figures != measure(network(), PurePassOptions(), pictures)


def test_cost_is_that_of_the_papers_size():
    dense = cost_at(2, 0.0, None)
    assert dense.actual == dense.dense
    assert round(dense.dense.published / 1e9, 2) == 380.01
    assert dense.saving == 0
    # The mask itself costs multiply-adds, which is why the saving at no pure pixel is a little below zero.
    assert -1e-4 < cost_at(2, 0.0, PurePassOptions()).saving < 0
    assert cost_at(2, 0.3889, PurePassOptions()).saving == pytest.approx(0.215 * 0.3889, abs=0.002)
    assert cost_at(2, 1.0, PurePassOptions()).impure == 0


def test_held_out_pictures_are_those_of_the_training_run(tmp_path):
    for i in range(7):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (data,) = held_out([tmp_path], 2)
    _, held = split_holdout(find_images([tmp_path]), 2)
    assert data.name == "holdout2"
    assert [(p.hr, p.lr) for p in data.pairs] == [(path, None) for path in held]
    assert held_out([], 0) == []
    for folders, count in (([tmp_path], 0), ([], 2)):
        with pytest.raises(InputError, match="belong together"):
            held_out(folders, count)


@pytest.mark.parametrize("text", ["", "set5", "=hr", "set5=", "a b=hr", "set5=:lr"])
def test_a_data_set_that_is_none(text):
    with pytest.raises(InputError, match="NAME=HR_DIR"):
        parse_data_set(text, 2)


def test_data_sets_have_names_of_their_own(folders, pictures):
    with pytest.raises(InputError, match="nothing to measure"):
        check_names([])
    with pytest.raises(InputError, match="two data sets are called two"):
        check_names([pictures, pictures])
    with pytest.raises(InputError, match="absent is not a folder"):
        parse_data_set("a=absent", 2)
    with pytest.raises(InputError, match="no LR picture"):
        parse_data_set(f"a={folders / 'hr'}:{ROOT / 'calibration' / 'images'}", 2)


def test_a_data_set_is_known_by_its_pictures_not_by_its_place(folders, pictures, tmp_path):
    copy = shutil.copytree(folders / "hr", tmp_path / "copy")
    assert parse_data_set(f"other={copy}", 2).sha256 == pictures.sha256
    assert parse_data_set(f"two={copy}:{folders / 'lr'}", 2).sha256 != pictures.sha256
    Image.new("RGB", (64, 64)).save(copy / "b.png")
    assert parse_data_set(f"two={copy}", 2).sha256 != pictures.sha256


def test_finished_work_is_not_done_again(pictures, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(ablation, "variants", lambda default: variants(default)[:2] + variants(default)[-1:])

    def counting(network, options, data, progress):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(options)
        return measure(network, options, data, progress)

    monkeypatch.setattr(ablation, "measure", counting)
    state, said = tmp_path / "state.json", []
    with pytest.raises(KeyboardInterrupt):
        ablation.compare(network(), [pictures], Store(state), said.append)
    assert len(json.loads(state.read_text())["results"]) == len(said) == 2
    # What is finished is on disk; the rest is one variant.
    first, done[:] = list(done), []
    table = ablation.compare(network(), [pictures], Store(state), said.append)
    assert first == [PurePassOptions(), PurePassOptions(compensation="zero")]
    assert done == [None]
    assert len(said) == 3
    # A third run measures nothing and says the same.
    monkeypatch.setattr(ablation, "measure", lambda *arguments: pytest.fail("measured again"))
    assert ablation.compare(network(), [pictures], Store(state), said.append) == table
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_other_weights_options_or_pictures_are_other_results(pictures, tmp_path):
    store = Store(tmp_path / "state.json")
    figures = Figures((30.5, 31.25), (0.1, 0.2))
    what = ("0" * 64, PurePassOptions(), pictures)
    store.put(*what, figures)
    again = Store(tmp_path / "state.json")
    assert again.get(*what) == store.get(*what) == figures
    moved = parse_data_set(f"renamed={pictures.pairs[0].hr.parent}", 2)
    assert again.get("0" * 64, PurePassOptions(), moved) == figures
    assert again.get("1" * 64, PurePassOptions(), pictures) is None
    assert again.get("0" * 64, PurePassOptions(csmf=False), pictures) is None
    assert again.get("0" * 64, None, pictures) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format": 99, "results": {}}', '{"format": 1, "results": {"k": {"pictures": [{}]}}}']
)
def test_a_damaged_state_is_refused(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"state.json holds no results of an ablation.*--state"):
        Store(path)
    assert path.read_text() == text


def test_a_state_needs_its_folder(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        Store(tmp_path / "absent" / "state.json")


def test_the_table_says_what_was_measured(pictures):
    default = (Variant("default", PurePassOptions()), Figures((30.0, 34.0), (0.2, 0.4)))
    zero = (Variant("compensation zero", PurePassOptions(compensation="zero")), Figures((29.9, 34.02), (0.2, 0.4)))
    dense = (Variant("no Pure-Pass", None), Figures((30.1, 34.1), (0.0, 0.0)))
    lines = render(pictures, 2, [default, zero, dense]).splitlines()
    assert lines[0] == "**two**, 2 pictures, LR by bicubic:"
    assert lines[4] == "| default | 32.000 | 0 | 30.00 % | 355.27 G | 6.51 % |"
    assert lines[5] == "| compensation zero | 31.960 | -0.040 (-0.100 to +0.020) | 30.00 % | 355.27 G | 6.51 % |"
    assert lines[6] == "| no Pure-Pass | 32.100 | +0.100 (+0.100 to +0.100) | 0.00 % | 380.01 G | 0.00 % |"
    assert change(default[1], default[1]) == "0"


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"# Model\n\n{BEGIN}\nold | table\n{END}\n\nConclusion.\n")
    place = Place(path, PLACE)
    for _ in range(2):
        place.write("| new |")
        assert path.read_text() == f"# Model\n\n{BEGIN}\n\n| new |\n\n{END}\n\nConclusion.\n"
    for bad in ("", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}", f"{BEGIN} {END} {END}"):
        path.write_text(bad)
        with pytest.raises(InputError, match="README.md has no place for the table"):
            Place(path, PLACE)
    with pytest.raises(InputError, match="cannot be read"):
        Place(tmp_path / "absent.md", PLACE)


def card_weights(name: str) -> str:
    """SHA-256 of the weights of the bundled model *name*."""
    return read_card(bundled_cards()[name]).weights.sha256


def run(*arguments, code):
    """Run the program's command in this process, where torch is loaded already, and check its exit code."""
    done = CliRunner().invoke(ablation.app, [str(part) for part in arguments])
    assert done.exit_code == code, done.output
    return done


def test_the_program_starts_from_any_folder(tmp_path):
    command = [sys.executable, str(TOOLS / "ablation.py"), "nonesuch", "--state", "s.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert "bundled: " in done.stderr


def test_the_program_from_folder_to_readme(folders, tmp_path):
    """All variants of the bundled model."""
    readme = tmp_path / "README.md"
    readme.write_text(f"Before.\n{BEGIN}\n{END}\nAfter.\n")
    arguments = ("pp_atd_light_x2", "--state", tmp_path / "s.json", "--data", f"two={folders / 'hr'}", "--threads", 1)
    first = run(*arguments, "--out", readme, code=0)
    text = readme.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert f"`{card_weights('pp_atd_light_x2')[:12]}…`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "variant" not in line]
    assert len(rows) == 8
    assert rows[0].startswith("| default (value, CSMF on, K 8, w 8) | ")
    assert rows[-1].endswith("| 0.00 % | 380.01 G | 0.00 % |")
    assert first.stdout.count(" dB, ") == 8
    # Without --out the tables are printed, and nothing is measured again.
    second = run(*arguments, code=0)
    assert rows[3] in second.stdout
    assert " dB, " not in second.stdout.replace("change dB, mean", "")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["atd_light_x2", "--data", "a={hr}"], "no weights are bundled", 3),
        (["pp_atd_light_x2"], "nothing to measure on", 2),
        (["pp_atd_light_x2", "--data", "a={hr}", "--out", "{hr}/README.md"], "cannot be read", 2),
    ],
)
def test_mistakes_get_one_sentence(folders, tmp_path, arguments, message, code):
    arguments = [part.format(hr=folders / "hr") for part in arguments]
    done = run(*arguments, "--state", tmp_path / "s.json", code=code)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_options_has_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(ablation, "load_network", lambda name: golden_network("atd_light_x2_trained", "atd_light"))
    with pytest.raises(InputError, match="no Pure-Pass options"):
        ablation.open_model("mine")
