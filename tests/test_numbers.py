"""tools/all_numbers.py: which commands measure everything again, and that READMEs state what was measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from shared import ROOT, TOOLS

# What is imported above lets programs of tools/ be found.
# isort: split
import all_numbers
from all_numbers import bundled_with_weights, has_ablation, plan

from ppexport.backends.backend import find_backend
from ppexport.errors import InputError
from ppexport.networks.card import bundled_cards, read_card
from ppexport.report.numerics import NETWORK, read_numerics

CARD = {"summary": "s", "arch": "pp_atd_light", "licence": "MIT"}
WEIGHTS = {"file": "w.safetensors", "sha256": "0" * 64}
MODELS = sorted(bundled_cards().items())


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Four models: x2 with weights and a README, x3 without weights, x4 with weights only."""
    folder = tmp_path / "models"
    cards = {
        "net_x2": {**CARD, "scale": 2, "weights": WEIGHTS},
        "net_x3": {**CARD, "scale": 3},
        "net_x4": {**CARD, "scale": 4, "weights": WEIGHTS},
    }
    for name, card in cards.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "card.yaml").write_text(yaml.safe_dump({"name": name, **card}))
    (folder / "net_x2" / "README.md").write_text("<!-- ablation -->\n<!-- /ablation -->\n")
    monkeypatch.setattr(all_numbers, "bundled_cards", lambda: {name: folder / name for name in cards})
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("set5", "set14"):
        for scale in (2, 4):
            (folder / name / f"image_SRF_{scale}").mkdir(parents=True)
    return folder


def test_every_model_with_weights_is_measured(models, images, tmp_path):
    commands = plan(images, tmp_path / "s.json")
    lines = [" ".join(command[1:]) for command in commands]
    assert lines[:4] == [
        f"-m ppexport evaluate net_x{scale} --hr {folder} --lr {folder} --record {name}"
        for scale in (2, 4)
        for name, folder in ((n, images / n / f"image_SRF_{scale}") for n in ("set5", "set14"))
    ]
    assert {command[0] for command in commands} == {sys.executable}
    (ablation,) = commands[4:]
    assert ablation[1] == str(TOOLS / "ablation.py")
    assert ablation[2:7] == ["net_x2", "--state", str(tmp_path / "s.json"), "--out", str(models / "net_x2/README.md")]
    sets = [ablation[i + 1] for i, part in enumerate(ablation) if part == "--data"]
    assert sets == [
        f"calibration={ROOT / 'calibration' / 'images'}",
        *(f"{n}={images / n / 'image_SRF_2'}:{images / n / 'image_SRF_2'}" for n in ("set5", "set14")),
    ]
    assert "--holdout" not in ablation


def test_held_out_pictures_are_measured_where_the_training_pictures_are(models, images, tmp_path):
    (images / "bsds400_train").mkdir()
    assert "--holdout" not in plan(images, tmp_path / "s.json")[-1]
    (images / "kodak24").mkdir()
    ablation = plan(images, tmp_path / "s.json")[-1]
    # In the order of the training run, or other pictures would be held out.
    at = ablation.index("--train-data")
    assert ablation[at : at + 6] == [
        *("--train-data", str(images / "bsds400_train"), "--train-data", str(images / "kodak24")),
        *("--holdout", "8"),
    ]


def test_a_missing_folder_stops_before_any_work(models, images, tmp_path):
    (images / "set14" / "image_SRF_4").rmdir()
    with pytest.raises(InputError, match=r"set14.image_SRF_4 is missing"):
        plan(images, tmp_path / "s.json")
    done = subprocess.run(
        [sys.executable, str(TOOLS / "all_numbers.py"), str(tmp_path / "absent")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is missing" in done.stderr
    assert done.stdout == ""


def test_the_first_failure_ends_it(monkeypatch, images, tmp_path, models):
    ran = []

    def run(command, **options):
        ran.append(command)
        return subprocess.CompletedProcess(command, 3 if len(ran) == 2 else 0)

    monkeypatch.setattr(all_numbers.subprocess, "run", run)
    with pytest.raises(all_numbers.typer.Exit) as end:
        all_numbers.numbers(images, tmp_path / "new" / "s.json")
    assert end.value.exit_code == 3
    assert len(ran) == 2
    assert (tmp_path / "new").is_dir()


def test_programs_of_tools_hide_no_module_of_python():
    names = {path.stem for path in TOOLS.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & set(sys.stdlib_module_names)


def test_bundled_models_have_weights_or_not():
    names = [card.name for card, _ in bundled_with_weights()]
    assert "pp_atd_light_x2" in names
    assert "atd_light_x2" not in names


@pytest.mark.parametrize(("name", "folder"), MODELS, ids=[name for name, _ in MODELS])
def test_stored_parity_tells_quality_as_it_runs_and_with_the_same_routing(name: str, folder: Path):
    for key, figures in read_numerics(folder)["parity"].items():
        changes = (figures["psnr_y_change"], figures["psnr_y_change_same_routing"])
        assert None not in changes, key
        backend, precision = key.split("-")[:2]
        if precision in ("fp16", "w8"):
            assert max(map(abs, changes)) <= find_backend(backend).precisions[precision].task_change, key


@pytest.mark.parametrize(("name", "folder"), MODELS, ids=[name for name, _ in MODELS])
def test_a_models_readme_states_what_was_measured(name: str, folder: Path):
    readme = folder / "README.md"
    if not readme.is_file():
        pytest.skip(f"{name} has no README")
    text = readme.read_text(encoding="utf-8")
    for data_set, entries in read_numerics(folder)["evaluation"].items():
        figures = entries[NETWORK]
        for key, digits in (("psnr_y", 2), ("ssim_y", 4), ("bicubic_psnr_y", 2), ("bicubic_ssim_y", 4)):
            assert f"{figures[key]:.{digits}f}" in text, f"{data_set} {key}"
        assert f"{figures['published_psnr_y']:.2f}" in text
    card = read_card(folder)
    if has_ablation(folder) and card.weights is not None:
        assert f"`{card.weights.sha256[:12]}…`" in text, "the ablation is of other weights: make numbers"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (folder / link).exists(), link
