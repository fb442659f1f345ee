"""Several networks in one command: what a subject may be, its settings and label, and `info` of several."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image
from shared import ROOT
from test_cli import fails, run

from ppexport.device.mask import pure_mask
from ppexport.errors import CardError, CheckpointError, InputError
from ppexport.networks.cost import cost, saved_on
from ppexport.networks.load import load_untrained
from ppexport.networks.subject import parse_subject, parse_subjects, told_apart


@pytest.fixture(scope="module")
def mixer(tmp_path_factory):
    """A weights file of CAMixerSR x4."""
    path = tmp_path_factory.mktemp("a,b=c") / "mixer.pth"
    torch.save({"params": load_untrained(None, "camixersr", 4, {}).state_dict()}, path)
    return path


def test_a_weights_file_is_several_subjects(mixer):
    plain, quarter = (parse_subject(text) for text in (str(mixer), f"{mixer},ratio=0.25,scale=4"))
    assert plain.target == quarter.target == str(mixer)
    assert quarter.settings == {"ratio": "0.25", "scale": "4"}
    assert plain.network().options.ratio == 0.5
    card, path = quarter.card_and_weights()
    assert (card.arch, card.scale, card.options.ratio, path) == ("camixersr", 4, 0.25, mixer)
    # Of both places that name an option, the subject's own counts.
    assert quarter.network(options={"ratio": "1"}).options.ratio == 0.25
    assert plain.network(options={"ratio": "1"}).options.ratio == 1
    assert [one.label("camixersr") for one in (plain, quarter)] == ["camixersr", "camixersr ratio=0.25"]


def test_labels_tell_subjects_apart():
    subjects = parse_subjects(["a/x.pth", "b/y.pth", "c/y.pth", "pp_atd_light_x2", "z.pth,ratio=1"])
    labels = [one.label("camixersr") for one in subjects]
    assert told_apart(labels, subjects) == [
        "camixersr (x.pth)", "b/y.pth", "c/y.pth", "pp_atd_light_x2", "camixersr ratio=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "trained", "error", "message"),
    [
        ("nonesuch", False, InputError, "'nonesuch' is not a bundled model, .*pp_atd_light_x2.*swinir_light"),
        ("absent.pth", False, CheckpointError, "absent.pth: there is no such weights file"),
        ("pp_atd_light", False, InputError, "pp_atd_light is an architecture and needs a scale: --scale N, of 2, 3, 4"),
        ("pp_atd_light", True, InputError, "is an architecture, which has no weights: .*FILE,arch=pp_atd_light"),
        ("pp_atd_light_x2,scale=two", False, InputError, "the scale is a whole number, not 'two'"),
        ("pp_atd_light_x2,scale=4", False, InputError, "has scale 2, not 4"),
        ("pp_atd_light_x2,ratio=1", False, InputError, "no option 'ratio'"),
        ("pp_atd_light_x2,colors=40", False, CardError, "cannot use colors"),
        ("pp_atd_light_x2,colors=4,colors=6", False, InputError, "colors is given twice"),
        ("mixer.pth,arch=", True, InputError, "mixer.pth,arch=: arch has no value"),
    ],
)
def test_what_is_no_subject(text, trained, error, message):
    with pytest.raises(error, match=message):
        getattr(parse_subject(text), "card_and_weights" if trained else "network")()


def test_the_cost_is_that_of_the_chosen_share_of_windows():
    costs = {
        ratio: cost(load_untrained(None, "camixersr", 4, {"ratio": ratio}), (64, 64)).actual.branches["window"]
        for ratio in (0.25, 0.5, 1.0)
    }
    assert costs[0.5] == 2 * costs[0.25] == costs[1.0] / 2
    # Where the mask chooses, all may attend.
    assert cost(load_untrained(None, "pp_camixersr", 4, {}), (64, 64)).dense.branches["window"] == costs[1.0]


def test_a_size_that_the_network_cannot_pad_has_no_cost():
    fails("info", "swinir_light", "--scale", "2", "--size", "64x3", message="a side of 3 pixels is padded to 8")


def test_what_masks_save_on_pictures(tmp_path):
    flat = np.full((32, 32, 3), 200, np.uint8)
    for name, rgb in {"flat": flat, "photo": photo(48, 64)}.items():
        Image.fromarray(rgb).save(tmp_path / f"{name}.png")
    networks = [load_untrained("pp_atd_light_x2", None, None, {}), load_untrained(None, "swinir_light", 2, {})]
    saved, none = saved_on(networks, sorted(tmp_path.iterdir()))
    assert none is None
    share = float(pure_mask(photo(48, 64)).mean())
    assert saved.pure_share == pytest.approx((1 + share) / 2)
    costs = cost(networks[0], (48, 64), pure_mask(photo(48, 64))), cost(networks[0], (32, 32), pure_mask(flat))
    assert saved.saving == pytest.approx(sum(own.saving for own in costs) / 2)
    assert saved.macs_published == sum(own.actual.published for own in costs) / 2
    assert 0 < saved.saving < saved.pure_share


def test_the_examples_of_the_documentation(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n *", "", text).splitlines()
    examples = [line.split()[1:] for line in lines if line.startswith("    ppexport info ")]
    assert len(examples) == 2
    for example in examples:
        assert "pure" in run(*example).stdout


def test_info_of_several(mixer, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(photo(45, 80)).save(tmp_path / folder / "a.png")
    pictures = ["--images", tmp_path / "one", "--images", tmp_path / "two"]
    subjects = ["pp_atd_light_x2", f"{mixer},ratio=0.25", "swinir_light,scale=3"]
    data = json.loads(run("info", *subjects, *pictures, "--size", "64x48", "--json", "-").stdout)["subjects"]
    assert [row["subject"] for row in data] == ["pp_atd_light_x2", "camixersr ratio=0.25", "swinir_light"]
    assert [row["scale"] for row in data] == [2, 4, 3]
    assert [row["parameters"] for row in data] == [753_204, 351_238, 918_267]
    assert data[1]["options"] == {"ratio": 0.25}
    assert {tuple(row["lr_size"]) for row in data} == {(64, 48)}
    one, two = data[0]["images"].values()
    assert one == two
    assert 0 < one["saving"] < one["pure_share"] < 1
    assert set(data[1]["images"].values()) == {None}
    shown = run("info", *subjects, COLUMNS="120").stdout
    assert "360x640" in shown
    assert "380.01" in shown
    # One subject on two folders, too, and one subject of any kind as ever.
    assert "saved in" in run("info", "pp_atd_light_x2", *pictures).stdout
    assert json.loads(run("info", mixer, "--json", "-").stdout)["model"] == "camixersr_x4"
    fails("info", *subjects, "--image", tmp_path / "one" / "a.png", message="--image is for one subject")
    fails("info", *subjects, "--checkpoint", mixer, message="--checkpoint is for one subject")
    fails("info", mixer, mixer, message="mixer.pth is given twice")
