"""tools/renew_numbers.py: what is measured again, in which order; tools/bundle.py; READMEs state what was measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file
from shared import TOOLS

# What is imported above lets programs of tools/ be found.
# isort: split
import bundle
from ablation import Store, parse_data_set
from figures import steps
from figures.places import Place
from figures.steps import STANDARD, CommandError, Model, run_command
from figures.tables import write_tables
from renew_numbers import models_of, renew

import ppexport
from ppexport.backends.backend import find_backend
from ppexport.errors import InputError
from ppexport.files import sha256_file
from ppexport.networks.card import bundled_cards, models_folder, read_card
from ppexport.quantize.calibration import load_calibration, save_calibration
from ppexport.quantize.recipe import Recipe, write_recipe
from ppexport.report.records import NETWORK, read_numerics

MODELS = sorted(bundled_cards().items())
PLACE = "<!-- ablation -->"
CARD = """name: {name}
summary: PP-ATD-light x{scale}, hardly trained
arch: pp_atd_light
scale: {scale}
weights:
  file: weights.safetensors
  sha256: {sha256}
licence: Apache-2.0
training:
  data: a picture
  runs: []
published:
  set5: 38.29
"""


FLAVOURS = {"litert": "lite", "coreml": "portable", "executorch": "portable"}
"""Of backends without an option for it."""
QUALITY = {"psnr_y": 36.5, "ssim_y": 0.95, "bicubic_psnr_y": 33.25, "bicubic_ssim_y": 0.93, "weights_sha256": "0"}
ROW = {
    "passed": True, "psnr": 50.0, "psnr_same_routing": None, "psnr_y_change": 0.001, "flips": 1200,
    "psnr_y_change_same_routing": -0.00001, "equal_categories": None, "weights_sha256": "0",
}  # fmt: skip


class Checkout:
    """A checkout of new models, in which a stand-in of ppexport records figures without measuring."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.commands = root, root / "my images", []
        self.failing: dict[str, int] = {}
        """{part of a command: exit code}."""
        self.evaluated: dict[str, str] = {}
        """{artifact: what its evaluation is called, if otherwise}."""
        (root / "README.md").write_text("<!-- quality -->\n<!-- /quality -->\n")
        for part in ("ranges", "recipes"):
            (root / "calibration" / part).mkdir(parents=True)
        for name in ("set5", "set14"):
            for scale in (2, 3):
                (self.images / name / f"image_SRF_{scale}").mkdir(parents=True)
        (self.images / "kodak24").mkdir()

    def add(self, name: str, scale: int) -> Path:
        folder = self.root / "models" / name
        folder.mkdir(parents=True)
        (folder / "card.yaml").write_text(CARD.format(name=name, scale=scale, sha256="f" * 64))
        (folder / "weights.safetensors").write_bytes(b"first")
        return folder

    def run(self, command, root) -> None:
        assert root == self.root
        words = [str(word) for word in command[1:]]
        self.commands.append(" ".join(words[2:] if words[0] == "-m" else words))
        for part, code in self.failing.items():
            if part in self.commands[-1]:
                raise CommandError(command, code, "some lines\nthe reason")
        given = dict(pairwise(words))
        verb, name = (words[2], words[3]) if words[0] == "-m" else (words[0], words[1])
        if verb == "export":
            parts = ("--backend", "--precision", "--flavour", "--capacity", "--size")
            self.model, self.key = (
                name,
                "-".join(given.get(part, FLAVOURS.get(given.get("--backend"), "")) for part in parts),
            )
            self.exported.append(self.key)
        elif verb == "evaluate":
            key = NETWORK if name in ("net_x2", "net_x3", "pp_atd_light_x2") else self.key
            model, key = (name, key) if key == NETWORK else (self.model, self.evaluated.get(key, key))
            figures = QUALITY | {"weights_sha256": self.sha256(model)}
            self.record(model, lambda data: data["evaluation"].setdefault(given["--record"], {}).update({key: figures}))
        elif verb == "report":
            row = ROW | {"weights_sha256": self.sha256(self.model)}
            self.record(self.model, lambda data: data["parity"].update({self.key: row}))
        elif verb == "calibrate":
            known = load_calibration(models_folder().parent / "calibration" / "ranges" / "pp_atd_light_x2.npz")
            about = replace(known.about, weights_sha256=self.sha256(name))
            save_calibration(Path(given["-o"]), replace(known, about=about))
        elif verb == "quantize-search":
            out = Path(given["-o"])
            out.mkdir(parents=True)
            (out / "pareto.md").write_text(f"the search of {name}\n")
            (out / "pareto.png").write_bytes(b"png")
            write_recipe(out / "recipe.yaml", Recipe(weights_sha256=self.sha256(name)))
        elif verb == "upscale":
            with Image.open(words[4]) as image:
                image.resize((2 * image.width, 2 * image.height)).save(words[5])
        elif verb == "tools/ablation.py":
            Place(Path(given["--out"]), "ablation").write(f"`{self.sha256(name)[:12]}…`")

    def sha256(self, name: str) -> str:
        return sha256_file(self.root / "models" / name / "weights.safetensors")

    def record(self, name: str, change) -> None:
        path = self.root / "models" / name / "numerics.yaml"
        data = read_numerics(path.parent)
        change(data)
        path.write_text(yaml.safe_dump(data))

    def renew(self, only: str = "") -> tuple[list[str], list[str], list[str]]:
        """The verbs of the commands that ran, what was said, and what was kept."""
        self.commands, self.exported, said = [], [], []
        models = [Model(self.root, folder, self.images, self.run) for folder in models_of(self.root)]
        kept = renew(models, only, said.append)
        return [command.split()[0] for command in self.commands], "".join(said).splitlines(), kept


@pytest.fixture
def checkout(tmp_path):
    made = Checkout(tmp_path)
    made.add("net_x2", 2)
    return made


def test_a_new_model_gets_the_standard_figures_and_a_second_run_finds_nothing_to_do(checkout):
    folder = checkout.add("net_x3", 3)
    verbs, said, kept = checkout.renew()
    row = ["export", "parity", "report"]
    rows = [row if "fp32-portable-full" not in key and "int8" not in key else [*row, "evaluate"] for key in STANDARD]
    one = ["calibrate", "quantize-search"]
    assert verbs == ["evaluate"] * 4 + one * 2 + [verb for _ in range(2) for made in rows for verb in made]
    assert not kept
    assert read_card(folder).weights.sha256 == checkout.sha256("net_x3")
    numerics = read_numerics(folder)
    assert set(numerics["parity"]) == set(STANDARD)
    assert set(numerics["evaluation"]) == {"set5", "set14"}
    assert all("s" in line.split()[-1] or "tables" in line for line in said)
    assert "| Set5 x3 | 33.25 | 36.50 | – |" in (checkout.root / "README.md").read_text()
    assert "| Set14 | 33.25 / 0.9300 | 36.50 / 0.9500 | +3.25 | – |" in (folder / "README.md").read_text()
    precision = (folder / "PRECISION.md").read_text()
    assert "the search of net_x3" in precision
    assert (folder / "precision.png").is_file()
    assert "| `web-fp32-portable-set-64x64` | pass | 50.0 | equal | +0.0010 | +0.0000 | – | 1,200 |" in precision
    assert "| Set5 | `onnx-int8-portable-full-64x64` | 36.500 | 0.9500 |" in precision
    before = {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}
    verbs, said, kept = checkout.renew()
    assert (verbs, kept) == ([], [])
    assert all(line.endswith("of these weights already") for line in said)
    assert {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()} == before


def test_new_weights_renew_every_row_that_the_model_has(checkout):
    folder = checkout.root / "models" / "net_x2"
    checkout.renew()
    slow, other = "executorch-fp32-portable-set-32x32", "litert-int8-lite-full-64x64"
    half, tiled = "onnx-fp16-portable-full-64x64", "onnx-fp16-weights-portable-full-64x64"
    checkout.record("net_x2", lambda data: data["parity"].update({slow: ROW, other: ROW}))
    checkout.record("net_x2", lambda data: data["evaluation"]["set14"].update({tiled: QUALITY}))
    (folder / "README.md").write_text(f"{PLACE}\n<!-- /ablation -->\n`{'b' * 12}…`\n")
    (checkout.images / "bsds400_train").mkdir()
    (folder / "weights.safetensors").write_bytes(b"second")

    # What ONNX Runtime computes of it is not fp16.
    checkout.evaluated = {half: tiled}
    verbs, _, kept = checkout.renew()
    assert not kept
    assert checkout.exported == [*STANDARD, other, slow]
    assert verbs[-1] == "tools/ablation.py"
    numerics, sha256 = read_numerics(folder), checkout.sha256("net_x2")
    entries = [*numerics["parity"].values(), *(e for keys in numerics["evaluation"].values() for e in keys.values())]
    assert len(entries) == len(STANDARD) + 2 + 5
    assert all(entry["weights_sha256"] == sha256 for entry in entries)
    assert read_card(folder).weights.sha256 == sha256
    train = " ".join(f"--train-data {checkout.images / name}" for name in ("bsds400_train", "kodak24"))
    assert f"{train} --holdout 8 --data calibration=calibration/images --data set5=" in checkout.commands[-1]
    assert checkout.renew()[0] == []


def test_a_missing_folder_stops_before_any_work(checkout):
    (checkout.images / "set14" / "image_SRF_2").rmdir()
    with pytest.raises(InputError, match=r"set14/image_SRF_2 is missing"):
        checkout.renew()
    assert checkout.commands == []


def test_the_first_failure_ends_it_with_its_code_and_the_next_run_continues_there(checkout):
    checkout.failing = {"--flavour ort": 1}
    with pytest.raises(CommandError, match="(?s)the reason.*ended with code 1: .*export net_x2") as caught:
        checkout.renew()
    assert caught.value.exit_code == 1
    checkout.failing = {}
    verbs, said, _ = checkout.renew()
    assert checkout.commands[0].startswith("export net_x2 --backend onnx --precision fp32 --capacity set")
    assert "evaluate" not in verbs[:3]
    assert said[5].endswith("already")


def test_what_this_machine_cannot_run_is_kept_and_named(checkout):
    checkout.renew()
    (checkout.root / "models" / "net_x2" / "weights.safetensors").write_bytes(b"second")
    checkout.failing = {"--backend coreml": 3}
    _, said, kept = checkout.renew()
    key = "coreml-fp16-portable-full-64x64"
    assert kept == [f"net_x2 artifact {key}: the reason"]
    assert any(line.endswith("kept as it was, the reason") for line in said)
    assert f"| `{key}` (of earlier weights) |" in (checkout.root / "models" / "net_x2" / "PRECISION.md").read_text()
    # Only an artifact may lack something: without the network's own figures nothing is right.
    checkout.failing = {"calibrate": 3}
    (checkout.root / "models" / "net_x2" / "weights.safetensors").write_bytes(b"third")
    with pytest.raises(CommandError):
        checkout.renew()


def test_int8_is_not_measured_with_the_recipe_of_other_weights(checkout):
    (checkout.images / "kodak24").rmdir()
    _, _, kept = checkout.renew()
    assert [line.split(":")[0] for line in kept] == ["net_x2 recipe", "net_x2 artifact onnx-int8-portable-full-64x64"]
    assert not any(" int8 " in command for command in checkout.commands)
    (checkout.root / "models" / "net_x2" / "weights.safetensors").write_bytes(b"second")
    with pytest.raises(InputError, match="`ranges` comes first"):
        checkout.renew(only="fp16")


def test_the_picture_of_the_readme_tells_its_weights(checkout):
    folder = checkout.add(steps.DEMO_MODEL, 2)
    assert checkout.renew(only="pictures")[0] == ["export", "upscale"]
    with Image.open(folder / "comparison.png") as image:
        assert image.info["weights_sha256"] == checkout.sha256(folder.name)
    assert checkout.renew(only="pictures")[0] == []


def test_a_failed_command_shows_the_end_of_what_it_printed(tmp_path):
    run_command([sys.executable, "-c", "pass"], tmp_path)
    with pytest.raises(CommandError, match="(?s)^line 2.*line 40.*the end.*ended with code 3") as caught:
        run_command([sys.executable, "-c", "for i in range(41): print('line', i)\nprint('the end'); exit(3)"], tmp_path)
    assert caught.value.exit_code == 3


def test_a_command_ends_with_the_program(tmp_path):
    """SIGTERM of a command that runs ends it, and the code is that of the signal."""
    code = (
        f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import signal; from pathlib import Path\n"
        "import renew_numbers; from figures.steps import run_command\n"
        "signal.signal(signal.SIGTERM, renew_numbers.stop)\n"
        "run_command([sys.executable, '-c', 'import os,time; open(\"pid\", \"w\").write(str(os.getpid())); '\n"
        "'os.rename(\"pid\", \"here\"); time.sleep(60)'], Path('.'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while not (tmp_path / "here").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "here").read_text()), 0)


def test_the_tables_in_the_project_are_those_of_numerics(tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(models_folder(), root / "models")
    shutil.copy(TOOLS.parent / "README.md", root)
    assert write_tables(root, models_of(root)) == [], "make numbers IMAGES=DIR"


@pytest.mark.parametrize(
    "runs", ["  runs: []\n", "  runs:\n    - steps: 1\n      recipe: >-\n        of\n        old\n"]
)
def test_a_card_gets_the_run_behind_the_others_and_the_hash(tmp_path, runs):
    text = CARD.format(name="net_x2", scale=2, sha256="f" * 64).replace("  runs: []\n", runs)
    run = {"steps": 2, "hours": 0.5, "hardware": "one core", "command": "train " * 40}
    (tmp_path / "card.yaml").write_text(bundle.with_run(text, "a" * 64, run))
    card = read_card(tmp_path)
    old = [] if "[]" in runs else [{"steps": 1, "recipe": "of old"}]
    assert card.training == {"data": "a picture", "runs": [*old, run]}
    assert (card.weights.sha256, card.published) == ("a" * 64, {"set5": 38.29})
    with pytest.raises(InputError, match="needs `training:` with"):
        bundle.with_run(text.replace("  runs:", "  sessions:"), "a" * 64, run)


def test_a_run_is_told_by_its_log_and_by_what_people_know(tmp_path):
    weights, about = tmp_path / "weights.safetensors", tmp_path / "about.yaml"
    with pytest.raises(InputError, match="needs steps, hours, hardware of the run"):
        bundle.training_run(weights, None)
    log = [{"kind": "train", "step": 20, "trained": 3600.0}, {"kind": "validation", "step": 20, "psnr_y": 30.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    about.write_text("hardware: one core\ncommand: train\n")
    run = {"steps": 20, "hours": 1.0, "hardware": "one core", "command": "train"}
    assert bundle.training_run(weights, about) == run
    for text in ("weather: fine\n", "- 1\n", "{\n"):
        about.write_text(text)
        with pytest.raises(InputError, match="about.yaml"):
            bundle.training_run(weights, about)


def test_only_better_weights_are_bundled(tmp_path):
    folder, pictures, said = tmp_path / "models" / "net_x2", tmp_path / "pictures", []
    for path in (folder, pictures, tmp_path / "run"):
        path.mkdir(parents=True)
    detail = np.asarray(Image.open(models_folder().parent / "calibration" / "images" / "astronaut.png"))[
        96:160, 192:256
    ]
    Image.fromarray(detail).save(pictures / "detail.png")
    (folder / "card.yaml").write_text(CARD.format(name="net_x2", scale=2, sha256="f" * 64))
    good = models_folder() / "pp_atd_light_x2" / "weights.safetensors"
    state = ppexport.load_network("pp_atd_light_x2").state_dict()
    poor = state | {"upsample.0.bias": state["upsample.0.bias"] + 0.005}
    sets, store = [parse_data_set(f"detail={pictures}", 2)], Store(tmp_path / "state.json")
    weights, run = tmp_path / "run" / "weights.safetensors", {"steps": 1}

    def judged():
        before = {path: path.read_bytes() for path in folder.iterdir()}
        taken = bundle.judge(folder, weights, run, sets, store, said.append)
        assert taken == ({path: path.read_bytes() for path in folder.iterdir()} != before)
        return taken

    # The first weights have to beat bicubic, the next ones those that are there.
    save_file(state | {"upsample.0.bias": state["upsample.0.bias"] + 0.2}, weights)
    assert not judged()
    save_file(poor, weights)
    (tmp_path / "run" / "loss.png").write_bytes(b"curve")
    assert judged()
    assert not judged(), "the same again are not better"
    shutil.copy(good, weights)
    assert judged()
    assert read_card(folder).training["runs"] == [run, run]
    assert read_card(folder).weights.sha256 == sha256_file(good) == sha256_file(folder / "weights.safetensors")
    assert (folder / "training.png").read_bytes() == b"curve"
    save_file(poor, weights)
    assert not judged()
    assert said[-1] == "not better by 0.005 dB: nothing was changed"


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
        found = Place(folder / "README.md", "ablation").read()
        assert f"`{card.weights.sha256[:12]}…`" in found, "the ablation is of other weights: make numbers"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (folder / link).exists(), link
