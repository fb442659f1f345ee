"""tools/numbers.sh: which commands measure everything again, and that READMEs state what was measured."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared import TOOLS

from ppexport.backends.backend import find_backend
from ppexport.networks.card import bundled_cards, read_card
from ppexport.report.records import NETWORK, read_numerics

MODELS = sorted(bundled_cards().items())
PLACE = "<!-- ablation -->"


@pytest.fixture
def measure(tmp_path):
    """Run the program in a checkout of three models, of which the second has no weights and only the first a README.

    What would be run is written down, one line a command; the third command fails if there is a file `fail`.
    """
    for name in ("net_x2", "net_x3", "net_x4"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for name in ("net_x2", "net_x4"):
        (tmp_path / "models" / name / "weights.safetensors").touch()
    (tmp_path / "models" / "net_x2" / "README.md").write_text(f"{PLACE}\n<!-- /ablation -->\n")
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOLS / "numbers.sh", tmp_path / "tools")
    for name in ("set5", "set14"):
        for scale in (2, 4):
            (tmp_path / "my images" / name / f"image_SRF_{scale}").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncd \'{tmp_path}\'; (IFS="|"; echo "$*") >> log; '
        "if [ -f fail ] && [ $(wc -l < log) = 3 ]; then exit 3; fi\n"
    )
    python.chmod(0o755)

    def run(code=0):
        command = ["bash", str(tmp_path / "tools" / "numbers.sh"), "my images"]
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        log = tmp_path / "log"
        return [line.split("|") for line in log.read_text().splitlines()] if log.is_file() else [], done.stderr

    return run


def test_every_model_with_weights_is_measured(measure, tmp_path):
    images = tmp_path / "my images"
    commands, _ = measure()
    evaluations = [
        ["-m", "ppexport", "evaluate", f"net_x{scale}", "--hr", str(folder), "--lr", str(folder), "--record", name]
        for scale in (2, 4)
        for name, folder in ((n, images / n / f"image_SRF_{scale}") for n in ("set5", "set14"))
    ]
    ablation = commands.pop(2)
    assert commands == evaluations
    assert ablation[:6] == [
        *("tools/ablation.py", "net_x2", "--state", "runs/ablation.json", "--out", "models/net_x2/README.md")
    ]
    assert ablation[6:] == [
        *("--data", "calibration=calibration/images"),
        *(p for n in ("set5", "set14") for p in ("--data", "{0}={1}:{1}".format(n, images / n / "image_SRF_2"))),
    ]
    assert (tmp_path / "runs").is_dir()


def test_held_out_pictures_are_measured_where_the_training_pictures_are(measure, tmp_path):
    images = tmp_path / "my images"
    (images / "bsds400_train").mkdir()
    assert "--holdout" not in measure()[0][2]
    (tmp_path / "log").unlink()
    (images / "kodak24").mkdir()
    # In the order of the training run, or other pictures would be held out.
    assert measure()[0][2][6:12] == [
        *("--train-data", str(images / "bsds400_train"), "--train-data", str(images / "kodak24")),
        *("--holdout", "8"),
    ]


def test_a_missing_folder_stops_before_any_work(measure, tmp_path):
    (tmp_path / "my images" / "set14" / "image_SRF_4").rmdir()
    commands, said = measure(code=2)
    assert commands == []
    assert "set14/image_SRF_4 is missing" in said


def test_the_first_failure_ends_it(measure, tmp_path):
    (tmp_path / "fail").touch()
    assert len(measure(code=3)[0]) == 3


def test_programs_of_tools_hide_no_module_of_python():
    names = {path.stem for path in TOOLS.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & set(sys.stdlib_module_names)


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
    if PLACE in text and card.weights is not None:
        assert f"`{card.weights.sha256[:12]}…`" in text, "the ablation is of other weights: make numbers"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (folder / link).exists(), link
